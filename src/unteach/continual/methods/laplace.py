"""Laplace approximations of the posterior: diagonal and Kronecker-factored precision, added up over tasks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.methods.ewc import FisherMethod
from unteach.continual.terms import Anchor, TaskLoss, Term
from unteach.continual.view import View
from unteach.core.bregman import Quadratic
from unteach.core.curvature import Curvature, Diagonal, Identity, Kronecker
from unteach.core.fisher import kronecker


class LaplaceTerm(Anchor):
    """½ (θ - θ_old)ᵀ Λ (θ - θ_old) / N with Λ = prior + Σ_tasks N_k F_k; per sample, as the task loss is.

    With weight 1 the minimum is the maximum of the second-order posterior. Before the first task has ended the
    quadratic is the prior's, around 0.
    """

    saved = (*Anchor.saved, "samples")

    def __init__(self, method: "Laplace") -> None:
        super().__init__(method.strength)
        self.method, self.samples = method, 1

    def begin_task(self, learner: Learner) -> None:
        """Count the samples; the first task's anchor is the prior's mean, 0."""
        self.samples = sum(len(learner.data[task][1]) for task in learner.stage_tasks)
        if self.anchor is None:
            prior = [torch.full_like(p, self.method.prior) for p in learner.params]
            self.set([torch.zeros_like(p) for p in learner.params], prior)

    def curvature(self) -> Curvature:
        """A = diag Λ."""
        assert self.importance is not None
        return Diagonal(tuple(self.importance))

    def value(self, view: View) -> Tensor | None:
        """Shape ()."""
        found = super().value(view)
        return None if found is None else found / self.samples

    def end_task(self, learner: Learner) -> None:
        """Add this task's precision and move the anchor."""
        assert self.importance is not None
        new = self.method.information(learner)
        self.set(learner.params, [a + self.samples * f for a, f in zip(self.importance, new, strict=True)])


@methods.add("laplace")
@dataclass(frozen=True, kw_only=True)
class Laplace(FisherMethod):
    """Online Laplace with a diagonal precision Λ = prior + Σ N_k F_k around the last weights.

    Args:
        strength: β; 1 is the second-order posterior.
        prior: precision of the Gaussian prior around 0.
    """

    strength: float = setting(1.0, low=0)
    prior: float = setting(1.0, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the posterior's quadratic."""
        return [TaskLoss(), LaplaceTerm(self)]


class KFACTerm(Anchor):
    """½ Σ_layers tr(ΔᵀG Δ A)·N/N_now + ½·prior·‖Δ‖², factors added up over tasks (Ritter et al. 2018, §3).

    A sum of Kronecker products is not one; as is usual the factors are summed, each damped by ``damping``.
    """

    saved = ("anchor", "factors", "samples")

    def __init__(self, method: "KroneckerLaplace") -> None:
        super().__init__(method.strength)
        self.method, self.samples = method, 1
        self.factors: dict[str, list[Tensor]] = {}
        self.names: list[str] = []

    def begin_task(self, learner: Learner) -> None:
        """Count the samples."""
        self.samples = sum(len(learner.data[task][1]) for task in learner.stage_tasks)

    def curvature(self) -> Curvature:
        """A, from the layers' factors; a bias is in its weight's block."""
        blocks = {f"{layer}.weight": (a, g) for layer, (a, g) in self.factors.items()}
        return Kronecker([blocks.get(name) for name in self.names])

    def value(self, view: View) -> Tensor | None:
        """Shape ()."""
        if self.anchor is None:
            return None
        self.names = view.learner.names
        found = super().value(view)
        assert found is not None
        total = found + self.method.prior * Quadratic(Identity()).divergence(view.params, self.anchor)
        return total / self.samples

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Add this task's factors and move the anchor."""
        limit = self.method.fisher_samples or None
        data = ((batch.x, batch.y) for batch in learner.batches("fisher", limit=limit))
        with torch.enable_grad():
            new = kronecker(
                learner.model, data, kind=self.method.factor, generator=learner.generator("kfac", learner.task)
            )
        root = self.samples**0.5
        for layer, (a, g) in new.items():
            a, g = (m + self.method.damping * torch.eye(len(m), device=m.device) for m in (a, g))
            old = self.factors.get(layer)
            self.factors[layer] = [root * a, root * g] if old is None else [old[0] + root * a, old[1] + root * g]
        self.anchor = [p.detach().clone() for p in learner.params]
        self._curvature = None


@methods.add("kronecker-laplace")
@dataclass(frozen=True, kw_only=True)
class KroneckerLaplace(Method):
    """Online Laplace with Kronecker-factored precision (Ritter et al. 2018); norm layers have the prior's alone.

    Args:
        strength: β.
        prior: precision of a Gaussian around the last weights, of every weight.
        damping: added to both factors' diagonals.
        factor: labels of the factors: the model's own (all, or one drawn), or the true ones.
        fisher_samples: most samples of the task; 0 takes all.
    """

    form: ClassVar[Form] = "exact given the weights"
    boundaries: ClassVar[bool] = True

    strength: float = setting(1.0, low=0)
    prior: float = setting(1.0, low=0)
    damping: float = setting(1e-3, low=0)
    factor: Literal["exact", "sampled", "empirical"] = "sampled"
    fisher_samples: int = setting(1024, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the quadratic."""
        return [TaskLoss(), KFACTerm(self)]
