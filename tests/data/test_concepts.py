"""Concepts: pairs, articles, captions, files in and out, and errors that list everything at once."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.data.concepts import TEMPLATES, Concept, ConceptSet, PromptPair, article, fill, mentions, swap
from unteach.errors import ConfigError, DataError

WORDS = st.text("abcdefghijklmnop", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("word", "want"),
    [
        ("apple", "an"),
        ("openmoji", "an"),
        ("twemoji", "a"),
        ("unicorn", "a"),
        ("unimportant dog", "an"),
        ("umbrella", "an"),
        ("hour", "an"),
        ("house", "a"),
        ("European", "a"),
        ("one-eyed cat", "a"),
        ("onion", "an"),
        ("8-bit", "an"),
        ("Van Gogh", "a"),
    ],
)
def test_article_goes_by_sound(word, want):
    assert article(word) == want


@pytest.mark.parametrize(
    ("template", "name", "want"),
    [
        ("a {} dog", "openmoji", "an openmoji dog"),
        ("an {} dog", "twemoji", "a twemoji dog"),
        ("An {}", "cat", "A cat"),
        ("a {}", "Apple", "an Apple"),
        ("{} and a {}", "owl", "owl and an owl"),
        (
            "a hour before a {}",
            "owl",
            "a hour before an owl",
        ),  # only the article directly before the name is mended
        ("banana {}", "owl", "banana owl"),
        ("the {}, a {}", "owl", "the owl, an owl"),
    ],
)
def test_fill_mends_the_article_before_the_name(template, name, want):
    assert fill(template, name) == want


def test_swap_is_whole_word_and_ignores_case():
    assert swap("Cat and a cat, not cats or scat", "cat", "owl") == "owl and an owl, not cats or scat"
    assert swap("an  Ice\tCream", "ice cream", "pie") == "a  pie"
    assert swap("a bird", "cat", "owl") == "a bird"
    assert mentions("My CAT.", "cat") and not mentions("cats", "cat")
    assert swap("a c++ book", "c++", "ocaml") == "an ocaml book"  # names with symbols are plain text


@given(WORDS, WORDS)
def test_swap_there_and_back(anchor, target):
    caption = f"see the {anchor} 1"
    assert swap(swap(caption, anchor, target), target, anchor) == caption


def test_pairs_differ_in_the_name_alone():
    concept = Concept(target="twemoji", anchor="openmoji", kind="style", prompts=("a {} dog", "{} owl", "{} owl"))
    assert concept.pairs() == [
        PromptPair("an openmoji dog", "a twemoji dog"),
        PromptPair("openmoji owl", "twemoji owl"),
    ]


@pytest.mark.parametrize("kind", ["style", "object"])
def test_default_templates_by_kind(kind):
    concept = Concept(target="bomb", anchor="apple", kind=kind)
    assert [pair.target for pair in concept.pairs()] == [fill(t, "bomb") for t in TEMPLATES[kind]]


def test_captions_take_the_place_of_templates_and_no_ops_are_counted(caplog):
    captions = ("an apple on a table", "The Apple.", "a pear", "apples", "an apple beside a bomb")
    concept = Concept(target="bomb", anchor="apple", captions=captions)
    with caplog.at_level(logging.WARNING):
        pairs = concept.pairs()
    assert pairs == [
        PromptPair("an apple on a table", "a bomb on a table"),
        PromptPair("The Apple.", "The bomb."),
    ]
    assert list(concept.dropped().values()) == [2, 1]
    assert "2" in caplog.text and "no-op" in caplog.text


def test_captions_add_to_given_templates():
    concept = Concept(target="bomb", anchor="apple", prompts=("a {}",), captions=("one apple",))
    assert [pair.target for pair in concept.pairs()] == ["a bomb", "one bomb"]


def test_captions_without_the_anchor_are_an_error_with_counts():
    concept = Concept(target="bomb", anchor="apple", captions=("a pear", "a bomb and an apple"))
    with pytest.raises(DataError, match=r"none of the 2 captions.*1 with no anchor.*1 with the target"):
        concept.pairs()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": ""}, "target is empty"),
        ({"target": "  "}, "target is empty"),
        ({"target": None}, "target is missing"),
        ({"anchor": ""}, "anchor is empty"),
        ({"anchor": ""}, r"such as 'art' or 'a person' .*--set guide="),
        ({"target": "cat, dog, lion"}, "target 'cat, dog, lion' looks like several names; write one concept for each"),
        (
            {"target": "van gogh; monet"},
            "looks like several names.*--concepts, or, if it is one name, .* without the ';'",
        ),
        ({"anchor": "art; a person"}, "anchor 'art; a person' looks like several names"),
        ({"target": "\ud800x"}, "target holds half a character"),
        ({"prompts": ("a {}", "\ud800 {}")}, r"prompts\[1\] holds half a character"),
        ({"retain": [["x" * 999] * 999]}, r"^.{0,400}$"),
        ({"target": "Apple"}, "target and anchor are both 'apple'"),
        ({"target": False}, "target must be text, found False"),
        ({"kind": "person"}, "kind must be 'style' or 'object', found 'person'"),
        ({"prompts": "a {}"}, "prompts must be a list of texts, found 'a {}'"),
        ({"prompts": ("a dog",)}, "'a dog' must contain '{}'"),
        ({"prompts": ("a {} {o}",)}, "no other braces"),
        ({"prompts": ("",)}, r"prompts\[0\] is empty"),
        ({"retain": (3,)}, r"retain\[0\] must be text, found 3"),
        ({"names": ("Bomb",)}, "names: 'Bomb' is the target"),
        ({"names": ("apple",)}, "names: 'apple' is the anchor"),
        ({"retain": ("BOMB",)}, "retain: 'BOMB' is to be erased"),
        ({"prompts": ("a {}",), "retain": ("a bomb",)}, "retain: 'a bomb' is to be erased"),
    ],
)
def test_each_mistake_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        Concept(**{"target": "bomb", "anchor": "apple", **fields})


def test_an_anchor_may_be_a_description_and_other_names_may_have_commas():
    concept = Concept(target="davis", anchor="a person, dressed", names=("Davis, Jr.",))
    assert all("a person, dressed" in pair.anchor for pair in concept.pairs())


def test_messages_are_short_whatever_the_file_holds():
    records = [{"target": "a" * 20_000, "anchor": "b", "prompts": ["[" * 20_000], "c" * 20_000: 1}] * 100
    with pytest.raises(ConfigError, match=r"(?s)100 mistakes.*20\. concept.*and 80 more") as caught:
        ConceptSet.from_dicts(records)
    assert len(str(caught.value)) < 22 * 620


def test_lists_become_tuples_and_records_round_trip():
    concept = Concept(target="bomb", anchor="apple", names=["explosive"], retain=["a dog"])
    assert concept.names == ("explosive",) and hash(concept) == hash(ConceptSet.of(concept.to_dict())[0])
    several = ConceptSet.of([concept, {"target": "gun", "anchor": "pen", "kind": "object"}])
    assert ConceptSet.from_dicts(several.to_dicts()) == several
    assert ConceptSet.of(several) is several


def test_all_mistakes_of_all_concepts_at_once():
    records = [
        {"target": "", "anchr": "x"},
        {"target": "a", "anchor": "a"},
        "bomb",
        {"target": "b", "anchor": "c"},
    ]
    with pytest.raises(ConfigError) as error:
        ConceptSet.from_dicts(records)
    text = str(error.value)
    assert "5 mistakes" in text
    for part in (
        "concept 1: unknown key 'anchr' (did you mean 'anchor'?)",
        "concept 1: target is empty",
        "concept 1: anchor is missing",
        "concept 2 (a): target and anchor are both 'a'",
        "concept 3: must be a mapping",
    ):
        assert part in text


@pytest.mark.parametrize("nothing", [(), [], ConceptSet.__mro__[1]()])
def test_empty_set(nothing):
    with pytest.raises(ConfigError, match="the set of concepts is empty"):
        ConceptSet.of(nothing)


def test_contradictions_inside_a_set():
    a, b = Concept(target="a", anchor="b"), Concept(target="b", anchor="c")
    with pytest.raises(ConfigError, match="the anchor of 'a', 'b', is to be erased"):
        ConceptSet([a, b])
    with pytest.raises(ConfigError, match="'a' is given twice"):
        ConceptSet([a, a])
    c = Concept(target="x", anchor="y", retain=("b", "a dog"))
    with pytest.raises(ConfigError, match="retain of 'x': 'b' is to be erased"):
        ConceptSet([b, c])


def test_a_set_interleaves_pairs_and_gathers_what_to_keep():
    a = Concept(target="a1", anchor="a2", prompts=("{}", "the {}"), retain=("dog", "cat"))
    b = Concept(target="b1", anchor="b2", prompts=("{}",), retain=("cat", "owl"))
    both = ConceptSet([a, b])
    assert [pair.target for pair in both.pairs()] == ["a1", "b1", "the a1", "b1"]
    assert both.retain() == ["dog", "cat", "owl"]
    assert ConceptSet([Concept(target="t", anchor="s", prompts=("a {}",))]).retain() == ["a s"]


YAML = """
concepts:
  - target: twemoji
    anchor: openmoji
    kind: style
    prompts: ["a {} dog", "{} owl"]
  - {target: bomb, anchor: apple, names: [explosive], retain: [a dog, a pear]}
"""
CSV = """target,anchor,kind,prompts,names,retain
twemoji,openmoji,style,a {} dog; {} owl,,
bomb,apple,,,explosive,a dog;a pear
"""


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_yaml_and_csv_say_the_same(tmp_path, bom):
    (tmp_path / "c.yaml").write_text(YAML, encoding="utf-8")
    (tmp_path / "c.csv").write_text(bom + CSV, encoding="utf-8")
    read = ConceptSet.load(tmp_path / "c.yaml")
    assert read == ConceptSet.load(tmp_path / "c.csv")
    assert read[0].prompts == ("a {} dog", "{} owl") and read[1].retain == ("a dog", "a pear")


def test_yaml_may_be_a_bare_list_or_one_concept(tmp_path):
    for text in ("- {target: a, anchor: b}", "{target: a, anchor: b}"):
        (tmp_path / "c.yml").write_text(text)
        assert ConceptSet.load(tmp_path / "c.yml") == ConceptSet([Concept(target="a", anchor="b")])


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("c.yaml", "- {target: a, anchor: [", DataError, "not valid YAML"),
        ("c.yaml", "just text", ConfigError, "no list of concepts"),
        ("c.yaml", "{concepts: [], concept: 3}", ConfigError, "unknown key 'concept'"),
        ("c.yaml", "[]", ConfigError, "the set of concepts is empty"),
        ("c.yaml", "- {target: no, anchor: b}", ConfigError, "target must be text, found False"),
        ("c.csv", "target,ancor\na,b\n", ConfigError, r"unknown column 'ancor' \(did you mean 'anchor'"),
        ("c.csv", "target,anchor\na,b,c\n", ConfigError, "line 2 has more cells"),
        ("c.csv", "target,anchor\na,\n", ConfigError, "anchor is missing"),
        ("c.csv", "", ConfigError, "empty"),
        ("c.json", "[]", ConfigError, "found: .json"),
    ],
)
def test_bad_files(tmp_path, name, text, kind, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=message):
        ConceptSet.load(tmp_path / name)


def test_missing_or_binary_file(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        ConceptSet.load(tmp_path / "none.yaml")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        ConceptSet.load(tmp_path / "c.csv")
