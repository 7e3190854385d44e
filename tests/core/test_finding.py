"""The verdict of an erasure's check: numbers to words, and the record that goes to a file and back."""

import dataclasses
import json

import pytest

from unteach.core.finding import Effect, Finding
from unteach.errors import DataError

NOTHING = Effect(target="van gogh", anchor="art", towards=0.0, left=1.0, moved=0.0, apart=0.5, prompts=16)
ERASED = dataclasses.replace(NOTHING, towards=1.0, left=0.0, moved=1.0)
GONE = dataclasses.replace(NOTHING, towards=0.4, left=1.6, moved=1.4)
PARTLY = dataclasses.replace(NOTHING, towards=0.35, left=0.72, moved=0.42)
ASIDE = dataclasses.replace(NOTHING, towards=0.1, left=1.3, moved=0.5)  # moved, but the target is still there
NEAR = dataclasses.replace(NOTHING, towards=0.75, left=0.8, moved=1.3)  # another picture of the anchor
SAME = dataclasses.replace(NOTHING, apart=0.0)
UNASKED = dataclasses.replace(NOTHING, prompts=0)


def finding(*effects: Effect, rest: float = 0.0) -> Finding:
    return Finding(concepts=effects, rest=rest, prompts=24, seed=7)


@pytest.mark.parametrize(
    ("found", "verdict", "good"),
    [
        (finding(NOTHING), "nothing happened", False),
        (finding(NOTHING, rest=2.0), "nothing happened, the rest hurt", False),
        (finding(ERASED), "erased, the rest kept", True),
        (finding(ERASED, rest=0.25), "erased, the rest kept", True),
        (finding(ERASED, rest=0.4), "erased, the rest hurt", False),
        (finding(GONE), "gone, but not the anchor, the rest kept", False),
        (finding(GONE, rest=2.0), "gone, but not the anchor, the rest hurt", False),
        (finding(ASIDE), "nothing happened", False),
        (finding(NEAR), "erased, the rest kept", True),
        (finding(PARTLY), "partly erased, the rest kept", False),
        (finding(SAME), "undecided: the model does not tell target and anchor apart, the rest kept", False),
        (finding(UNASKED), "undecided: the model does not tell target and anchor apart, the rest kept", False),
        # The worst concept decides.
        (finding(ERASED, NOTHING), "nothing happened", False),
        (finding(ERASED, PARTLY), "partly erased, the rest kept", False),
        (finding(ERASED, ERASED), "erased, the rest kept", True),
    ],
)
def test_u2_every_outcome_has_its_words(found: Finding, verdict: str, good: bool) -> None:
    assert (found.verdict, found.good) == (verdict, good)
    assert len(found.lines()) == len(found.concepts) + 1


def test_the_lines_carry_the_numbers() -> None:
    assert finding(PARTLY, rest=0.07).lines() == [
        "van gogh → art: partly erased (35 % of the way to the anchor, 0.72 of the distance left, 16 prompts)",
        "the rest: kept (moved 0.07 of the distance to the next picture, 24 prompts)",
    ]


def test_the_record_survives_json() -> None:
    found = finding(ERASED, GONE, rest=0.25)
    assert Finding.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_damaged_record_is_refused_with_its_place() -> None:
    good = finding(ERASED).to_dict()
    for change, message in (
        ({"rest": "much"}, "rest must be a finite number, found 'much'"),
        ({"rest": float("nan")}, "rest must be a finite number"),
        ({"prompts": True}, "prompts must be a whole number"),
        ({"concepts": "all"}, "concepts must be a list"),
        ({"concepts": [{**good["concepts"][0], "targte": "x"}]}, r"concepts\[0\]: unknown key 'targte'"),
        ({"concepts": [{"target": "x"}]}, r"concepts\[0\]: missing key 'anchor'"),
        ({"concepts": ["x"]}, r"concepts\[0\] must be a table"),
        ({"more": 1}, "unknown key 'more'"),
    ):
        with pytest.raises(DataError, match=message):
            Finding.from_dict({**good, **change})
    with pytest.raises(DataError, match="must be a table"):
        Finding.from_dict([])
