"""What the commands print: lines, progress, and the verdict table of an evaluation."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unteach.errors import ConfigError, printable

if TYPE_CHECKING:
    from unteach.core.events import Events

PASS_PHRASE = "UNTEACH_PASS_PHRASE"
"""Variable of the environment with the pass phrase of a private key."""


def say(text: str = "") -> None:
    """Print a line at once, also into a file; what a terminal would act on is shown as an escape."""
    print(printable(text), flush=True)


def interactive() -> bool:
    """Whether progress bars would be seen."""
    return sys.stderr.isatty()


def pass_phrase(what: str, *, twice: bool = False) -> bytes:
    """A pass phrase from UNTEACH_PASS_PHRASE, else typed at the terminal without being shown.

    Raises:
        ConfigError: it is empty, there is no terminal to ask at, or the second time it was another one.
    """
    given = os.environ.get(PASS_PHRASE)
    if given is None and not sys.stdin.isatty():
        raise ConfigError(f"the pass phrase of {what} cannot be asked for here", fix=f"put it into {PASS_PHRASE}")
    if given is None:
        given = getpass.getpass(f"pass phrase of {what}: ")
        if twice and given != getpass.getpass("once more: "):
            raise ConfigError("the two pass phrases differ", fix="run the same command again")
    if not given:
        raise ConfigError(f"the pass phrase of {what} is empty")
    return os.fsencode(given)


def events() -> Events:
    """Bars where somebody looks on, else plain lines; of several processes for one run only the first one tells."""
    from unteach.core.events import SILENT, Bars, Lines

    if os.environ.get("RANK", "0") != "0":
        return SILENT
    return Bars() if interactive() else Lines()


def wrote(paths: Sequence[Path]) -> None:
    """The last lines of a command: what it wrote."""
    say("wrote:")
    for path in paths:
        say(f"  {path}")


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
