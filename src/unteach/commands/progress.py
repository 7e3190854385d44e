"""Progress of long stages: a bar where somebody looks on, plain lines every few seconds everywhere else."""

import time
from typing import Any

from tqdm import tqdm

from unteach.commands.terminal import interactive, say
from unteach.report import view

__all__ = ["Progress"]

EVERY = 5.0
"""Seconds between two lines of a stage."""


class Progress:
    """Call it with a stage, the steps of it done, and all of them; close it at the end.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._every = every
        self._stage = ""
        self._bar: Any = None
        self._begin = self._told = 0.0
        self._first = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show it."""
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._begin, self._told, self._first = stage, now, now, done
            self._bar = tqdm(total=total, initial=done - 1, desc=stage) if interactive() else None
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif now - self._told >= self._every and done < total:
            self._told = now
            left = (now - self._begin) / (done - self._first) * (total - done)
            say(f"  {stage}: {done} of {total} steps, about {view.duration(left)} left")
        if done == total and self._bar is None:
            say(f"  {stage}: {total} steps done")

    def close(self) -> None:
        """End the bar, if there is one; to be called also before something else is printed."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self._stage = None, ""
