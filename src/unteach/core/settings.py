"""Frozen configurations that check themselves as a whole: types, bounds, contradictions, all mistakes at once."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import cattrs

from unteach.core.registry import Registry, near
from unteach.errors import ConfigError

__all__ = ["Settings", "make", "setting"]

log = logging.getLogger(__name__)


def setting(default: Any, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Any:
    """A field of :class:`Settings` with its bounds: ``low <= value <= high`` and ``value > above``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every configuration with a name: immutable, checked as a whole when it is made.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    kind: ClassVar[str] = "configuration"
    """What messages call it: "method", "plug-in"."""
    name: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    """Earlier name of a setting to the present one: it still works in :meth:`build`, with a word of warning."""

    def __post_init__(self) -> None:
        self._check([])

    def mistakes(self) -> list[str]:
        """Contradictions between settings, one sentence each; called when each setting alone is right."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The name (under the key that :attr:`kind` gives) and every setting, as plain data."""
        return {self.kind: self.name, **_converter.unstructure(self)}

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these settings and defaults; unknown and wrong ones are reported together."""
        fields, values = {field.name: field.default for field in dataclasses.fields(cls)}, dict(values)
        for old in cls.renamed.keys() & values.keys():
            if cls.renamed[old] not in values:
                _warn_renamed(cls.kind, old, cls.renamed[old])
                values[cls.renamed[old]] = values.pop(old)
        unknown = [f"unknown setting '{key}' ({near(str(key), fields)})" for key in values if key not in fields]
        made = object.__new__(cls)
        for name, default in fields.items():
            object.__setattr__(made, name, values.get(name, default))
        made._check(unknown)
        return made

    def _check(self, problems: list[str]) -> None:
        """Bring settings to their declared types, check bounds and contradictions, raise for all mistakes."""
        hints, found = get_type_hints(type(self)), []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                value = _converter.structure(value, hints[field.name])
            except ValueError as error:
                found.append(f"{field.name} must be {error}, found {value!r}")
                continue
            object.__setattr__(self, field.name, value)
            found += _outside(field.name, value, field.metadata)
        if not found:
            found = self.mistakes()
        if problems + found:
            raise ConfigError.many(problems + found, where=f"the {self.kind} '{self.name}'")


@functools.cache  # once a process
def _warn_renamed(kind: str, old: str, new: str) -> None:
    log.warning("'%s' of a %s is called '%s' now; the old name goes with the next version", old, kind, new)


S = TypeVar("S", bound=Settings)


def make(
    kind: str,
    known: Registry[type[S]],
    presets: Registry[tuple[str, Mapping[str, Any]]],
    name: object,
    settings: Mapping[str, Any],
) -> S:
    """The configuration or preset of this name, with ``settings`` laid over its own.

    Raises:
        ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
    """
    if isinstance(name, str) and name in presets:
        base, overrides = presets[name]
        return known[base].build({**overrides, **settings})
    if isinstance(name, str) and name in known:
        return known[name].build(settings)
    raise ConfigError(f"no {kind} or preset is called {name!r}", fix=near(str(name), [*known, *presets]))


def _outside(name: str, value: Any, bounds: Mapping[str, float]) -> list[str]:
    if not bounds or value is None:
        return []
    if value < bounds["low"]:
        return [f"{name} must be at least {bounds['low']:g}, found {value!r}"]
    if value > bounds["high"]:
        return [f"{name} must be at most {bounds['high']:g}, found {value!r}"]
    return [f"{name} must be above {bounds['above']:g}, found {value!r}"] if value <= bounds["above"] else []


def _float(value: Any, _: object) -> float:
    # PyYAML reads 2e-5 (no dot) as text, so text that is a number is taken as one.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError("a finite number")


def _int(value: Any, _: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("a whole number")


def _bool(value: Any, _: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _str(value: Any, _: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("text")


def _items(value: Any, kind: object) -> tuple[Any, ...]:
    inner = get_args(kind)[0]
    hook = {int: _int, float: _float}.get(inner)
    if isinstance(value, list | tuple):
        if hook is None and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        with contextlib.suppress(ValueError):
            return tuple(hook(item, inner) for item in value) if hook is not None else _refuse()
    raise ValueError({int: "a list of whole numbers", float: "a list of numbers"}.get(inner, "a list of texts"))


def _refuse() -> tuple[Any, ...]:
    raise ValueError


def _literal(value: Any, kind: object) -> Any:
    if isinstance(value, str) and value in get_args(kind):
        return value
    raise ValueError("one of " + ", ".join(map(repr, get_args(kind))))


def _origin(kind: Any) -> Any:
    return get_origin(kind)


_converter = cattrs.Converter(detailed_validation=False, unstruct_collection_overrides={tuple: list})
for _kind, _hook in ((float, _float), (int, _int), (bool, _bool), (str, _str)):
    _converter.register_structure_hook(_kind, _hook)
_converter.register_structure_hook_func(lambda kind: _origin(kind) is tuple, _items)
_converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _literal)
