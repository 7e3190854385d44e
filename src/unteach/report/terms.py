"""The words of a page, from ``terms.yaml``: what each measure and method means, in one line each."""

from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from unteach.core import reading

_FILE = "terms.yaml"
_WORDS: dict[str, dict[str, Any]] = reading.parse_yaml(
    resources.files("unteach.report").joinpath(_FILE).read_text(encoding="utf-8"), _FILE
)


@dataclass(frozen=True)
class Term:
    """A measure.

    Attributes:
        name: in the records.
        label: what a reader calls it.
        meaning: definition, with formula and source.
        first: whether it is shown before the others, of an erasure.
        share: whether it is shown in per cent, of a learning run.
    """

    name: str
    label: str
    meaning: str
    first: bool = False
    share: bool = True


ERASURE, LEARNING = (tuple(Term(name, **of) for name, of in _WORDS[kind].items()) for kind in ("erasure", "learning"))
TERMS = {term.name: term for term in (*ERASURE, *LEARNING)}
KINDS: dict[str, str] = _WORDS["kinds"]
"""Kind of accuracy to one line."""
METHODS: dict[str, str] = _WORDS["methods"]
"""Method name to one line, when the results bring none of their own."""
FIRST = (
    "class_il/final_average_accuracy",
    "task_il/final_average_accuracy",
    "class_il/average_incremental_accuracy_tasks",
    "class_il/forgetting",
    "class_il/learning_accuracy",
    "task_il/forward_transfer",
    "final_calibration_error",
)
"""Metrics of learning that are shown first."""
_SHORT = {"class_il": "Class-IL", "task_il": "Task-IL", "class_il_all_heads": "whole head"}


def term(name: str) -> Term:
    """The term of a measure; "class_il/forgetting" is "forgetting, Class-IL", an unlisted one its own label."""
    kind, _, plain = name.rpartition("/")
    if kind not in _SHORT:
        return TERMS.get(plain) or Term(name, name, "", share=False)
    known = TERMS.get(plain) or Term(plain, plain, "", share=False)
    return replace(known, label=f"{known.label}, {_SHORT[kind]}")


def order(name: str) -> int:
    """Rank of a measure on a page."""
    return list(TERMS).index(name) if name in TERMS else len(TERMS)
