import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.oracle import memory as oracle
from torch import Tensor

from unteach.continual.memory.buffer import Memory
from unteach.core import loop, seeds, state
from unteach.errors import CheckpointError, ConfigError, DataError

POLICIES = ["reservoir", "balanced", "ring"]


def pixels(n: int, shape: tuple[int, ...] = (1, 2, 3), seed: int = 0) -> Tensor:
    return torch.randint(256, (n, *shape), generator=seeds.generator(seed, "pixels"), dtype=torch.uint8)


def draws(seed: int, step: int, n: int) -> list[float]:
    return torch.rand(n, generator=seeds.generator(seed, "memory", step), dtype=torch.float64).tolist()


def offer(memory: Memory, labels: Tensor, sizes: list[int], start: int = 0, first_step: int = 0) -> None:
    """Batches of these sizes; sample i of the stream has index i and its index in its pixels and logits."""
    for step, size in enumerate(sizes, first_step):
        at = torch.arange(start, start + size)
        x = (at % 256).to(torch.uint8)[:, None, None, None].expand(-1, *memory.shape)
        rows = None if memory.logits is None else at[:, None].float().expand(-1, memory.classes)
        memory.insert(x, labels[at], task=at // 50, logits=rows, index=at, step=step)
        start += size


def held(memory: Memory) -> list[int]:
    return memory.index[: len(memory)].tolist()


def assert_whole(memory: Memory, labels: Tensor) -> None:
    """All that is kept of a sample is of the same sample; nothing beyond the filled rows."""
    n = len(memory)
    at = memory.index[:n]
    assert (at >= 0).all() and (memory.index[n:] == -1).all()
    assert len(set(at.tolist())) == n
    assert torch.equal(memory.y[:n], labels[at])
    assert torch.equal(memory.task[:n], at // 50)
    assert (memory.x[:n].flatten(1) == (at % 256)[:, None]).all()
    if memory.logits is not None:
        assert (memory.logits[:n] == at[:, None]).all()


streams = st.tuples(
    st.integers(4, 13),  # capacity
    st.lists(st.integers(0, 3), min_size=1, max_size=80),  # labels
    st.integers(1, 17),  # batch
    st.integers(0, 5),  # seed
)


def full(memory: Memory) -> bool:
    """Every row that the policy can use is in use."""
    share = memory.capacity // memory.classes * memory.classes
    return len(memory) == (share if memory.policy == "ring" else memory.capacity)


def class_counts(memory: Memory) -> Tensor:
    return torch.bincount(memory.y[: len(memory)], minlength=memory.classes)


def sizes_of(n: int, batch: int) -> list[int]:
    return [min(batch, n - i) for i in range(0, n, batch)]


@settings(max_examples=40)
@given(streams, st.booleans())
def test_reservoir_is_algorithm_r(stream: tuple, logits: bool) -> None:
    capacity, labels, batch, seed = stream
    memory = Memory(capacity, (1, 2, 3), classes=4, logits=logits, seed=seed)
    offer(memory, torch.tensor(labels), sizes := sizes_of(len(labels), batch))
    expected: list[int] = []
    seen = 0
    for step, size in enumerate(sizes):
        seen = oracle.reservoir(expected, seen, capacity, range(seen, seen + size), draws(seed, step, size))
    assert held(memory) == expected  # row for row
    assert_whole(memory, torch.tensor(labels))
    assert memory.seen == len(labels)
    assert full(memory) == (len(labels) >= capacity)


@settings(max_examples=40)
@given(streams)
def test_balanced_is_the_fair_choice(stream: tuple) -> None:
    capacity, labels, batch, seed = stream
    memory = Memory(capacity, (1, 2, 3), classes=4, policy="balanced", seed=seed)
    offer(memory, torch.tensor(labels), sizes := sizes_of(len(labels), batch))
    keys = [key for step, size in enumerate(sizes) for key in draws(seed, step, size)]
    assert set(held(memory)) == oracle.balanced(keys, labels, capacity)
    assert_whole(memory, torch.tensor(labels))
    counts, offered = class_counts(memory), torch.bincount(torch.tensor(labels), minlength=4)
    rich = counts[counts < offered]  # classes that had to give samples away
    assert len(rich) == 0 or counts.max() - rich.min() <= 1


@settings(max_examples=40)
@given(streams)
def test_ring_is_a_queue_a_class(stream: tuple) -> None:
    capacity, labels, batch, seed = stream
    memory = Memory(capacity, (1, 2, 3), classes=4, policy="ring", seed=seed)
    offer(memory, torch.tensor(labels), sizes_of(len(labels), batch))
    queues = oracle.ring(labels, capacity // 4)
    assert sorted(held(memory)) == sorted(i for queue in queues.values() for i in queue)
    assert_whole(memory, torch.tensor(labels))


def test_reservoir_keeps_every_sample_equally_often() -> None:
    # 400 runs of 60 samples in batches of 7 into 10 rows: each sample is expected 66.7 times.
    runs, n, capacity = 400, 60, 10
    kept, places = torch.zeros(n), torch.zeros(capacity, 2)
    labels = torch.zeros(n, dtype=torch.int64)
    for seed in range(runs):
        memory = Memory(capacity, (1,), classes=1, seed=seed, dtype=torch.float32)
        for step, at in enumerate(torch.arange(n).split(7)):
            memory.insert(at[:, None].float(), labels[at], task=0, index=at, step=step)
        kept[memory.index] += 1
        places[torch.arange(capacity), (memory.index >= n // 2).long()] += 1
    share = capacity / n
    # Counts without replacement: the statistic is chi-square of n - 1 degrees of freedom after this scaling.
    chi = float(((kept - runs * share) ** 2).sum() / (runs * share * (1 - share))) * (n - 1) / n
    assert 0.001 < stats.chi2.sf(chi, n - 1) < 0.999
    assert stats.chisquare(places[:, 0].double().numpy()).pvalue > 0.001  # no row prefers the young or the old


def test_balanced_keeps_every_sample_of_a_class_equally_often() -> None:
    runs, kept = 300, torch.zeros(60)
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)  # in this order, as classes come in a stream
    for seed in range(runs):
        memory = Memory(9, (1, 1, 1), classes=3, policy="balanced", seed=seed)
        offer(memory, labels, [8] * 7 + [4])
        assert class_counts(memory).tolist() == [3, 3, 3]
        kept[memory.index] += 1
    for c, n in ((0, 30), (1, 20), (2, 10)):
        share = 3 / n
        chi = float(((kept[labels == c] - runs * share) ** 2).sum() / (runs * share * (1 - share))) * (n - 1) / n
        assert 0.001 < stats.chi2.sf(chi, n - 1) < 0.999


def test_balanced_does_not_depend_on_batches_once_keys_are_given() -> None:
    # One batch against singles, with the keys of the singles written into the oracle: the same set.
    labels = torch.arange(40) % 3
    memory = Memory(7, (1, 1, 1), classes=3, policy="balanced", seed=3)
    offer(memory, labels, [1] * 40)
    keys = [draws(3, step, 1)[0] for step in range(40)]
    assert set(held(memory)) == oracle.balanced(keys, labels.tolist(), 7)


@pytest.mark.parametrize("policy", POLICIES)
def test_insert_returns_the_rows_that_changed(policy: str) -> None:
    labels = torch.arange(90) % 4
    memory = Memory(12, (1, 2, 3), classes=4, policy=policy)
    offer(memory, labels, [15] * 3)
    before = memory.index.clone()
    at = torch.arange(45, 75)
    slots = memory.insert(pixels(30), labels[at], task=1, index=at, step=9)
    assert slots.dtype == torch.int64 and len(slots.unique()) == len(slots) > 0
    changed = (memory.index != before).nonzero()[:, 0]
    assert sorted(slots.tolist()) == changed.tolist()
    assert len(memory.insert(pixels(0), labels[:0], task=1, step=10)) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_content(policy: str) -> None:
    labels = torch.arange(60) % 4
    twins = [Memory(12, (1, 1, 1), classes=4, policy=policy, seed=seed) for seed in (5, 5, 6)]
    torch.manual_seed(1)
    global_state = torch.get_rng_state()
    for memory in twins:
        offer(memory, labels, [20] * 3)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert held(twins[0]) == held(twins[1])
    if policy != "ring":
        assert held(twins[0]) != held(twins[2])


# ---- draws ----


def test_draw_is_without_replacement_and_whole() -> None:
    labels = torch.arange(200) % 5
    memory = Memory(40, (1, 1, 1), classes=5, logits=True)
    offer(memory, labels, [25] * 8)
    batch = memory.draw(16, seeds.generator(0, "draw", 1))
    assert len(batch) == 16 and len(batch.slots.unique()) == 16
    assert batch.x.dtype == torch.uint8 and batch.x.shape == (16, 1, 1, 1)
    assert torch.equal(batch.y, labels[batch.index])
    assert torch.equal(batch.task, batch.index // 50)
    assert batch.logits is not None and (batch.logits == batch.index[:, None]).all()
    assert torch.equal(batch.slots, memory.draw(16, seeds.generator(0, "draw", 1)).slots)
    assert not torch.equal(batch.slots, memory.draw(16, seeds.generator(0, "draw", 2)).slots)
    batch.x.zero_()  # a copy
    assert memory.x.any()


def test_draw_gives_all_when_asked_for_more_and_nothing_when_empty() -> None:
    memory = Memory(40, (1, 1, 1), classes=2)
    generator = seeds.generator(0, "draw")
    assert len(memory.draw(3, generator)) == 0
    offer(memory, torch.zeros(10, dtype=torch.int64), [10])
    assert sorted(memory.draw(32, generator).slots.tolist()) == list(range(10))
    with pytest.raises(ConfigError, match="at least one sample"):
        memory.draw(0, generator)


def test_draw_of_one_task() -> None:
    memory = Memory(60, (1, 1, 1), classes=2)
    offer(memory, torch.zeros(120, dtype=torch.int64), [30] * 4)
    batch = memory.draw(5, seeds.generator(0, "draw"), task=1)
    assert len(batch) == 5 and (batch.task == 1).all()
    assert len(memory.draw(5, seeds.generator(0, "draw"), task=7)) == 0


def test_draw_is_uniform() -> None:
    memory = Memory(20, (1, 1, 1), classes=1)
    offer(memory, torch.zeros(20, dtype=torch.int64), [20])
    count = torch.zeros(20)
    for i in range(600):
        count[memory.draw(4, seeds.generator(0, "draw", i)).slots] += 1
    chi = float(((count - 120) ** 2).sum() / (600 * 0.2 * 0.8)) * 19 / 20
    assert 0.001 < stats.chi2.sf(chi, 19) < 0.999


def test_update_logits() -> None:
    memory = Memory(10, (1, 1, 1), classes=3, logits=True)
    offer(memory, torch.zeros(10, dtype=torch.int64), [10])
    memory.update_logits(torch.tensor([4, 2]), torch.tensor([[1.0, 2, 3], [4, 5, 6]], requires_grad=True))
    assert memory.logits is not None and not memory.logits.requires_grad
    assert memory.logits[4].tolist() == [1, 2, 3] and memory.logits[2].tolist() == [4, 5, 6]
    assert memory.logits[3].tolist() == [3, 3, 3]
    with pytest.raises(DataError, match="shape"):
        memory.update_logits(torch.tensor([4, 2]), torch.zeros(2, 4))


# ---- replace ----


@pytest.mark.parametrize("policy", POLICIES)
def test_replace_sets_the_whole_content_and_inserts_go_on(policy: str) -> None:
    labels = torch.arange(400) % 3
    memory = Memory(12, (1, 1, 1), classes=3, policy=policy)
    offer(memory, labels, [30] * 3)
    at = torch.tensor([100, 101, 103, 102])
    memory.replace((at % 256).to(torch.uint8)[:, None, None, None], labels[at], task=at // 50, index=at)
    assert held(memory) == at.tolist() and memory.seen == 90 and not full(memory)
    offer(memory, labels, [6], start=200, first_step=50)
    assert len(memory) >= 9  # there was room: filled first (a ring: up to four a class)
    offer(memory, labels, [60] * 3, start=206, first_step=51)
    assert full(memory) and len(memory) == 12
    assert (memory.index[:12] >= 100).all()


def test_replace_refuses_what_does_not_fit() -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ConfigError, match="do not fit") as error:
        Memory(4, (1, 2, 3), classes=2).replace(pixels(5), labels, task=0)
    assert "5 samples for 4 rows" in str(error.value)
    with pytest.raises(ConfigError, match="5 of one class for 3 rows a class"):
        Memory(6, (1, 2, 3), classes=2, policy="ring").replace(pixels(5), labels, task=0)


# ---- state ----


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("before", [1, 5])
def test_interrupted_equals_unbroken(policy: str, before: int, tmp_path) -> None:
    def new() -> Memory:
        return Memory(30, (1, 2, 2), classes=4, policy=policy, logits=True, seed=2)

    labels = torch.randint(4, (200,), generator=seeds.generator(0, "labels"))
    unbroken, first, second = new(), new(), new()
    offer(unbroken, labels, [20] * 10)
    offer(first, labels, [20] * before)
    tensors: dict[str, Tensor] = {}
    plain = loop._pack(first.state_dict(), "memory", tensors)  # as the training loop stores it
    state.save(tmp_path / "state.safetensors", tensors, {"memory": plain})
    tensors, meta = state.load(tmp_path / "state.safetensors")
    second.load_state_dict(loop._unpack(meta["memory"], tensors))
    for name, value in first.state_dict().items():
        other = second.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
    offer(second, labels, [20] * (10 - before), start=20 * before, first_step=before)
    for name in ("x", "y", "task", "index", "logits"):
        assert torch.equal(getattr(second, name), getattr(unbroken, name))
    assert second.seen == unbroken.seen == 200


def test_state_of_another_memory_is_refused() -> None:
    memory = Memory(30, (1, 2, 2), classes=4)
    offer(memory, torch.zeros(20, dtype=torch.int64), [20])
    saved = memory.state_dict()
    json.dumps({k: v for k, v in saved.items() if not isinstance(v, Tensor)})
    for other in (
        Memory(31, (1, 2, 2), classes=4),
        Memory(30, (1, 2, 2), classes=5),
        Memory(30, (1, 2, 2), classes=4, policy="balanced"),
        Memory(30, (1, 2, 2), classes=4, logits=True),
        Memory(30, (1, 2, 2), classes=4, dtype=torch.float32),
    ):
        with pytest.raises(CheckpointError, match="another memory"):
            other.load_state_dict(saved)
    del saved["task"]
    with pytest.raises(CheckpointError, match="not whole"):
        Memory(30, (1, 2, 2), classes=4).load_state_dict(saved)


# ---- errors ----


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="did you mean 'reservoir'"):
        Memory(3, (1,), classes=1, policy="resevoir")
    with pytest.raises(ConfigError, match="without room"):
        Memory(0, (1,), classes=1)
    for policy in ("balanced", "ring"):
        with pytest.raises(ConfigError, match="a buffer smaller than the classes; found: capacity 9, 10 cl"):
            Memory(9, (1,), classes=10, policy=policy)
        assert Memory(10, (1,), classes=10, policy=policy).capacity == 10
    assert Memory(9, (1,), classes=10).capacity == 9


@pytest.mark.parametrize("policy", POLICIES)
def test_batches_that_do_not_fit_change_nothing(policy: str) -> None:
    memory = Memory(8, (1, 2, 3), classes=4, policy=policy)
    y = torch.tensor([0, 1, 2])
    good = {"x": pixels(3), "y": y, "task": 0, "step": 0}
    wrong = [
        ({"x": pixels(3, (1, 3, 2))}, "samples must be \\(n, 1, 2, 3\\)"),
        ({"x": pixels(3).float()}, "uint8"),
        ({"y": y[:2]}, "labels must be \\(3,\\) int64"),
        ({"y": y.int()}, "int64"),
        ({"y": y + 2}, "outside \\[0, 4\\)"),
        ({"y": y - 1}, "outside \\[0, 4\\)"),
        ({"index": y[:2]}, "positions"),
    ]
    for change, message in wrong:
        with pytest.raises(DataError, match=message):
            memory.insert(**{**good, **change})
    with pytest.raises(ConfigError, match="keeps no logits"):
        memory.insert(**good, logits=torch.zeros(3, 4))
    with pytest.raises(ConfigError, match="keeps no logits"):
        memory.update_logits(y, torch.zeros(3, 4))
    assert len(memory) == memory.seen == 0
    keeping = Memory(8, (1, 2, 3), classes=4, policy=policy, logits=True)
    with pytest.raises(ConfigError, match="keeps logits"):
        keeping.insert(**good)
    with pytest.raises(DataError, match="logits must be"):
        keeping.insert(**good, logits=torch.zeros(3, 5))
