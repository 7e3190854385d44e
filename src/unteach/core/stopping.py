"""When a process should end: at Ctrl-C, at SIGTERM, and with its parent. Imports little, to be in place soon."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["PARENT", "Stopped", "child_environment", "end_with_parent", "stoppable"]

PARENT = "UNTEACH_PARENT"
"""Variable of the environment by which a child knows whose child it is."""
_EVERY = 0.2
"""Seconds between two looks at the parent."""


class Stopped(KeyboardInterrupt):
    """The process was asked to stop; ``code`` is the exit code that says by which signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def stoppable(*, restore: bool = True) -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into :class:`Stopped`, so that what was begun is tidied up.

    A second one ends the process at once, without a word. A signal that is ignored (nohup, a job in the background)
    or handled by others stays so. Outside the main thread nothing is changed.

    Args:
        restore: handle signals as before afterwards. Else, in a process that is about to end, each ends it at once.
    """
    before: dict[int, Any] = {}

    def at_once(number: int, _: object) -> None:
        os._exit(128 + number)

    def first(number: int, _: object) -> None:
        for one in before:
            signal.signal(one, at_once)
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.getsignal(number)
        for number in before:
            signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if restore else at_once)


def child_environment() -> dict[str, str]:
    """This process's environment with what makes a child of it call :func:`end_with_parent`."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent(parent: int | None = None) -> None:
    """From now on end this process at once, without tidying up, when its parent is gone, however that ended.

    Args:
        parent: its process id; None takes it from the environment (:data:`PARENT`) and does nothing without it.
    """
    given = os.environ.pop(PARENT, "")
    parent = parent if parent is not None else int(given) if given.isdecimal() else None
    if parent is None or os.name != "posix":  # elsewhere a process keeps the id of a parent that is gone
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
