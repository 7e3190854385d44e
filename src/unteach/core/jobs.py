"""Many calls of one function: one after another, in processes of this machine, or on a Ray cluster.

A call is plain data in and plain data out. Whoever makes the calls leaves out those whose record exists already: so the
same command, run again, does what is left.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar, get_args

from unteach.core.stopping import end_with_parent
from unteach.errors import ConfigError, MissingExtraError, UnteachError

__all__ = ["Engine", "each", "end"]

Engine = Literal["serial", "processes", "ray"]

T = TypeVar("T")
_PATIENCE = 5.0
"""Seconds that a process gets to end before it is killed."""


def each(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], workers: int = 1, engine: Engine = "processes"
) -> Generator[tuple[int, T], None, None]:
    """Call a function several times; gives (index of the call, result) as each is finished.

    When it is left early, by an error or because the iterator is closed, the workers are ended and no call begins
    any more. They also end when this process is killed.

    Args:
        function: a function of a module's top level.
        calls: the arguments of each call.
        workers: calls at a time.
        engine: "serial" calls here, in order; "processes" in new processes of this machine; "ray" as tasks of the Ray
            cluster that ``RAY_ADDRESS`` names, else of one started here with ``workers`` processors for the time.

    Raises:
        ConfigError: no such engine, or fewer than one worker.
        MissingExtraError: Ray is not installed.
        UnteachError: a worker was killed. What a call raises is raised here.
    """
    if engine not in get_args(Engine) or workers < 1:
        raise ConfigError("jobs need an engine and at least one worker", found=f"{engine!r}, {workers} workers")
    if engine == "ray":
        return _ray(function, calls, workers)
    return _serial(function, calls) if engine == "serial" else _processes(function, calls, workers)


def _serial(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Generator[tuple[int, T], None, None]:
    for index, call in enumerate(calls):
        yield index, function(*call)


def _ray(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, T], None, None]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    own = not ray.is_initialized()
    if own:
        cluster: dict[str, Any] = (
            {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        )
        ray.init(log_to_driver=False, configure_logging=False, **cluster)
    waiting: dict[Any, int] = {}
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(function)
        left = list(enumerate(calls))
        while left or waiting:
            while left and len(waiting) < workers:
                index, call = left.pop(0)
                waiting[task.remote(*call)] = index
            for ready in ray.wait(list(waiting))[0]:
                yield waiting.pop(ready), ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UnteachError("a worker was lost", found=error, fix="run the same command again") from error
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        if own:
            ray.shutdown()


def _processes(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, T], None, None]:
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
