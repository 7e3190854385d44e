"""Concepts of the built-in world, filled in."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from unteach.canvas.concepts import RETAIN, anchor_of, complete, concept, find
from unteach.data.concepts import Concept, ConceptSet, fill, mentions
from unteach.data.vocabulary import HELD_OUT_TEMPLATES, OBJECTS, STYLES, TRAIN_TEMPLATES, caption
from unteach.errors import ConfigError

ALL = [*((style, "style") for style in STYLES), *((info.name, "object") for info in OBJECTS)]


@pytest.mark.parametrize(("target", "kind"), ALL)
def test_every_style_and_object_can_be_erased(target: str, kind: str) -> None:
    made = concept(target)
    assert made.kind == kind and made.anchor != target and ConceptSet.of(made)[0] == made
    assert made.anchor in STYLES if kind == "style" else find(made.anchor) is not None
    assert len(made.retain) == len(set(made.retain)) == RETAIN
    assert not any(mentions(prompt, name) for prompt in made.retain for name in (target, *made.names))
    assert made == concept(target, kind=kind)


def test_prompts_are_the_train_captions_of_the_target_and_nothing_else() -> None:
    style = {fill(prompt, "twemoji") for prompt in concept("twemoji").prompts}
    assert style == {caption(t, o.name, "twemoji") for t in TRAIN_TEMPLATES for o in OBJECTS}
    thing = {fill(prompt, "bomb") for prompt in concept("bomb").prompts}
    assert thing == {caption(t, "bomb", s) for t in TRAIN_TEMPLATES for s in STYLES}
    held_out = {caption(t, o.name, s) for t in HELD_OUT_TEMPLATES for o in OBJECTS for s in STYLES}
    other_names = {o.synonym for o in OBJECTS}
    for made in (concept("twemoji"), concept("bomb")):
        used = [*made.retain, *(pair.target for pair in made.pairs()), *(pair.anchor for pair in made.pairs())]
        assert held_out.isdisjoint(used)
        assert not any(mentions(text, name) for text in used for name in other_names)


def test_articles_fit_both_names() -> None:
    pair = next(p for p in concept("twemoji", "openmoji").pairs() if p.target == "a twemoji dog")
    assert pair.anchor == "an openmoji dog"
    pair = next(p for p in concept("bomb", "umbrella").pairs() if p.target == "a bomb in the style of noto")
    assert pair.anchor == "an umbrella in the style of noto"
    assert "an apple, drawn by {}" in concept("twemoji").prompts


def test_each_beginning_of_the_prompts_is_spread() -> None:
    first = [fill(prompt, "STYLE") for prompt in concept("noto").prompts[:60]]
    assert sum(any(mentions(text, info.name) for text in first) for info in OBJECTS) == 60
    used = Counter(
        template for text in first for template in TRAIN_TEMPLATES if text in _captions_of(template, style="STYLE")
    )
    assert len(used) == len(TRAIN_TEMPLATES) and max(used.values()) - min(used.values()) <= 2


def _captions_of(template: str, style: str) -> set[str]:
    return {caption(template, info.name, style) for info in OBJECTS}


def test_prompts_to_keep_are_spread_over_objects_and_all_other_styles() -> None:
    for target in ("twemoji", "bomb"):
        kept = concept(target).retain
        styles = Counter(style for style in STYLES for text in kept if mentions(text, style))
        objects = Counter(info.name for info in OBJECTS for text in kept if mentions(text, info.name))
        assert set(styles) == set(STYLES) - {target}
        assert set(objects) == {info.name for info in OBJECTS} - {target}
        assert max(styles.values()) <= 1.3 * min(styles.values()) and min(objects.values()) >= 3


def test_either_name_of_an_object_will_do_and_the_other_one_is_judged() -> None:
    assert concept("bomb").names == ("explosive",) and concept("explosive").names == ("bomb",)
    assert concept("explosive").anchor == concept("bomb").anchor
    assert not any(mentions(text, "bomb") for text in concept("explosive").retain)
    assert concept("bomb", anchor="explosive").names == ()


def test_other_targets_are_not_kept() -> None:
    kept = concept("twemoji", without=("bomb", "noto")).retain
    assert not any(mentions(text, name) for text in kept for name in ("bomb", "noto", "twemoji"))


def test_default_anchors() -> None:
    assert anchor_of("dog", "object") == "cat" and anchor_of("bomb", "object") == "balloon"
    assert anchor_of("twemoji", "style") == "openmoji"
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        anchor_of("dogg", "object")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "twemojy"}, "the target 'twemojy' is no style or object.*did you mean 'twemoji'"),
        ({"target": "dog", "kind": "style"}, "'dog' is no style of EmojiCanvas but of the kind object.*say so"),
        ({"target": "noto", "kind": "object"}, "'noto' is no object of EmojiCanvas but of the kind style"),
        ({"target": "noto", "anchor": "dog"}, "the anchor 'dog' is no style"),
        ({"target": "bomb", "anchor": "baloon"}, "the anchor 'baloon' is no object.*did you mean 'balloon'"),
    ],
)
def test_what_this_world_does_not_have_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        concept(**arguments)


def test_complete_fills_in_what_is_missing_and_keeps_the_rest() -> None:
    bomb, style = complete([{"target": "bomb"}, {"target": "twemoji", "anchor": "noto", "retain": ["a mono dog"]}])
    assert bomb["anchor"] == "balloon" and bomb["names"] == ["explosive"]
    assert not any(mentions(text, "twemoji") for text in bomb["retain"])
    assert style["retain"] == ["a mono dog"] and style["anchor"] == "noto" and style["kind"] == "style"
    assert len(ConceptSet.from_dicts([bomb, style])) == 2

    own = {"target": "dog", "anchor": "cat", "captions": ["a cat"], "names": []}
    (filled,) = complete([own])
    assert "prompts" not in filled and filled["names"] == [] and len(filled["retain"]) == RETAIN
    assert Concept(**filled).pairs()[0].target == "a dog"

    (whole,) = complete([concept("bomb").to_dict()])
    assert whole == concept("bomb").to_dict()


@pytest.mark.parametrize(
    "record",
    [
        {"target": "zebra", "anchor": "horse", "prompts": ["a {}"]},
        {"target": "", "anchor": "dog"},
        {"target": 3, "anchor": "dog"},
        {"anchor": "dog"},
        {"target": "dog", "anchor": "  "},
        {"target": "dog", "kind": "animal"},
        "dog",
    ],
)
def test_complete_leaves_alone_what_is_not_for_it(record: Any) -> None:
    assert complete([record]) == [record]


def test_complete_names_every_mistake() -> None:
    records = [{"target": "bom"}, {"target": "dog"}, {"target": "noto", "anchor": "zzz"}]
    with pytest.raises(ConfigError, match=r"has 2 mistakes(.|\n)*concept 1.*'bom'(.|\n)*concept 3.*'zzz'"):
        complete(records)
    (free,) = complete([{"target": "noto", "anchor": "crayon", "prompts": ["a {} dog"]}])
    assert free["anchor"] == "crayon" and free["kind"] == "style"


def test_what_it_makes_is_the_same_every_time() -> None:
    assert concept("bomb") == concept("bomb")
    assert dataclasses.replace(concept("bomb"), retain=()) == dataclasses.replace(
        concept("bomb", without=("noto",)), retain=()
    )
