"""The one objective: task loss + Σ α D_Φ(output, target) + Σ β D_Ψ(θ, θ_old), as a list of terms (refresh.md §1).

A method is a list of :class:`Term`. Terms are evaluated on a :class:`View`, which is one step of training: the current
batch, draws from memory, and the network's outputs, each worked out once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unteach.continual.view import Batch, Loss, View
from unteach.core.bregman import Generator, LogSumExp, Quadratic
from unteach.core.curvature import Curvature
from unteach.errors import ConfigError

if TYPE_CHECKING:
    from unteach.continual.learner import Learner

__all__ = [
    "Anchor",
    "Batch",
    "Loss",
    "Objective",
    "Output",
    "Source",
    "Space",
    "Target",
    "TaskLoss",
    "Term",
    "View",
    "both",
    "current",
    "labels",
    "logits",
    "memory",
    "previous",
    "probabilities",
    "stored",
    "uniform",
]

Source = Callable[[View], Batch | None]
Target = Callable[[View, Batch], Tensor | None]
Space = Callable[[Tensor], Tensor]


def current(view: View) -> Batch:
    """Source: the current batch."""
    return view.batch


def memory(key: str = "a") -> Source:
    """Source: a draw from memory; terms with another key get an independent draw."""

    def source(view: View) -> Batch | None:
        return view.draw(key)

    source.memory = True  # type: ignore[attr-defined]
    return source


def both(view: View) -> Batch | None:
    """Source: the current batch and one draw from memory in one pass; None where only an empty memory is asked."""
    return None if view.which == "memory" and view.draw() is None else view.joined()


both.memory = True  # type: ignore[attr-defined]


def labels(view: View, batch: Batch) -> Tensor:
    """Target: the labels; with Φ = log-sum-exp the exact limit s → ∞ of z = s·e_y, which is cross-entropy."""
    return batch.y


def stored(view: View, batch: Batch) -> Tensor | None:
    """Target: the logits stored when the sample entered the memory."""
    return batch.logits


def previous(view: View, batch: Batch) -> Tensor | None:
    """Target: the outputs of the network as it was when the last task ended; None in the first task."""
    return view.previous(batch)


def uniform(view: View, batch: Batch) -> Tensor:
    """Target: no preference, as logits (zeros)."""
    return torch.zeros(len(batch), view.learner.classes, device=batch.y.device)


def logits(u: Tensor) -> Tensor:
    """Space: the outputs themselves."""
    return u


def probabilities(u: Tensor) -> Tensor:
    """Space: softmax of the outputs."""
    return u.softmax(-1)


class Term(ABC):
    """One summand of the objective: ``weight`` × :meth:`value`. A weight of 0 is never evaluated.

    State (anchors, importances) lives in the term and is saved with the run.
    """

    weight: float = 1.0
    part: Literal["data", "output", "weight"] = "output"
    of_memory: bool = False
    """It reads the memory (for unlearning the memory alone, and for telling whether one is active)."""
    uses_old: bool = False
    """It needs the network as it was when the last task ended."""
    watches: bool = False
    """It wants to know every update (:meth:`updated`)."""

    @abstractmethod
    def value(self, view: View) -> Tensor | None:
        """The divergence or loss, shape (); None while there is nothing to compare with."""

    def begin_task(self, learner: "Learner") -> None:  # noqa: B027 (most terms have nothing to do)
        """A task begins (never called on a stream without boundaries)."""

    def end_task(self, learner: "Learner") -> None:  # noqa: B027
        """A task has ended; the learner still holds its data."""

    def updated(self, view: View, gradients: Sequence[Tensor | None], before: Sequence[Tensor]) -> None:  # noqa: B027
        """An update was made with these gradients; ``before`` are the weights that they were applied to."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over a state that :meth:`state_dict` gave."""


class TaskLoss(Term):
    """Cross-entropy of the labels, mean over the batch; the part that every method has.

    Args:
        source: the current batch, or :func:`both` for one concatenated pass.
        classes: columns of the softmax: "all", "seen" so far, "current" (those of this task), "present" (those
            in this batch). Samples of memory in a joined batch always see all columns ("present" is ER-ACE).
        weight: factor.
    """

    part = "data"

    def __init__(
        self,
        source: Source = current,
        classes: Literal["all", "seen", "current", "present"] = "all",
        weight: float = 1.0,
    ) -> None:
        self.source, self.classes, self.weight = source, classes, weight
        self.of_memory = bool(getattr(source, "memory", False))

    def value(self, view: View) -> Tensor | None:
        """Shape (); the factor ``data_weight`` of the view counts for samples of the current batch only."""
        batch = self.source(view)
        if batch is None:
            return None
        out = view.output(batch)
        allowed = view.columns(batch)
        if allowed is None and self.classes != "all":
            learner = view.learner
            if self.classes == "present":
                allowed = torch.zeros(learner.classes, dtype=torch.bool, device=out.device)
                allowed[batch.y] = True
            else:
                allowed = learner.seen if self.classes == "seen" else learner.current
        if allowed is not None:
            out = out.masked_fill(~allowed, -torch.inf)
        factors = view.factors(batch, view.data_weight)
        if factors is None:
            return F.cross_entropy(out, batch.y)
        losses = F.cross_entropy(out, batch.y, reduction="none")
        if batch is view.batch:
            return view.data_weight * losses.mean()
        return (factors.to(losses) * losses).mean()


class Output(Term):
    """α D_Φ(output, target), mean over a source; the model is the first argument.

    Args:
        generator: Φ. With target :func:`labels`, log-sum-exp gives exact cross-entropy.
        source: where samples come from.
        target: z.
        weight: α.
        space: what of the outputs and targets Φ acts on.
        columns: classes compared (with labels: the columns of the softmax), from a learner to a bool (C,) tensor;
            None for all.
    """

    part = "output"

    def __init__(
        self,
        generator: Generator,
        source: Source,
        target: Target,
        weight: float,
        space: Space = logits,
        columns: "Callable[[Learner], Tensor] | None" = None,
    ) -> None:
        if weight < 0:
            raise ConfigError("the weight of an output term must not be negative", found=weight)
        if target is labels and not isinstance(generator, LogSumExp):
            raise ConfigError(
                "labels are a target of log-sum-exp only: for other Φ their divergence has no finite limit",
                found=type(generator).__name__,
                fix="use LogSumExp(), or a target of logits",
            )
        self.generator, self.source, self.target, self.weight = generator, source, target, weight
        self.space, self.columns = space, columns
        self.of_memory = bool(getattr(source, "memory", False))
        self.uses_old = target is previous

    def value(self, view: View) -> Tensor | None:
        """Shape (); None without samples or targets."""
        batch = self.source(view)
        if batch is None:
            return None
        z = self.target(view, batch)
        if z is None:
            return None
        out = view.output(batch)
        if z.dtype == torch.int64:
            assert isinstance(self.generator, LogSumExp)
            allowed = view.columns(batch)
            if self.columns is not None:
                keep = self.columns(view.learner)
                allowed = keep if allowed is None else allowed & keep
            out = out if allowed is None else out.masked_fill(~allowed, -torch.inf)
            return _mean(self.generator.to_label(out, z), view, batch)
        if self.columns is not None:
            keep = self.columns(view.learner)
            if not bool(keep.any()):
                return None
            out, z = out[:, keep], z[:, keep]
        return _mean(self.generator.divergence(self.space(out), self.space(z)), view, batch)


def _mean(losses: Tensor, view: View, batch: Batch) -> Tensor:
    """The mean over the samples (B,), with only those of the part asked for in the sum."""
    factors = view.factors(batch)
    return losses.mean() if factors is None else (factors.to(losses) * losses).mean()


class Anchor(Term):
    """β D_Ψ(θ, θ_old) with Ψ = ½ θᵀAθ; the state is θ_old and A.

    ``curvature`` makes A from the saved tensors ``importance``; subclasses fill both when a task ends.
    """

    part = "weight"

    def __init__(self, weight: float) -> None:
        if weight < 0:
            raise ConfigError("the weight of a weight term must not be negative", found=weight)
        self.weight = weight
        self.anchor: list[Tensor] | None = None
        self.importance: list[Tensor] | None = None
        self._curvature: Curvature | None = None

    @abstractmethod
    def curvature(self) -> Curvature:
        """A, from ``importance``."""

    def set(self, anchor: Sequence[Tensor], importance: Sequence[Tensor]) -> None:
        """Take copies of a new θ_old and importances."""
        self.anchor = [t.detach().clone() for t in anchor]
        self.importance = [t.detach().clone() for t in importance]
        self._curvature = None

    def value(self, view: View) -> Tensor | None:
        """Shape (); None before the first task has ended."""
        if self.anchor is None:
            return None
        if self._curvature is None:
            self._curvature = self.curvature()
        return Quadratic(self._curvature).divergence(view.params, self.anchor)

    def state_dict(self) -> dict[str, Any]:
        """The anchor and the importances."""
        return {"anchor": self.anchor, "importance": self.importance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved anchor and importances."""
        self.anchor, self.importance, self._curvature = state["anchor"], state["importance"], None


class Objective:
    """The sum of a method's terms."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = list(terms)
        if not any(term.part == "data" for term in self.terms):
            raise ConfigError("a method needs a task loss", found=[type(t).__name__ for t in self.terms])

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

    @property
    def has_memory(self) -> bool:
        """A term with a weight reads the memory."""
        return any(term.of_memory and term.weight != 0 for term in self.terms)

    def state_dict(self) -> dict[str, Any]:
        """The state of every term."""
        return {"terms": [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        for term, saved in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(saved)
