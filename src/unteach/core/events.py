"""What a run tells while it works, and how it is stopped: one object that is passed down.

The library itself is silent (:class:`Events`); the command line shows bars or lines, a service writes JSON lines.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from unteach.core import text
from unteach.errors import printable

__all__ = ["SILENT", "Bars", "Events", "JsonLines", "Lines", "Steps"]

EVERY = 5.0
"""Seconds between two lines of a stage."""


class Events:
    """Hears nothing; the base of all others.

    Whatever one of its methods raises ends the run: that is how a run is cancelled. What was saved stays, and the
    same call goes on from there.
    """

    def message(self, text: str) -> None:
        """Something worth reading happened."""

    def step(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are done."""

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """What was measured after a step."""

    def close(self) -> None:
        """Nothing more comes for now."""


SILENT = Events()


class Steps(Events):
    """Hands each step to a function of (steps done).

    Args:
        function: what it raises ends the run.
        stage: only steps of this stage; "" is every one.
    """

    def __init__(self, function: Callable[[int], object], stage: str = "") -> None:
        self._function, self._stage = function, stage

    def step(self, stage: str, done: int, total: int) -> None:
        """Call the function."""
        if self._stage in ("", stage):
            self._function(done)


class Lines(Events):
    """Plain lines: messages as they come, a stage every few seconds with the time that is left.

    Args:
        every: seconds between two lines of a stage.
        out: where to write; None is standard output as it is at the time.
    """

    def __init__(self, every: float = EVERY, out: TextIO | None = None) -> None:
        self._every, self._out = every, out
        self._stage, self._begin, self._said, self._first = "", 0.0, 0.0, 0

    def message(self, text: str) -> None:
        """One line."""
        print(printable(text), file=self._out or sys.stdout, flush=True)

    def step(self, stage: str, done: int, total: int) -> None:
        """A line now and then, and one when the stage is over."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._begin, self._said, self._first = stage, now, now, done
        elif now - self._said >= self._every and done < total:
            self._said = now
            left = (now - self._begin) / max(1, done - self._first) * (total - done)
            self.message(f"  {stage}: {done} of {total}, about {text.duration(left)} left")
        if done == total:
            self.message(f"  {stage}: {total} done")

    def close(self) -> None:
        """The next step begins a new stage."""
        self._stage = ""


class Bars(Events):
    """A bar a stage, on standard error; messages go to standard output, above the bar."""

    def __init__(self) -> None:
        self._stage, self._bar = "", None

    _bar: Any

    def message(self, text: str) -> None:
        """One line; the bar is ended before."""
        self.close()
        print(printable(text), flush=True)

    def step(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar = stage, tqdm(total=total, initial=done - 1, desc=stage)
        self._bar.update(done - self._bar.n)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Beside the bar."""
        if self._bar is not None and stage == self._stage:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)

    def close(self) -> None:
        """End the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = "", None


class JsonLines(Events):
    """One JSON object a line, for another program: ``{"event": "step", "stage": …, "done": …, "total": …}``.

    Args:
        out: where to write.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def message(self, text: str) -> None:
        """``{"event": "message", "text": …}``."""
        self._write({"event": "message", "text": text})

    def step(self, stage: str, done: int, total: int) -> None:
        """Every step."""
        self._write({"event": "step", "stage": stage, "done": done, "total": total})

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """``values`` by name."""
        self._write({"event": "metrics", "stage": stage, "step": step, "values": dict(values)})

    def _write(self, event: Mapping[str, Any]) -> None:
        self._out.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        self._out.flush()
