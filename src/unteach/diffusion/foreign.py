"""Other people's code on other people's files: whatever it raises becomes one of our errors."""

import contextlib
import warnings
from collections.abc import Iterator

from unteach.errors import ModelError, UnteachError


@contextlib.contextmanager
def foreign(problem: str, *, fix: str) -> Iterator[None]:
    """Turn any error inside the block into a ModelError, a panic of Rust code (no Exception) included.

    Ctrl-C, an exit and our own errors pass as they are.

    Raises:
        ModelError: says ``problem``, the first line of the error, and ``fix``.
    """
    try:
        yield
    except UnteachError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(problem, found=f"{type(error).__name__}: {text[:500]}", fix=fix) from error


@contextlib.contextmanager
def unremarked() -> Iterator[None]:
    """Without numpy's remarks on diffusers' solvers, which hand it torch tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array_", category=DeprecationWarning)
        yield
