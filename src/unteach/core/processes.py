"""Several processes at once, which end when the one that started them does."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from unteach.core.stopping import end_with_parent
from unteach.errors import UnteachError

__all__ = ["each", "end"]

T = TypeVar("T")
_PATIENCE = 5.0
"""Seconds that a process gets to end before it is killed."""


def each(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, T], None, None]:
    """Call a function in several processes; gives (index of the call, result) as each is finished.

    When it is left early, by an error or because the iterator is closed, the workers are ended and no call begins
    any more. They also end when this process is killed.

    Args:
        function: of a module's top level.
        calls: the arguments of each call.
        workers: processes.

    Raises:
        UnteachError: a worker was killed. What a call raises is raised here.
    """
    known = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent, initargs=(os.getpid(),)
    )
    done = False
    try:
        # Ctrl-C goes to every process of the terminal; the workers leave it to this one.
        with _without_interrupts():
            waiting: dict[Future[T], int] = {pool.submit(function, *call): i for i, call in enumerate(calls)}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future), future.result()
        done = True
    except BrokenProcessPool as error:
        raise UnteachError(
            "a worker process was killed", found=error, fix="run the same command again; use fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=done, cancel_futures=True)
        if not done:
            end([process for process in multiprocessing.active_children() if process not in known])


def end(children: Sequence[BaseProcess]) -> None:
    """End processes: asked first, killed after some seconds."""
    for ask in (BaseProcess.terminate, BaseProcess.kill):
        for process in children:
            ask(process)
        until = time.monotonic() + _PATIENCE
        for process in children:
            process.join(max(0.0, until - time.monotonic()))
        children = [process for process in children if process.is_alive()]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold SIGINT back; processes that are started meanwhile never get it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
