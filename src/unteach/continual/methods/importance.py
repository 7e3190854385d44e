"""Quadratic penalties with other weights than the Fisher information: L2-SP, SI, MAS, RWalk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.terms import Anchor, TaskLoss, Term
from unteach.continual.view import View
from unteach.core.curvature import Curvature, Diagonal, Identity, differences
from unteach.core.fisher import mas


class L2SPTerm(Anchor):
    """½‖θ - θ_old‖²."""

    def curvature(self) -> Curvature:
        """A = I."""
        return Identity()

    def end_task(self, learner: Learner) -> None:
        """Move the anchor."""
        self.set(learner.params, [])


@methods.add("l2-sp")
@dataclass(frozen=True, kw_only=True)
class L2SP(Method):
    """CE + β/2·‖θ - θ_old‖² (Li et al. 2018): the control of every importance.

    Args:
        strength: β.
    """

    boundaries: ClassVar[bool] = True

    strength: float = setting(0.1, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the distance to the last weights."""
        return [TaskLoss(), L2SPTerm(self.strength)]


class SITerm(Anchor):
    """½ (θ - θ_old)ᵀ diag(Ω) (θ - θ_old) with Ω from the path of the weights (Zenke et al. 2017).

    ω sums -g·Δθ over the task's updates, g the gradient less that of this penalty; at the task's end
    Ω += max(0, ω / (Δ² + ξ)), Δ the whole move in the task. Without the clamp a weight may be negative, and the
    penalty is then no Bregman divergence.
    """

    watches = True
    saved = (*Anchor.saved, "path", "start")

    def __init__(self, weight: float, xi: float) -> None:
        super().__init__(weight)
        self.xi = xi
        self.path: list[Tensor] | None = None
        self.start: list[Tensor] | None = None

    def curvature(self) -> Curvature:
        """A = diag Ω."""
        assert self.importance is not None
        return Diagonal(tuple(self.importance))

    def begin_task(self, learner: Learner) -> None:
        """Begin a path."""
        self.start = [p.detach().clone() for p in learner.params]
        self.path = [torch.zeros_like(p) for p in learner.params]

    @torch.no_grad()
    def updated(self, view: View, gradients: Sequence[Tensor | None], before: Sequence[Tensor]) -> None:
        """Add this update's share of the fall of the loss, to first order."""
        assert self.path is not None
        for w, g, p, old in zip(self.path, self.without(gradients, before), view.params, before, strict=True):
            if g is not None:
                w.addcmul_(g, p - old, value=-1)

    def without(self, gradients: Sequence[Tensor | None], before: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradients at ``before`` less this term's own."""
        if self.anchor is None or self.weight == 0:
            return gradients
        own = (self._curvature or self.curvature()).times(differences(before, self.anchor))
        return [None if g is None else g - self.weight * o for g, o in zip(gradients, own, strict=True)]

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Turn the path into weights and move the anchor."""
        assert self.path is not None and self.start is not None
        parts = zip(self.path, learner.params, self.start, strict=True)
        new = [(w / ((p - s).square() + self.xi)).clamp_min(0) for w, p, s in parts]
        old = self.importance or [torch.zeros_like(n) for n in new]
        self.set(learner.params, [a + b for a, b in zip(old, new, strict=True)])


@methods.add("si")
@dataclass(frozen=True, kw_only=True)
class SI(Method):
    """Synaptic intelligence: CE + c·ΣΩ(θ - θ_old)², so β = 2c.

    Args:
        strength: c.
        xi: ξ, keeps weights that hardly moved from becoming important.
    """

    form: ClassVar[Form] = "exact given the weights"
    boundaries: ClassVar[bool] = True

    strength: float = setting(1.0, low=0)
    xi: float = setting(0.1, above=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the quadratic."""
        return [TaskLoss(), SITerm(2 * self.strength, self.xi)]


class MASTerm(Anchor):
    """½ (θ - θ_old)ᵀ diag(Ω) (θ - θ_old), Ω = Σ_tasks E|∂‖h‖²/∂θ| (Aljundi et al. 2018)."""

    def __init__(self, weight: float, samples: int) -> None:
        super().__init__(weight)
        self.samples = samples

    def curvature(self) -> Curvature:
        """A = diag Ω."""
        assert self.importance is not None
        return Diagonal(tuple(self.importance))

    def end_task(self, learner: Learner) -> None:
        """Add this task's sensitivity (no labels needed) and move the anchor."""
        data = learner.batches("fisher", limit=self.samples or None)
        params = dict(zip(learner.names, learner.params, strict=True))
        new = list(mas(learner.model, ((batch.x, batch.y) for batch in data), params=params).values())
        old = self.importance or [torch.zeros_like(n) for n in new]
        self.set(learner.params, [a + b for a, b in zip(old, new, strict=True)])


@methods.add("mas")
@dataclass(frozen=True, kw_only=True)
class MAS(Method):
    """Memory aware synapses: CE + λ·ΣΩ(θ - θ_old)², so β = 2λ.

    Args:
        strength: λ.
        samples: most samples of the task; 0 takes all.
    """

    form: ClassVar[Form] = "exact given the weights"
    boundaries: ClassVar[bool] = True

    strength: float = setting(0.01, low=0)
    samples: int = setting(1024, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the quadratic."""
        return [TaskLoss(), MASTerm(2 * self.strength, self.samples)]


class RWalkTerm(SITerm):
    """RWalk (Chaudhry et al. 2018): weights F̃ + s, both scaled to [0, 1].

    F̃ is a moving average of squared batch gradients (less this penalty's); s sums max(0, -g·Δθ) / (½F̃Δθ² + ε) over
    updates, and is halved with the one before when a task ends.
    """

    saved = (*SITerm.saved, "fisher", "score")

    def __init__(self, weight: float, decay: float, epsilon: float) -> None:
        super().__init__(weight, epsilon)
        self.decay = decay
        self.fisher: list[Tensor] | None = None
        self.score: list[Tensor] | None = None

    def begin_task(self, learner: Learner) -> None:
        """Begin a path; the moving average goes on."""
        super().begin_task(learner)
        if self.fisher is None:
            self.fisher = [torch.zeros_like(p) for p in learner.params]

    @torch.no_grad()
    def updated(self, view: View, gradients: Sequence[Tensor | None], before: Sequence[Tensor]) -> None:
        """Move the average, and score the update."""
        assert self.path is not None and self.fisher is not None
        loss = self.without(gradients, before)
        for w, f, g, p, old in zip(self.path, self.fisher, loss, view.params, before, strict=True):
            if g is not None:
                f.mul_(self.decay).addcmul_(g, g, value=1 - self.decay)
                move = p - old
                w += (-g * move).clamp_min(0) / (0.5 * f * move.square() + self.xi)

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Weights of this task, and the anchor moves."""
        assert self.path is not None and self.fisher is not None
        fresh = self.path
        self.score = fresh if self.score is None else [0.5 * (a + b) for a, b in zip(self.score, fresh, strict=True)]
        parts = zip(_scaled(self.fisher), _scaled(self.score), strict=True)
        self.set(learner.params, [f + s for f, s in parts])


def _scaled(tensors: Sequence[Tensor]) -> list[Tensor]:
    most = torch.stack([t.max() for t in tensors]).max().clamp_min(1e-38)
    return [t / most for t in tensors]


@methods.add("rwalk")
@dataclass(frozen=True, kw_only=True)
class RWalk(Method):
    """CE + λ·Σ(F̃ + s)(θ - θ_old)², so β = 2λ. Its memory of samples in the paper is ER's term: "rwalk + er".

    Args:
        strength: λ.
        decay: decay of the moving average of squared gradients.
        epsilon: keeps the scores finite.
    """

    form: ClassVar[Form] = "exact given the weights"
    boundaries: ClassVar[bool] = True

    strength: float = setting(1.0, low=0)
    decay: float = setting(0.9, low=0, high=1)
    epsilon: float = setting(1e-3, above=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the quadratic."""
        return [TaskLoss(), RWalkTerm(2 * self.strength, self.decay, self.epsilon)]
