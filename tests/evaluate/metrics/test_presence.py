import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.errors import DataError
from unteach.evaluate.metrics import presence
from unteach.evaluate.metrics.presence import Answers, Domain, none_share
from unteach.records.stats import Interval, share, wilson

OBJECTS, STYLES = 3, 2


def hand() -> Answers:
    """Eight pictures, counted below by hand; style 1 was erased, 3 and 2 are "none of these"."""
    return Answers.of(
        seen_object=[0, 1, 2, 0, 0, 1, 3, 1],
        seen_style=[0, 0, 1, 0, 1, 2, 0, 0],
        asked_object=[0, 1, 2, 1, 0, 1, 2, 1],
        asked_style=[0, 0, 0, 0, 1, 1, 1, 1],
    )


def rate(name: str, answers: Answers, target: int, domain: Domain) -> Interval | None:
    hit = presence.hits(name, answers, target, domain)
    return share(hit) if hit.size else None


def counts(interval: Interval | None) -> tuple[int, int]:
    assert interval is not None
    assert interval == wilson(round(interval.value * interval.n), interval.n)
    return round(interval.value * interval.n), interval.n


def test_the_numbers_of_a_style_by_hand() -> None:
    answers = hand()
    assert counts(rate("UA", answers, 1, "style")) == (3, 4)  # not style 1 on pictures 5, 6, 7 of 4..7
    assert counts(rate("target elsewhere", answers, 1, "style")) == (1, 4)  # picture 2
    assert counts(rate("IRA", answers, 1, "style")) == (3, 4)  # 0, 1, 3
    assert counts(rate("CRA", answers, 1, "style")) == (3, 4)  # objects of 0, 1, 2
    assert counts(rate("CRA, target included", answers, 1, "style")) == (6, 8)  # and of 4, 5, 7
    assert counts(rate("kept", answers, 1, "style")) == (2, 4)  # 0, 1
    assert counts(none_share(answers, "style", STYLES)) == (1, 8)
    assert counts(none_share(answers, "object", OBJECTS)) == (1, 8)
    assert presence.confusion(answers, "style", 1, STYLES).tolist() == [2, 1, 1]


def test_the_numbers_of_an_object_by_hand() -> None:
    answers = hand()
    assert counts(rate("UA", answers, 2, "object")) == (1, 2)
    assert counts(rate("IRA", answers, 2, "object")) == (5, 6)
    assert counts(rate("CRA", answers, 2, "object")) == (4, 6)
    assert counts(rate("CRA, target included", answers, 2, "object")) == (4, 8)
    assert presence.confusion(answers, "object", 2, OBJECTS).tolist() == [0, 0, 1, 1]


def test_what_was_not_asked_is_not_measured() -> None:
    only_target = hand()[np.arange(4, 8)]
    assert rate("UA", only_target, 1, "style") is not None
    assert rate("IRA", only_target, 1, "style") is None and rate("CRA", only_target, 1, "style") is None
    assert rate("kept", only_target, 1, "style") is None and rate("UA", only_target, 0, "style") is None


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    n = draw(st.integers(1, 30))

    def column(top: int) -> list[int]:
        return draw(st.lists(st.integers(0, top), min_size=n, max_size=n))

    return Answers.of(column(OBJECTS), column(STYLES), column(OBJECTS - 1), column(STYLES - 1))


def slow(a: Answers, target: int, domain: Domain) -> dict[str, tuple[int, int]]:
    """Every measure by a loop over pictures, straight from the definitions."""
    total = {name: [0, 0] for name in presence.RULES}

    def count(name: str, hit: bool) -> None:
        total[name][0] += hit
        total[name][1] += 1

    for i in range(len(a)):
        asked = {"object": a.asked_object[i], "style": a.asked_style[i]}
        seen = {"object": a.seen_object[i], "style": a.seen_style[i]}
        across: Domain = "object" if domain == "style" else "style"
        count("CRA, target included", seen[across] == asked[across])
        if asked[domain] == target:
            count("UA", seen[domain] != target)
        else:
            count("IRA", seen[domain] == asked[domain])
            count("CRA", seen[across] == asked[across])
            count("kept", seen == asked)
            count("target elsewhere", seen[domain] == target)
    return {name: (hit, n) for name, (hit, n) in total.items()}


@given(answers(), st.sampled_from(["object", "style"]), st.integers(0, 1))
def test_every_rule_is_its_definition(a: Answers, domain: Domain, target: int) -> None:
    for name, expected in slow(a, target, domain).items():
        hits = presence.hits(name, a, target, domain)
        assert (int(hits.sum()), hits.size) == expected, name


@given(answers(), answers())
def test_hits_of_two_models_are_paired(a: Answers, b: Answers) -> None:
    n = min(len(a), len(b))
    rows = np.arange(n)
    first, seen = a[rows], b[rows]
    second = Answers.of(seen.seen_object, seen.seen_style, first.asked_object, first.asked_style)
    for name in presence.RULES:
        sizes = {presence.hits(name, x, 1, "style").size for x in (first, second)}
        assert len(sizes) == 1


def test_retained_asks_for_nothing_erased() -> None:
    assert presence.retained(hand(), [2], [1]).tolist() == [True, True, False, True] + [False] * 4
    assert presence.retained(hand(), [], []).all()


def test_lengths_must_fit() -> None:
    with pytest.raises(DataError, match=r"equal numbers; found: \[2, 1, 1, 1\]"):
        Answers.of([0, 1], [0], [0], [0])
