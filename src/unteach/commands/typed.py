"""The line that was typed, as records keep it: records are published, so it names nobody's folders."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = ["typed"]


def typed(given: Sequence[str]) -> str:
    """``unteach`` and its arguments as one line.

    A path in the working folder is shown relative to it, one in the home folder from ``~``, any other one by its last
    name, as ``…/name``. Whatever else names the home folder has ``~`` in its place.
    """
    return " ".join(["unteach", *map(_shown, given)])


def _shown(argument: str) -> str:
    head, equals, tail = argument.partition("=")
    if equals and (head.startswith("--") or head.isidentifier()):
        return f"{_quoted(head)}={_shown(tail)}" if tail else argument
    return _quoted(_path(argument).encode("utf-8", "replace").decode())


def _path(text: str) -> str:
    home = str(Path.home())
    if text.startswith("/") or ".." in text.split("/"):
        place = os.path.abspath(text)
        below = _below(place, os.getcwd())
        text = text if below is not None and not text.startswith("/") else _outside(place, below, home)
    return text.replace(home, "~") if home != "/" else text


def _outside(place: str, below: str | None, home: str) -> str:
    if below is not None:
        return below
    at_home = _below(place, home)
    if at_home is not None:
        return f"~/{at_home}" if at_home != "." else "~"
    return f"…/{os.path.basename(place)}"


def _below(place: str, folder: str) -> str | None:
    """The path relative to a folder that it is in, else None; nothing is in the root."""
    if folder != "/" and (place == folder or place.startswith(folder + "/")):
        return os.path.relpath(place, folder)
    return None


def _quoted(text: str) -> str:
    head = "~/" if text.startswith("~/") else ""
    rest = text.removeprefix(head)
    return head + (shlex.quote(rest) if rest else "" if head else "''")
