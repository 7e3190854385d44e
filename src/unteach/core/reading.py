"""Read YAML and JSON that anybody may have written: bounded, plain data, and every fault is one of our errors.

What comes back is a tree of None, true and false, numbers of at most 64 bits, texts that can be written again, lists
and tables: no aliases, no dates, no objects, at most :data:`DEPTH` deep.
"""

import json
import os
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from unteach.errors import CheckpointError, UnteachError, shorten

__all__ = ["DEPTH", "parse_json", "parse_yaml", "read_json", "read_text", "read_yaml", "to_yaml"]

DEPTH = 64
"""Levels of lists and tables."""
YAML_LIMIT, JSON_LIMIT = 1 << 20, 256 << 20
"""Bytes of a file."""
_LARGEST = 1 << 64


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (a few bytes of them stand for gigabytes), dates, and keys given twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None,
                None,
                f"the alias '*{shorten(event.anchor, 40)}' is refused: write the value out",
                event.start_mark,
            )
        self.depth += 1
        if self.depth > DEPTH + 1:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{shorten(key.value, 80)}' stands twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """What stands in two places is written twice; lists of texts run on, broken between texts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def write_single_quoted(self, text: str, split: bool = True) -> None:
        super().write_single_quoted(text, split=False)

    def write_plain(self, text: str, split: bool = True) -> None:
        super().write_plain(text, split=False)


def _running(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.SequenceNode:
    texts = all(isinstance(item, str) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=texts)


_Dumper.add_representer(list, _running)


def to_yaml(data: Any) -> str:
    """Readable YAML that :func:`parse_yaml` reads back."""
    made: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return made.rstrip()


# A date is a text here: "title: 2026-01-31" means what it says.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_text(path: Path, *, limit: int, error: type[UnteachError] = CheckpointError) -> str:
    """The text of a regular UTF-8 file of at most ``limit`` bytes, without a byte-order mark.

    Raises:
        UnteachError: of the kind ``error``: missing, not a regular file, too long, or not UTF-8.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path} is not a regular file", fix="give a file")
            data = file.read(limit + 1)
    except (OSError, ValueError) as refused:  # ValueError: a name with a zero byte
        found = getattr(refused, "strerror", None) or refused
        raise error(f"cannot read {path}", found=found, fix="check the path") from refused
    if len(data) > limit:
        raise error(f"{path} is too long to be read", found=f"more than {limit} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        raise error(f"{path} is not a text in UTF-8", found=broken, fix="save it as UTF-8") from broken


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end, where the path is a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_yaml(text: str, where: str, *, error: type[UnteachError] = CheckpointError) -> Any:
    """Plain data from YAML.

    Raises:
        UnteachError: of the kind ``error``; its cause is a ``yaml.YAMLError`` when the text is not YAML at all.
    """
    try:
        if len(text) > YAML_LIMIT:
            raise ValueError(f"more than {YAML_LIMIT} characters")
        value = yaml.load(text, Loader=_Loader)
        _plain(value)
    except Exception as broken:  # of many kinds: impossible numbers, a table as a key, a depth that ends in recursion
        found = "it is nested too deeply" if isinstance(broken, RecursionError) else broken
        raise error(f"{where} is not valid YAML", found=found, fix="correct the file") from broken
    return value


def read_yaml(path: Path, *, error: type[UnteachError] = CheckpointError) -> Any:
    """Plain data from a YAML file of at most 1 MiB; errors as in :func:`read_text` and :func:`parse_yaml`."""
    return parse_yaml(read_text(path, limit=YAML_LIMIT, error=error), str(path), error=error)


def parse_json(text: str, where: str, *, error: type[UnteachError] = CheckpointError) -> Any:
    """Plain data from JSON.

    Raises:
        UnteachError: of the kind ``error``.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
        _plain(value)
    except (ValueError, RecursionError) as broken:
        found = "it is nested too deeply" if isinstance(broken, RecursionError) else broken
        raise error(f"{where} is damaged: not JSON that can be used", found=found) from broken
    return value


def read_json(path: Path, *, limit: int = JSON_LIMIT, error: type[UnteachError] = CheckpointError) -> Any:
    """Plain data from a JSON file of at most ``limit`` bytes; errors as in :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, limit=limit, error=error), str(path), error=error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shorten(next(key for key in keys if keys.count(key) > 1), 80)!r} stands twice")
    return table


def _plain(value: object) -> None:
    """Raise ValueError unless everything in it can be kept as JSON and written as UTF-8."""
    level: list[object] = [value]
    for _ in range(DEPTH):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")


def _inside(item: object) -> Iterator[object]:
    if isinstance(item, dict):
        for key in item:
            if isinstance(key, list | tuple | dict):
                raise ValueError(f"a key must be a text, found {shorten(repr(key), 80)}")
        yield from item
        yield from item.values()
    elif isinstance(item, list):
        yield from item
    elif isinstance(item, str):
        if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
            raise ValueError(f"half a character (a lone surrogate) in {shorten(ascii(item), 80)}")
    elif isinstance(item, int) and not isinstance(item, bool):
        if not -_LARGEST < item < _LARGEST:
            raise ValueError(f"a whole number of {item.bit_length()} bits; there are 64")
    elif not (item is None or isinstance(item, bool | float)):
        raise ValueError(f"a {type(item).__name__} is not plain data")
