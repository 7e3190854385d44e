"""Frozen configurations that check themselves as a whole: types, bounds, contradictions, all mistakes at once."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from unteach.core.convert import Wrong, convert
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
        values = dataclasses.asdict(self)
        return {self.kind: self.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}

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
                value = _value(value, hints[field.name])
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


def _value(value: Any, kind: Any) -> Any:
    """The value in its declared type; ValueError with what it must be."""
    inner = next(iter(get_args(kind)), None) if get_origin(kind) is tuple else None
    if float in (kind, *get_args(kind)):
        # PyYAML reads 2e-5 (no dot) as text, so text that is a number is taken as one.
        value = [_number(item) for item in value] if isinstance(value, list | tuple) else _number(value)
    try:
        made = convert(value, kind)
    except Wrong as error:
        words = error.mistakes[0].removeprefix("must be ").partition(", found ")[0]
        raise ValueError(_LISTS.get(inner, _LISTS[str]) if inner else words) from error
    if inner is str and "" in made:
        raise ValueError(_LISTS[str])
    return made


def _number(value: object) -> object:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


_LISTS = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}
