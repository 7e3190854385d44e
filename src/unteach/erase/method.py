"""What every method of erasing is: a frozen, checked configuration with a name, and ``run``.

A method is one file: its configuration next to its maths, and one line that registers it.
"""

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import cattrs
from torch import nn

from unteach.core.masks import select
from unteach.core.registry import Registry, near
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.erase.job import Job
from unteach.errors import ConfigError, ModelError

methods: Registry[type["Method"]] = Registry("method")
"""Every method of erasing, by name."""

presets: Registry[tuple[str, Mapping[str, Any]]] = Registry("preset")
"""Named settings: preset name to (method name, the settings that differ from the method's defaults)."""


def setting(default: Any, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Any:
    """A field of a method's configuration with its bounds: ``low <= value <= high`` and ``value > above``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above})


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method of erasing and its settings; immutable, checked as a whole when it is made.

    Args:
        strength: factor on the finished difference of weights; 1 is the method itself, 0 changes nothing.
        train: which tensors move, as regular expressions on whole parameter names; none given means the key
            and value projections of cross-attention.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    name: ClassVar[str]

    strength: float = setting(1.0)
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check([])

    @abstractmethod
    def run(self, job: Job) -> WeightDelta:
        """Erase ``job.concepts`` from ``job.model`` and return the difference; the model stays as it was."""

    def mistakes(self) -> list[str]:
        """Contradictions between settings, one sentence each; called when each setting alone is right."""
        return []

    def selected(self, model: Model) -> dict[str, nn.Parameter]:
        """The denoiser's tensors that move, by name, in the model's order.

        Raises:
            ModelError: there are none: the patterns match nothing, or the denoiser has no cross-attention.
        """
        if self.train:
            return select(model.denoiser, self.train)
        names = model.cross_attention_kv()
        if not names:
            raise ModelError(
                f"'{self.name}' edits cross-attention, and this denoiser has none",
                found=f"a {type(model.denoiser).__name__} of family '{model.family}'",
                fix="use a text-conditioned denoiser, or name the tensors to change with 'train'",
            )
        return select(model.denoiser, [re.escape(name) for name in names])

    def to_dict(self) -> dict[str, Any]:
        """The method's name (key ``method``) and every setting, as plain data."""
        return {"method": self.name, **_converter.unstructure(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Method":
        """The method that :meth:`to_dict` described; ``method`` may also name a preset.

        Raises:
            ConfigError: an unknown method, unknown settings (with near misses), wrong values: all at once.
        """
        values = dict(record)
        return make(values.pop("method", getattr(cls, "name", None)), **values)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """The method with these settings and defaults; unknown and wrong ones are reported together."""
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
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
            raise ConfigError.many(problems + found, where=f"the method '{self.name}'")


def make(name: object, /, **settings: Any) -> Method:
    """The method or preset of this name, with ``settings`` laid over its own.

    Raises:
        ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
    """
    if isinstance(name, str) and name in presets:
        method, overrides = presets[name]
        return methods[method].build({**overrides, **settings})
    if isinstance(name, str) and name in methods:
        return methods[name].build(settings)
    known = [*methods, *presets]
    raise ConfigError(f"no method or preset is called {name!r}", fix=near(str(name), known))


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


def _strs(value: Any, _: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    raise ValueError("a list of texts")


def _literal(value: Any, kind: object) -> Any:
    if isinstance(value, str) and value in get_args(kind):
        return value
    raise ValueError("one of " + ", ".join(map(repr, get_args(kind))))


def _origin(kind: Any) -> Any:
    return get_origin(kind)


_converter = cattrs.Converter(detailed_validation=False, unstruct_collection_overrides={tuple: list})
for _kind, _hook in ((float, _float), (int, _int), (bool, _bool), (str, _str)):
    _converter.register_structure_hook(_kind, _hook)
_converter.register_structure_hook_func(lambda kind: _origin(kind) is tuple, _strs)
_converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _literal)
