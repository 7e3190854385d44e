"""Devices, number formats and processor threads by name."""

import os
from collections.abc import Mapping

import torch

from unteach.core.registry import near
from unteach.errors import ConfigError

__all__ = ["DTYPES", "cores", "device_of", "dtype_of", "use_threads"]

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Number formats that models come in."""


def device_of(name: str) -> str:
    """A torch device by name; "auto" is cuda where there is one, else cpu.

    Raises:
        ConfigError: torch knows no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise ConfigError(f"no device is called '{name}'", fix="auto, cpu, cuda, cuda:1, mps") from error


def dtype_of(name: str) -> torch.dtype:
    """A torch dtype by name.

    Raises:
        ConfigError: it is none that models come in.
    """
    if name not in DTYPES:
        raise ConfigError(f"no dtype is called '{name}'", fix=near(name, DTYPES))
    return DTYPES[name]


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int | None, *, small: bool = False) -> None:
    """Set torch's processor threads; without a number, one for a ``small`` model (more only wait), else torch's own."""
    if count is not None or small:
        torch.set_num_threads(count or 1)
