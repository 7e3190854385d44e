"""Where a result was made: versions, platform and, when known, the exact source revision."""

import functools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions, platform and source revision ("" and None when unknown)."""

    python: str = ""
    torch: str = ""
    diffusers: str = ""
    unteach: str = ""
    platform: str = ""
    cores: int = 1
    threads: int = 1
    revision: str = ""
    dirty: bool | None = None


def collect() -> Environment:
    """The environment of this process. Host names and paths are left out on purpose."""
    revision, dirty = _revision()
    return Environment(
        python=platform.python_version(),
        torch=_version("torch"),
        diffusers=_version("diffusers"),
        unteach=_version("unteach"),
        platform=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        threads=_threads(),
        revision=revision,
        dirty=dirty,
    )


def peak_rss() -> int:
    """Peak resident memory of this process so far, in bytes (0 where the platform does not tell)."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _threads() -> int:
    return torch.get_num_threads()


@functools.cache
def _revision() -> tuple[str, bool | None]:
    """Git revision of the checkout that tracks this file, and whether tracked files were changed.

    ("", None) when the package was installed rather than checked out, or git is not there.
    """
    here = Path(__file__).resolve()
    if not _git(here.parent, "ls-files", here.name):
        return "", None
    revision = _git(here.parent, "rev-parse", "HEAD")
    if not revision:
        return "", None
    return revision, bool(_git(here.parent, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
