"""Unteach: take knowledge out of trained networks, keep it out, and let them go on learning."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("unteach")
except PackageNotFoundError:  # imported from a source folder that is not installed
    __version__ = "0+source"

__all__ = ["__version__"]
