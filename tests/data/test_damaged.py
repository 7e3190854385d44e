"""L4: whatever third parties raise on damaged input becomes one of our errors; see the driver for larger counts."""

from tests.data import damage


def test_l4_every_damaged_file_is_read_or_refused_in_our_words() -> None:
    told, longest = damage.run(seed=0, count=320)
    assert sum(told.values()) == 320 and longest < 3000
    for kind in ("idx", "cifar", "tiny", "classes", "arrays", "captions", "concepts", "prompts"):
        assert told[kind, "read"] > 0 and told[kind, "refused"] > 0, kind
