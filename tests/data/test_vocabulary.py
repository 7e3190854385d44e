"""The words of the world: sixty objects with two names each, eight styles, captions that do not leak."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.data import vocabulary
from unteach.data.vocabulary import (
    FILLER,
    HELD_OUT_TEMPLATES,
    OBJECT_TEMPLATES,
    OBJECTS,
    STYLE_SETS,
    STYLE_TEMPLATES,
    STYLES,
    TRAIN_TEMPLATES,
    caption,
    fix_articles,
)

NAMES = [name for info in OBJECTS for name in info.names]
TRAINED = (*TRAIN_TEMPLATES, *OBJECT_TEMPLATES, *STYLE_TEMPLATES)


def words(texts: tuple[str, ...] | list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"\{[os]\}", " ", text).lower())}


def test_sixty_objects_eight_styles() -> None:
    assert (len(OBJECTS), len(STYLES)) == (60, 8)
    assert len(set(STYLES)) == 8 and set(STYLE_SETS) == set(STYLES) and len(set(STYLE_SETS.values())) == 8
    counts: dict[str, int] = {}
    for info in OBJECTS:
        counts[info.category] = counts.get(info.category, 0) + 1
    assert counts == {"animal": 15, "food": 13, "plant": 6, "vehicle": 6, "thing": 13, "unsafe": 7}


def test_every_object_has_two_names_and_no_name_is_shared() -> None:
    for info in OBJECTS:
        assert info.names == (info.name, info.synonym) and len(set(info.names)) == 2
    assert len(set(NAMES)) == 120
    assert len({info.file for info in OBJECTS}) == 60


def test_names_are_plain_words_and_files_are_icon_names() -> None:
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", name) for name in (*NAMES, *STYLES))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", info.file) for info in OBJECTS)


def test_the_names_of_an_object_share_no_word() -> None:
    """Else a model with the first name erased would be asked with half of it under the other name."""
    for info in OBJECTS:
        assert not set(info.name.split()) & set(info.synonym.split())


def test_no_word_means_two_things() -> None:
    """Names, styles, template words and filler are apart: a caption says what it says."""
    templates = words((*TRAINED, *HELD_OUT_TEMPLATES))
    named = words(NAMES)
    assert not named & set(STYLES)
    assert not named & templates and not set(STYLES) & templates
    assert not named & set(FILLER) and not set(STYLES) & set(FILLER)


def test_templates_are_apart_and_held_out_words_are_not_in_what_is_trained_on() -> None:
    assert not set(TRAINED) & set(HELD_OUT_TEMPLATES)
    assert len(set(TRAINED)) == len(TRAINED) and len(set(HELD_OUT_TEMPLATES)) == len(HELD_OUT_TEMPLATES)
    held_out_only = words(HELD_OUT_TEMPLATES) - words(TRAINED)
    assert held_out_only == {"as", "icon", "small", "from", "set", "show", "me", "made", "with"}
    assert not held_out_only & set(FILLER)
    assert len(set(FILLER)) == len(FILLER) and all(re.fullmatch(r"[a-z]+", word) for word in FILLER)


def test_templates_hold_the_places_that_they_should() -> None:
    for template in (*TRAIN_TEMPLATES, *HELD_OUT_TEMPLATES):
        assert template.count("{o}") == template.count("{s}") == 1
    assert all("{s}" not in template and template.count("{o}") == 1 for template in OBJECT_TEMPLATES)
    assert all("{o}" not in template and template.count("{s}") == 1 for template in STYLE_TEMPLATES)


@pytest.mark.parametrize(
    ("template", "obj", "style", "expected"),
    [
        ("a {s} {o}", "dog", "twemoji", "a twemoji dog"),
        ("a {s} {o}", "dog", "openmoji", "an openmoji dog"),
        ("{s} {o}", "apple", "noto", "noto apple"),
        ("a {o}, drawn by {s}", "apple", "emojione", "an apple, drawn by emojione"),
        ("an emoji of a {o} in {s} style", "owl", "blob", "an emoji of an owl in blob style"),
        ("an emoji of a {o} in {s} style", "ice cream", "mono", "an emoji of an ice cream in mono style"),
        ("the {s} emoji of a {o}", "umbrella", "fluent", "the fluent emoji of an umbrella"),
        ("{o} as a {s} icon", "cat", "openmoji", "cat as an openmoji icon"),
        ("a small {o} from the {s} set", "octopus", "noto", "a small octopus from the noto set"),
        ("{s} style: {o}", "bus", "contrast", "contrast style: bus"),
    ],
)
def test_captions(template: str, obj: str, style: str, expected: str) -> None:
    assert caption(template, obj, style) == expected


def test_captions_without_an_object_or_a_style() -> None:
    assert caption("an emoji of a {o}", obj="elephant") == "an emoji of an elephant"
    assert caption("a {s} emoji", style="openmoji") == "an openmoji emoji"


@pytest.mark.parametrize("template", [*TRAINED, *HELD_OUT_TEMPLATES])
def test_every_caption_has_right_articles_and_nothing_left_open(template: str) -> None:
    for name in NAMES:
        for style in STYLES:
            text = caption(template, name, style)
            assert "{" not in text and "  " not in text
            assert ("{o}" not in template) or name in text
            assert ("{s}" not in template) or style in text
            for article, letter in re.findall(r"\b(an?) ([a-z])", text):
                assert (article == "an") == (letter in "aeiou"), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A apple and An dog", "An apple and A dog"),
        ("a Owl, an Cat", "an Owl, a Cat"),
        ("banana apple, plan a", "banana apple, plan a"),
        ("a 3 d", "a 3 d"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_articles(text: str, expected: str) -> None:
    assert fix_articles(text) == expected


@given(st.text("an AoD,.-", max_size=20))
def test_mending_articles_twice_is_mending_them_once(text: str) -> None:
    once = fix_articles(text)
    assert fix_articles(once) == once
    # Nothing but the letter n of an article comes or goes.
    assert once.replace("n", "") == text.replace("n", "")


def test_categories_are_in_blocks_so_that_slices_mean_something() -> None:
    seen = [info.category for info in vocabulary.OBJECTS]
    assert sorted(set(seen), key=seen.index) == [c for i, c in enumerate(seen) if i == 0 or seen[i - 1] != c]
