"""Registering checks the name; an unknown name lists the near misses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.core.registry import Registry, near
from unteach.errors import ConfigError


class Doco:
    pass


class Esd:
    pass


@pytest.fixture
def registry() -> Registry[type]:
    registry = Registry[type]("method")
    registry.add("esd")(Esd)
    registry.add("doco")(Doco)
    return registry


def test_what_was_added_is_found(registry: Registry[type]) -> None:
    assert registry["doco"] is Doco and registry["esd"] is Esd
    assert "doco" in registry and "uce" not in registry and None not in registry
    assert len(registry) == 2


def test_names_and_iteration_are_sorted(registry: Registry[type]) -> None:
    assert registry.names() == list(registry) == ["doco", "esd"]


def test_the_decorator_returns_the_same_object() -> None:
    registry = Registry[type]("method")

    @registry.add("toy-1.0_x")
    class Toy:
        pass

    assert registry["toy-1.0_x"] is Toy and isinstance(Toy, type)


def test_names_are_a_copy(registry: Registry[type]) -> None:
    registry.names().clear()
    assert registry.names() == ["doco", "esd"]


@pytest.mark.parametrize("name", ["docco", "DoCo", "dco"])
def test_unknown_name_lists_the_near_miss(registry: Registry[type], name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        registry[name]
    assert str(raised.value) == f"no method is called '{name}'; to do: did you mean 'doco'?"


def test_unknown_name_that_is_near_to_none_lists_all(registry: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"known: doco, esd$"):
        registry["quite-different"]


def test_empty_registry_says_so() -> None:
    with pytest.raises(ConfigError, match="no judge is called 'x'; to do: known: none"):
        Registry[int]("judge")["x"]


@pytest.mark.parametrize("name", ["", "Doco", "two words", "-x", ".x", "doco!", "dôco", "doco\n"])
def test_bad_names_are_refused_and_leave_nothing(registry: Registry[type], name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name for a method"):
        registry.add(name)(Doco)
    assert registry.names() == ["doco", "esd"]


def test_taken_name_is_refused_and_the_first_stays(registry: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"'doco' is registered already; found: .*Doco"):
        registry.add("doco")(Esd)
    assert registry["doco"] is Doco


def test_falsy_things_can_be_registered() -> None:
    registry = Registry[int]("number")
    registry.add("zero")(0)
    assert registry["zero"] == 0 and "zero" in registry


def test_near_gives_at_most_so_many_best_first() -> None:
    names = ["erase", "eraser", "erases", "erased", "guard"]
    assert near("erase", names, most=2).startswith("did you mean 'erase' or 'erase")
    assert near("erase", names, most=2).count("'") == 4
    assert near("erase", names).count("'") == 6


@given(st.sets(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True), max_size=6), st.text(max_size=8))
def test_any_set_of_names(names: set[str], asked: str) -> None:
    registry = Registry[str]("thing")
    for name in names:
        registry.add(name)(name.upper())
    assert registry.names() == sorted(names)
    if asked in names:
        assert registry[asked] == asked.upper()
    else:
        with pytest.raises(ConfigError, match="no thing is called"):
            registry[asked]


def test_methods_have_presets_and_say_what_they_are() -> None:
    from dataclasses import dataclass
    from typing import ClassVar

    from unteach.core.registry import Methods
    from unteach.core.settings import Settings, setting

    methods: Methods[Settings] = Methods("method")

    @methods.add("walk")
    @dataclass(frozen=True, kw_only=True)
    class Walk(Settings):
        """Goes ``steps`` steps.

        More.
        """

        name: ClassVar[str] = "walk"
        steps: int = setting(3, low=1)

    methods.preset("stroll", "walk", steps=9)
    assert methods.make("stroll") == Walk(steps=9) and methods.make("stroll", steps=2) == Walk(steps=2)
    assert methods.describe("walk") == "Goes steps steps." and methods.describe("stroll") == "walk steps=9"
    for name, of in (("walk", "walk"), ("stroll", "walk"), ("run", "fly")):
        with pytest.raises(ConfigError):
            methods.preset(name, of)
    with pytest.raises(ConfigError, match="did you mean 'stroll'"):
        methods.make("strol")
