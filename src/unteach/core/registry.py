"""A registry maps names to classes or functions; an unknown name lists the near misses."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

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
