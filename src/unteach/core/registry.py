"""A registry maps names to classes or functions; an unknown name lists the near misses."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from unteach.errors import ConfigError

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")


def near(name: str, names: Iterable[str], most: int = 3) -> str:
    """A hint such as ``did you mean 'doco'?`` for a mistyped name, or the list of names when none is near."""
    known = sorted(names)
    hits = difflib.get_close_matches(name.lower(), known, n=most, cutoff=0.5)
    if hits:
        return "did you mean " + " or ".join(f"'{hit}'" for hit in hits) + "?"
    return "known: " + (", ".join(known) if known else "none")


class Registry(Generic[T]):
    """Name to object, for one kind of thing (``Registry[type[Method]]("method")``).

    Adding checks that the name is lower case and not taken; looking up an unknown name raises
    :class:`~unteach.errors.ConfigError` with the near misses.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator that registers the decorated object under ``name``."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"'{name}' is not a name for a {self.kind}",
                fix="use lower case letters, digits, '-', '_', '+' and '.'",
            )
        if name in self._items:
            raise ConfigError(f"the {self.kind} '{name}' is registered already", found=self._items[name])

        def register(item: T) -> T:
            self._items[name] = item
            return item

        return register

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise ConfigError(f"no {self.kind} is called '{name}'", fix=near(name, self._items))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._items)


class Configuration(Protocol):
    """What :class:`Methods` makes: a frozen class with checked fields (:class:`unteach.core.settings.Settings`)."""

    name: ClassVar[str]

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these settings."""


C = TypeVar("C", bound=Configuration)


class Methods(Registry[type[C]]):
    """Every configuration of one kind by name, with presets: erasers, guards, attacks, learners, plug-ins, judges.

    One register line a method, ``@methods.add("name")``, and one a preset, ``methods.preset("name", "of", steps=400)``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.presets: Registry[tuple[str, Mapping[str, Any]]] = Registry("preset")
        """Preset name to (method name, the settings that differ from the method's defaults)."""

    def add(self, name: str) -> Callable[[type[C]], type[C]]:
        """Decorator that registers the decorated class under ``name``, which becomes its ``name``."""
        register = super().add(name)

        def named(item: type[C]) -> type[C]:
            item.name = name
            return register(item)

        return named

    def preset(self, name: str, of: str, /, **settings: Any) -> None:
        """Register a preset.

        Raises:
            ConfigError: the name is taken, or no such method.
        """
        if name in self or of not in self:
            raise ConfigError(f"the preset '{name}' of the {self.kind} '{of}' cannot be registered", found=self.names())
        self.presets.add(name)((of, settings))

    def make(self, name: object, /, **settings: Any) -> C:
        """The method or preset of this name, with ``settings`` laid over its own.

        Raises:
            ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
        """
        if isinstance(name, str) and name in self.presets:
            base, overrides = self.presets[name]
            return self[base].build({**overrides, **settings})
        if isinstance(name, str) and name in self:
            return self[name].build(settings)
        raise ConfigError(f"no {self.kind} or preset is called {name!r}", fix=near(str(name), [*self, *self.presets]))

    def describe(self, name: str) -> str:
        """What a method or a preset is, in one line."""
        if name in self.presets:
            of, settings = self.presets[name]
            return " ".join([of, *(f"{key}={value}" for key, value in settings.items())])
        return re.sub(r":\w+:|`", "", (self[name].__doc__ or "").strip().partition("\n")[0])
