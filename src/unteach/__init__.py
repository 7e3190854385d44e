"""Unteach: take knowledge out of trained networks, keep it out, and let them go on learning."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: the command line should be up at once."""
    if name != "__version__":
        raise AttributeError(f"module 'unteach' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("unteach")
    except PackageNotFoundError:  # imported from a source folder that is not installed
        return "0+source"
