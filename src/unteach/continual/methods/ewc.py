"""Elastic weight consolidation: a quadratic around old weights, the Fisher information its curvature."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.terms import Anchor, TaskLoss, Term
from unteach.core.curvature import Curvature, Diagonal, collapse
from unteach.core.fisher import fisher

Kind = Literal["exact", "empirical", "sampled", "official", "batch"]


@dataclass(frozen=True, kw_only=True)
class FisherMethod(Method):
    """Settings shared by methods that look at the Fisher information when a task ends.

    Args:
        strength: λ; the penalty is λ/2·ΣF(θ - θ_old)². Code without the ½ (Mammoth) has half of it.
        fisher: which Fisher information (mean over samples, batch norm in evaluation mode); "official" is the
            refresh and Mammoth codes', p(y|x)·g_y² at the true label.
        fisher_samples: most samples of the task; 0 takes all.
    """

    form: ClassVar[Form] = "exact given the weights"
    boundaries: ClassVar[bool] = True

    strength: float = setting(10.0, low=0)
    fisher: Kind = "exact"
    fisher_samples: int = setting(1024, low=0)

    def information(self, learner: Learner) -> list[Tensor]:
        """The diagonal of the Fisher information on this task's data, one tensor a parameter."""
        data = learner.batches("fisher", limit=self.fisher_samples or None)
        found = fisher(
            learner.model,
            ((batch.x, batch.y) for batch in data),
            kind=self.fisher,
            params=dict(zip(learner.names, learner.params, strict=True)),
            generator=learner.generator("fisher labels", learner.task),
        )
        return list(found.values())


class FisherAnchor(Anchor):
    """β D_Ψ(θ, θ_old) with Ψ = ½ θᵀFθ.

    Args:
        method: λ and the kind of F.
        decay: F̃_t = decay·F̃_{t-1} + F_t around θ_{t-1}; None adds one quadratic a task, each around its own
            weights: Σ F_k(θ - θ_k)² is, up to a constant, one quadratic of ΣF_k around (ΣF_k)⁻¹ΣF_kθ_k.
    """

    def __init__(self, method: FisherMethod, decay: float | None = None) -> None:
        super().__init__(method.strength)
        self.method, self.decay = method, decay

    def curvature(self) -> Curvature:
        """A = diag F."""
        assert self.importance is not None
        return Diagonal(tuple(self.importance))

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Move the anchor, add this task's information."""
        new, now = self.method.information(learner), [p.detach() for p in learner.params]
        if self.importance is None or self.anchor is None:
            self.set(now, new)
        elif self.decay is not None:
            self.set(now, [self.decay * old + f for old, f in zip(self.importance, new, strict=True)])
        else:
            total, anchor = collapse([self.importance, new], [self.anchor, now])
            self.set(anchor, total.diagonal)


@methods.add("ewc")
@dataclass(frozen=True, kw_only=True)
class EWC(FisherMethod):
    """One quadratic a task around its own weights (Kirkpatrick et al. 2017), kept as a single equal quadratic."""

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the collapsed quadratics."""
        return [TaskLoss(), FisherAnchor(self)]


@methods.add("online-ewc")
@dataclass(frozen=True, kw_only=True)
class OnlineEWC(FisherMethod):
    """One quadratic around the last weights, F̃_t = γF̃_{t-1} + F_t (Schwarz et al. 2018).

    Args:
        decay: γ.
    """

    decay: float = setting(1.0, low=0, high=1)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the quadratic."""
        return [TaskLoss(), FisherAnchor(self, self.decay)]
