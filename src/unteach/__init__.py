"""Unteach: take knowledge out of trained networks, keep it out, and let them go on learning.

The public names are imported when they are first asked for; ``import unteach`` itself loads nothing. ``unteach.erase``
is both the package and, called, its function.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unteach.continual.engine import learn
    from unteach.data.concepts import Concept, ConceptSet
    from unteach.diffusion import Model, WeightDelta, load, sample
    from unteach.evaluate import evaluate_canvas
    from unteach.guard.enforce import enforce
    from unteach.guard.manifest import FreezeManifest
    from unteach.guard.verify import verify

__all__ = [
    "Concept",
    "ConceptSet",
    "FreezeManifest",
    "Model",
    "WeightDelta",
    "__version__",
    "enforce",
    "erase",
    "evaluate_canvas",
    "learn",
    "load",
    "sample",
    "verify",
]

_HOMES = {
    "Concept": "data.concepts",
    "ConceptSet": "data.concepts",
    "FreezeManifest": "guard.manifest",
    "Model": "diffusion",
    "WeightDelta": "diffusion",
    "enforce": "guard.enforce",
    "evaluate_canvas": "evaluate",
    "learn": "continual.engine",
    "load": "diffusion",
    "sample": "diffusion",
    "verify": "guard.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name == "erase":
        return import_module("unteach.erase")
    if name not in _HOMES:
        raise AttributeError(f"module 'unteach' has no attribute '{name}'")
    return getattr(import_module(f"unteach.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("unteach")
    except PackageNotFoundError:  # imported from a source folder that is not installed
        return "0+source"
