"""The one objective: task loss + Σ α D_Φ(output, target) + Σ β D_Ψ(θ, θ_old), as a list of terms (refresh.md §1).

A method is a list of terms and where needed a rule on the gradient of their sum. Terms are evaluated on a
:class:`~unteach.continual.view.View`, which is one step of training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.terms import Rule, Term
from unteach.continual.view import Loss, View
from unteach.errors import ConfigError


class Objective:
    """The sum of a method's terms, and the rule on its gradient.

    Attributes:
        terms: the summands; they carry the method's state.
        rule: changes the gradient, or None.
        watchers: the terms that want to know every update.
        needs_old: a term needs the network as it was when the last task ended.
        has_memory: a term with a weight reads the memory.
    """

    def __init__(self, terms: Sequence[Term], rule: Rule | None = None) -> None:
        self.terms, self.rule = list(terms), rule
        if not any(term.part == "data" for term in self.terms):
            raise ConfigError("a method needs a task loss", found=[type(t).__name__ for t in self.terms])
        self.watchers = [term for term in self.terms if term.watches]
        self.needs_old = any(term.uses_old for term in self.terms)
        self.has_memory = any(term.of_memory and term.weight != 0 for term in self.terms)

    def loss(self, view: View, which: Loss = "host") -> Tensor | None:
        """The weighted sum of the terms asked for, shape (); None when none of them is active.

        A term on a joined batch is a mean over both: its parts "current" and "memory" are the samples' shares of it.
        """
        total: Tensor | None = None
        view.which = which
        for term in self.terms:
            if term.weight == 0:
                continue
            if which == "current" and term.part != "data":
                continue
            if which == "memory" and not term.of_memory:
                continue
            value = term.value(view)
            if value is not None:
                value = value if term.weight == 1 else term.weight * value
                total = value if total is None else total + value
        return total

    def begin_task(self, learner: Learner) -> None:
        """A task begins, for every term and the rule."""
        for term in self.terms:
            term.begin_task(learner)
        if self.rule is not None:
            self.rule.begin_task(learner)

    def end_task(self, learner: Learner) -> None:
        """A task has ended, for every term and the rule."""
        for term in self.terms:
            term.end_task(learner)
        if self.rule is not None:
            self.rule.end_task(learner)

    def state_dict(self) -> dict[str, Any]:
        """The state of every term and of the rule."""
        terms = {"terms": [term.state_dict() for term in self.terms]}
        return {"objective": terms, "rule": None if self.rule is None else self.rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        for term, saved in zip(self.terms, state["objective"]["terms"], strict=True):
            term.load_state_dict(saved)
        if self.rule is not None:
            self.rule.load_state_dict(state["rule"])
