"""A run: a folder of one configuration, and the stages that are made in it. The same configuration goes on there.

The only place that says "this folder holds another run".
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from unteach.core import places, state
from unteach.errors import CheckpointError, UnteachError

__all__ = ["CONFIG", "COST", "Run", "differences", "same", "seconds_spent"]

CONFIG, COST = "config.json", "cost.json"
"""Files of a run: its configuration, and the seconds that went into it."""
MOST = 6
"""Differences that are told."""


class Stored(Protocol):
    """What a stage leaves: a thing with a file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it."""

    def save(self, path: Path) -> object:
        """Write it, whole or not at all."""


T = TypeVar("T", bound=Stored)


def same(
    place: Path | str,
    old: object,
    new: Mapping[str, Any],
    *,
    keys: Sequence[str] | None = None,
    grows: Sequence[str] = (),
    what: str = "run",
) -> None:
    """Refuse to go on where something else was begun.

    Args:
        place: the file or folder that holds it, for the message.
        old: the configuration that is there, as it was read.
        new: the one that is asked for.
        keys: what must be equal; None is all of both.
        grows: lists that may have become longer since.
        what: "run", "evaluation" and so on, for the message.

    Raises:
        CheckpointError: lists the differences; nothing is changed.
    """
    there = old if isinstance(old, Mapping) else {}
    chosen = {*there, *new} if keys is None else {*keys, *grows}
    wrong = [
        line
        for key in sorted(chosen)
        if not (key in grows and _contains(new.get(key), there.get(key)))
        for line in differences(_plain(there.get(key)), _plain(new.get(key)), key)
    ]
    if wrong or not isinstance(old, Mapping):
        more = f"; and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
        raise CheckpointError(
            f"{place} holds another {what}; nothing was changed",
            found="; ".join(wrong[:MOST]) + more if wrong else "no configuration",
            fix="use the old settings to go on with it, or another folder to start anew",
        )


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """Where two plain values differ, in words such as "settings.steps was 5, is now 6"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(map(_nested, old + new)):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{where}[{index}]")
    elif old != new:
        yield f"{where} was {_short(old)}, is now {_short(new)}"


class Run:
    """A folder of one configuration.

    Args:
        folder: where it is kept.
        config: plain data that decides the result.
        keys: what of it must be equal for the run to go on; None is all.
        grows: lists of it that may become longer.
        stages: files and folders that show that something was made.

    A configuration of which nothing was made is nobody's: another one takes its place.

    Raises:
        CheckpointError: the folder holds another run, or its configuration is damaged; nothing is changed.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        keys: Sequence[str] | None = None,
        grows: Sequence[str] = (),
        stages: Sequence[str] = (),
    ) -> None:
        self.folder, self.config, self.stages = Path(folder), _plain(dict(config)), tuple(stages)
        self._keys, self._grows = keys, tuple(grows)
        self.known = self._belongs()
        """Whether the folder held this very run before."""

    def _belongs(self) -> bool:
        path = self.folder / CONFIG
        if not path.exists():
            return False
        there = state.read_table(path)
        try:
            same(self.folder, there, self.config, keys=self._keys, grows=self._grows)
        except CheckpointError:
            if self.begun() or not self.stages:
                raise
            return False
        return True

    def begun(self) -> bool:
        """Whether a stage left something."""
        return any((self.folder / name).exists() for name in self.stages)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Be the only process that works in the folder; its seconds are counted in cost.json, over all sessions.

        The configuration is written at once, except beside stages that have none: those are somebody else's until the
        work has compared them. When the work is refused before anything was made, the folder is as before.

        Raises:
            CheckpointError: another process works there, or it cannot be written.
        """
        with places.alone(self.folder):
            self.known, finished = self._belongs(), self.finished()
            unclear = not self.known and self.begun()
            if not unclear and (self._grows or not self.known):
                state.write_json(self.folder / CONFIG, self.config)
            begin, counts = time.monotonic(), not finished
            try:
                yield
            except UnteachError as error:
                counts = counts and self.begun() and not isinstance(error, CheckpointError)
                if not self.known and not self.begun():
                    (self.folder / CONFIG).unlink(missing_ok=True)
                raise
            finally:
                if counts:
                    self._spend(time.monotonic() - begin)
            if unclear:
                state.write_json(self.folder / CONFIG, self.config)

    @property
    def seconds(self) -> float | None:
        """Seconds that went into the folder, over all sessions; None when it is not known."""
        return seconds_spent(self.folder)

    def finished(self) -> bool:
        """Whether the last stage is there."""
        return bool(self.stages) and (self.folder / self.stages[-1]).exists()

    def stage(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What a file of the folder holds, or what ``make`` gives, which is then written there.

        Raises:
            CheckpointError: the file is damaged, or cannot be written.
        """
        path = self.folder / name
        if path.exists():
            return kind.load(path)
        made = make()
        made.save(path)
        return made

    def _spend(self, seconds: float) -> None:
        # A full disk: the error that is on its way says more.
        with contextlib.suppress(CheckpointError):
            spent = (seconds_spent(self.folder) or 0.0) + seconds
            state.write_json(self.folder / COST, {"seconds": round(spent, 3)})


def seconds_spent(folder: Path) -> float | None:
    """Seconds that went into a folder, over all sessions; None when it is not known, or cost.json is damaged."""
    try:
        seconds = state.read_table(folder / COST).get("seconds") if (folder / COST).exists() else None
    except CheckpointError:
        return None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        return None
    return float(seconds)


def _plain(value: Any) -> Any:
    return json.loads(state.canonical(value))


def _contains(new: object, old: object) -> bool:
    return isinstance(old, list | tuple) and isinstance(new, list | tuple) and all(item in new for item in old)


def _nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:90]} … ({len(text)} characters)"
