from collections import Counter

import pytest
from tests.evaluate.worlds import WORLD

from unteach.data import vocabulary
from unteach.data.concepts import Concept
from unteach.errors import ConfigError
from unteach.evaluate.prompts import (
    HELD_OUT,
    OTHER_NAMES,
    PROTOCOLS,
    SETS,
    UNLEARNING,
    Protocol,
    World,
    asks,
    protocol,
)

DOG = Concept(target="dog", anchor="cat")
NOTO = Concept(target="noto", anchor="mono", kind="style")
SMALL = Protocol(name="small", target=0, retained=4)
EVERYTHING = Protocol(name="all", target=10**6, retained=None)


def test_a_small_world_in_full() -> None:
    found = asks(WORLD, [DOG], Protocol(name="p", target=0, retained=0))
    assert [(a.prompt, a.object, a.style, a.set, a.word) for a in found] == [
        ("a twemoji dog", 0, 0, UNLEARNING, "dog"),
        ("a dog in noto style", 0, 1, UNLEARNING, "dog"),
        ("a mono dog", 0, 2, UNLEARNING, "dog"),
        ("the twemoji picture of a dog", 0, 0, HELD_OUT, "dog"),
        ("the noto picture of a dog", 0, 1, HELD_OUT, "dog"),
        ("the mono picture of a dog", 0, 2, HELD_OUT, "dog"),
        ("a twemoji puppy", 0, 0, OTHER_NAMES, "puppy"),
        ("a puppy in noto style", 0, 1, OTHER_NAMES, "puppy"),
        ("a mono puppy", 0, 2, OTHER_NAMES, "puppy"),
    ]


def test_a_set_ends_when_no_template_is_left() -> None:
    found = asks(WORLD, [NOTO], EVERYTHING)
    mine = Counter(a.set for a in found if a.style == 1)
    assert mine == {UNLEARNING: 3 * 2, HELD_OUT: 3, OTHER_NAMES: 2 * 2}  # the cat has no other name
    rest = Counter(a.set for a in found if a.style != 1)
    assert rest == {UNLEARNING: 6, HELD_OUT: 6, OTHER_NAMES: 4 + 0}


@pytest.mark.parametrize("retained", [60, 96])
def test_the_rest_is_balanced_and_differs_between_sets(retained: int) -> None:
    world = World.emoji()
    choice = Protocol(name="p", target=0, retained=retained)
    found = asks(world, [Concept(target="twemoji", anchor="noto", kind="style")], choice)
    rest = [a for a in found if a.style != 0]
    for name in SETS:
        mine = [a for a in rest if a.set == name]
        objects, styles = Counter(a.object for a in mine), Counter(a.style for a in mine)
        assert len(mine) == retained and len(objects) == 60 and len(styles) == 7
        assert max(objects.values()) - min(objects.values()) <= 1
        assert max(styles.values()) - min(styles.values()) <= 3  # one for each turn of the diagonal it touches
    assert len({(a.object, a.style) for a in rest}) == 3 * retained


@pytest.mark.parametrize("choice", ["demo", "grid"])
@pytest.mark.parametrize(
    "concept",
    [
        Concept(target="twemoji", anchor="openmoji", kind="style"),
        Concept(target="bomb", anchor="apple"),
        Concept(target="explosive", anchor="apple"),
    ],
    ids=lambda concept: concept.target,
)
def test_the_emoji_world(choice: str, concept: Concept) -> None:
    world = World.emoji()
    found = asks(world, [concept], PROTOCOLS[choice])
    domain, index = world.locate(concept)
    target = [a for a in found if (a.style if domain == "style" else a.object) == index]
    pairs = {(a.object, a.style) for a in target}
    assert len(pairs) == (60 if domain == "style" else 8)
    for name in SETS:
        assert len([a for a in target if a.set == name]) >= 32
    if choice == "grid":
        assert len({(a.object, a.style) for a in found if a.set == UNLEARNING}) == 480
    # outside the unlearning set means outside: nothing there may be trained on
    trained = {a.prompt for a in found if a.set == UNLEARNING}
    assert not trained & {a.prompt for a in found if a.set != UNLEARNING}
    if domain == "object":
        assert {a.word for a in target if a.set != OTHER_NAMES} == {concept.target}
        assert concept.target not in {a.word for a in target if a.set == OTHER_NAMES}
    assert len({(a.set, a.prompt) for a in found}) == len(found)
    assert found == asks(world, [concept], PROTOCOLS[choice])
    assert {a.prompt for a in found if a.set == HELD_OUT} <= {
        vocabulary.caption(t, name, s)
        for t in vocabulary.HELD_OUT_TEMPLATES
        for o in vocabulary.OBJECTS
        for name in o.names
        for s in vocabulary.STYLES
    }


def test_two_concepts_share_one_rest() -> None:
    found = asks(WORLD, [DOG, NOTO], SMALL)
    for name in SETS:
        rest = [a for a in found if a.set == name and a.object != 0 and a.style != 1]
        assert len(rest) == (2 if name == OTHER_NAMES else 4)
    assert len({(a.set, a.prompt) for a in found}) == len(found)


def test_names_of_the_concept_come_first() -> None:
    hound = Concept(target="dog", anchor="cat", names=("hound", "tyke"))
    found = asks(WORLD, [hound], EVERYTHING)
    words = {a.word for a in found if a.object == 0 and a.set == OTHER_NAMES}
    assert words == {"hound", "tyke"}


def test_what_is_not_of_the_world_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no style.*'notto'.*'noto'"):
        asks(WORLD, [Concept(target="notto", anchor="mono", kind="style")], SMALL)
    with pytest.raises(ConfigError, match=r"no object.*'pupy'.*'puppy'"):
        asks(WORLD, [Concept(target="pupy", anchor="cat")], SMALL)
    with pytest.raises(ConfigError, match="listed twice"):
        asks(WORLD, [DOG, Concept(target="puppy", anchor="cat")], SMALL)


def test_protocols_by_name() -> None:
    assert protocol("grid") is PROTOCOLS["grid"] and protocol(SMALL) is SMALL
    with pytest.raises(ConfigError, match=r"'gird'.*'grid'"):
        protocol("gird")
