"""Errors say what was wrong, what was found and what to do."""

import pytest

from unteach import errors
from unteach.errors import ConfigError, MissingExtraError, UnteachError

KINDS = [
    errors.ConfigError,
    errors.DataError,
    errors.ModelError,
    errors.CheckpointError,
    errors.NumericsError,
]


@pytest.mark.parametrize("kind", [UnteachError, *KINDS])
def test_message_has_all_three_parts_in_order(kind: type[UnteachError]) -> None:
    error = kind("the folder has no model", found="an empty folder", fix="give a diffusers folder")
    assert str(error) == "the folder has no model; found: an empty folder; to do: give a diffusers folder"
    assert (error.problem, error.found, error.fix) == (
        "the folder has no model",
        "an empty folder",
        "give a diffusers folder",
    )
    assert isinstance(error, UnteachError) and isinstance(error, Exception)


def test_parts_that_are_not_given_leave_no_trace() -> None:
    assert str(UnteachError("strength is negative")) == "strength is negative"
    assert (
        str(UnteachError("strength is negative", fix="use 0 or more")) == "strength is negative; to do: use 0 or more"
    )


@pytest.mark.parametrize("found", [0, False, "", []])
def test_found_is_shown_even_when_it_is_falsy(found: object) -> None:
    assert str(UnteachError("wrong", found=found)) == f"wrong; found: {found}"


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_apart(kind: type[UnteachError]) -> None:
    others = [other for other in KINDS if other is not kind]
    assert not any(issubclass(kind, other) for other in others)


def test_many_lists_every_mistake_with_its_number() -> None:
    error = ConfigError.many(["no target", "no anchor", "unknown key 'kindd'"], where="concepts.yaml")
    assert isinstance(error, ConfigError)
    assert str(error).splitlines() == [
        "concepts.yaml has 3 mistakes:",
        "  1. no target",
        "  2. no anchor",
        "  3. unknown key 'kindd'",
    ]


def test_many_with_one_mistake_is_one_line() -> None:
    assert str(ConfigError.many(["no target"])) == "the configuration: no target"


def test_missing_extra_names_its_install_line() -> None:
    error = MissingExtraError("peft", "lora")
    assert "'peft'" in str(error)
    assert str(error).endswith("to do: pip install 'unteach[lora]'")
    assert isinstance(error, UnteachError)


@pytest.mark.parametrize("extra", ["lora", "build", "dev"])
def test_the_extras_exist(extra: str) -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"][extra]


def test_m6_what_was_found_and_each_line_are_cut_to_what_a_person_reads() -> None:
    assert errors.shorten("x" * 600) == "x" * 600
    text = errors.shorten("a" * 10_000 + "z" * 10_000)
    assert len(text) <= 600 and text.startswith("aaa") and " … " in text and text.endswith("zzz")
    said = str(ConfigError("y" * 50_000, found="x" * 50_000, fix="shorten it"))
    assert len(said) < 1300 and said.endswith("; to do: shorten it")
    many = str(ConfigError.many([f"{i} " + "y" * 50_000 for i in range(1000)]))
    assert len(many) < 13_000 and "has 1000 mistakes" in many and many.endswith("and 980 more")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("é → 日本 😀", "é → 日本 😀"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\rb\x08", "a\\rb\\x08"),
        ("\x9b31m é", "\\x9b31m é"),
        ("file\u202egnp.exe", "file\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_l8_what_a_terminal_would_act_on_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert errors.printable(text) == shown
