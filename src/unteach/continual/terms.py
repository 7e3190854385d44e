"""Terms of the objective, and rules on its gradient: what the methods are made of (refresh.md §1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unteach.continual.batch import Batch
from unteach.continual.learner import Learner
from unteach.continual.sources import CurrentBatch, Labels, Source, Space, Target, logits
from unteach.continual.view import View
from unteach.core.bregman import Generator, LogSumExp, Quadratic
from unteach.core.curvature import Curvature
from unteach.errors import ConfigError

__all__ = ["Anchor", "Output", "Rule", "TaskLoss", "Term"]


class _Saved:
    """Something whose attributes named in ``saved`` must survive an interruption."""

    saved: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """The saved attributes."""
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for name in self.saved:
            setattr(self, name, state[name])


class Term(_Saved, ABC):
    """One summand of the objective: ``weight`` × :meth:`value`. A weight of 0 is never evaluated.

    State (anchors, importances) lives in the term; the attributes that ``saved`` names are saved with the run.
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

    def begin_task(self, learner: Learner) -> None:
        """A task begins (never called on a stream without boundaries)."""

    def end_task(self, learner: Learner) -> None:
        """A task has ended; the learner still holds its data."""

    def updated(self, view: View, gradients: Sequence[Tensor | None], before: Sequence[Tensor]) -> None:
        """An update was made with these gradients; ``before`` are the weights that they were applied to."""


class TaskLoss(Term):
    """Cross-entropy of the labels, mean over the batch; the part that every method has.

    Args:
        source: the current batch, or :class:`BothBatches` for one concatenated pass.
        classes: columns of the softmax: "all", "seen" so far, "current" (those of this task), "present" (those
            in this batch). Samples of memory in a joined batch always see all columns ("present" is ER-ACE).
        weight: factor.
    """

    part = "data"

    def __init__(
        self,
        source: Source | None = None,
        classes: Literal["all", "seen", "current", "present"] = "all",
        weight: float = 1.0,
    ) -> None:
        self.source, self.classes, self.weight = source or CurrentBatch(), classes, weight
        self.of_memory = self.source.of_memory

    def value(self, view: View) -> Tensor | None:
        """Shape (); the factor ``data_weight`` of the view counts for samples of the current batch only."""
        batch = self.source.batch(view)
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
        generator: Φ. With :class:`Labels` as target, log-sum-exp gives exact cross-entropy.
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
        columns: Callable[[Learner], Tensor] | None = None,
    ) -> None:
        if weight < 0:
            raise ConfigError("the weight of an output term must not be negative", found=weight)
        if isinstance(target, Labels) and not isinstance(generator, LogSumExp):
            raise ConfigError(
                "labels are a target of log-sum-exp only: for other Φ their divergence has no finite limit",
                found=type(generator).__name__,
                fix="use LogSumExp(), or a target of logits",
            )
        self.generator, self.source, self.target, self.weight = generator, source, target, weight
        self.space, self.columns = space, columns
        self.of_memory, self.uses_old = source.of_memory, target.uses_old

    def value(self, view: View) -> Tensor | None:
        """Shape (); None without samples or targets."""
        batch = self.source.batch(view)
        if batch is None:
            return None
        z = self.target.of(view, batch)
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
    saved: ClassVar[tuple[str, ...]] = ("anchor", "importance")

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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved anchor and importances."""
        super().load_state_dict(state)
        self._curvature = None


class Rule(_Saved, ABC):
    """A rule on the gradient of the objective: projections such as A-GEM, OGD, GPM; state as in :class:`Term`."""

    @abstractmethod
    def apply(self, view: View, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients to use in place of these; one entry a parameter."""

    def begin_task(self, learner: Learner) -> None:
        """A task begins."""

    def end_task(self, learner: Learner) -> None:
        """A task has ended."""
