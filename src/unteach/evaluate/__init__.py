"""Evaluation: metrics, the canvas suite, typed versioned Results.

Nothing here is imported until it is asked for, so that a report can be made from Results without loading
diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unteach.evaluate.prompts import Protocol, World
    from unteach.evaluate.suite import Judge, evaluate_canvas
    from unteach.records.erasure import Results

__all__ = ["Judge", "Protocol", "Results", "World", "evaluate_canvas"]

_HOMES = {
    "Judge": "evaluate.suite",
    "Protocol": "evaluate.prompts",
    "Results": "records.erasure",
    "World": "evaluate.prompts",
    "evaluate_canvas": "evaluate.suite",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"unteach.{_HOMES[name]}"), name)
