"""Folders that processes write into: one process a folder, and nothing left behind by those that were killed.

Whoever writes holds a lock of the system (``flock``), which ends with the process however that ends. So a file whose
writer is gone can be told from one that is being written, and nobody waits for the dead. Where the system has no such
locks (Windows, some network disks) nothing is locked and nothing is swept up.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from unteach.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "alone", "aside", "cure", "sweep"]

LOCK = ".unteach.lock"
"""The file in a folder that a process works in; it holds the process's id and goes away at the end."""


@contextlib.contextmanager
def alone(folder: Path | str) -> Iterator[None]:
    """Be the only process that works in a folder, which is made if need be; first remove what killed ones left.

    A folder that was made for this and in which nothing was written is gone again at the end.

    With several processes for one run (``RANK`` in the environment, as torchrun and accelerate set it), the first one
    stands for all.

    Raises:
        CheckpointError: another process works there, or the folder cannot be written.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(folder)
    path, there = folder / LOCK, folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _new(path, os.O_RDWR | os.O_CREAT)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another process (pid {_holder(path)}) works in this folder: {folder}",
            fix="wait for it, or stop it and run the same command again; or choose another folder",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}", found=error.strerror or error, fix="choose a folder that can be written to"
        ) from error
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        sweep(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)
        if not there:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def sweep(folder: Path, pattern: str = ".*.part", *, deep: bool = True) -> None:
    """Remove files that were being written by processes that are gone; links are not followed.

    Args:
        folder: where to look.
        pattern: pattern of the files' names.
        deep: also in the folders below.
    """
    if fcntl is None:
        return
    for stale in folder.rglob(pattern) if deep else folder.glob(pattern):
        with contextlib.suppress(OSError):
            handle = os.open(stale, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stale.unlink()  # not of a folder: those are whole models, and whoever makes them sweeps them up
            finally:
                os.close(handle)


def aside(path: Path) -> tuple[Path, int]:
    """A new, empty, hidden file beside ``path``, and the handle that keeps others from sweeping it up until closed.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with contextlib.suppress(FileExistsError, BlockingIOError):
            return made, _new(made, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def cure(error: BaseException) -> str:
    """What helps against an error of writing."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "space left" in str(error)
    return "free some disk space or choose another folder" if full else "choose a folder that can be written to"


def _new(path: Path, flags: int) -> int:
    """Open and lock a file that others may be removing at the same time.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    while True:
        handle = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is None or _held(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _held(handle: int, path: Path) -> bool:
    """Lock it; whether it still is the file of that name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return True  # a disk without locks
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()[:20] or "unknown"
    except OSError:
        return "unknown"
