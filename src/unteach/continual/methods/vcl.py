"""Variational continual learning (Nguyen et al. 2018) and its natural-gradient form (NVCL, Tseran et al. 2018)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.terms import TaskLoss, Term
from unteach.continual.view import View
from unteach.core.bregman import gaussian_kl


class MeanField(nn.Module):
    """A network whose weights are independent Gaussians: training passes draw them, evaluation uses the means.

    Args:
        network: gives the means and the architecture; its own weights follow the means (:meth:`settle`).
        log_std: initial log standard deviation.
    """

    random = True

    def __init__(self, network: nn.Module, log_std: float) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.keys = [name for name, _ in network.named_parameters()]
        values = dict(network.named_parameters())
        self.mean = nn.ParameterList([values[key].detach().clone() for key in self.keys])
        self.log_std = nn.ParameterList([torch.full_like(values[key], log_std) for key in self.keys])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of one draw of the weights (training) or of their means (evaluation)."""
        if self.training:
            pairs = zip(self.mean, self.log_std, strict=True)
            weights = [m + s.exp() * torch.randn_like(m) for m, s in pairs]
        else:
            weights = list(self.mean)
        out: Tensor = functional_call(self.network, dict(zip(self.keys, weights, strict=True)), (x,))
        return out

    @torch.no_grad()
    def settle(self) -> None:
        """Put the means into the network's own weights."""
        own = dict(self.network.named_parameters())
        for key, mean in zip(self.keys, self.mean, strict=True):
            own[key].copy_(mean)


class Posterior(Term):
    """β·KL(q ‖ q_old) = β D_{A*} of the Gaussians' mean parameters; per sample of the task, as the task loss is.

    Args:
        weight: β.
        prior_std: standard deviation of the first prior, around 0.
    """

    part = "weight"
    saved = ("mean", "log_std", "samples")

    def __init__(self, weight: float, prior_std: float) -> None:
        self.weight, self.prior_std = weight, prior_std
        self.mean: list[Tensor] | None = None
        self.log_std: list[Tensor] | None = None
        self.samples = 1

    def begin_task(self, learner: Learner) -> None:
        """Count the task's samples."""
        self.samples = sum(len(learner.data[task][1]) for task in learner.stage_tasks)

    def value(self, view: View) -> Tensor:
        """KL divided by the number of samples, shape ()."""
        mean, log_std = _halves(view.params)
        old_mean = self.mean or [torch.zeros_like(m) for m in mean]
        old_std = self.log_std or [torch.full_like(m, math.log(self.prior_std)) for m in mean]
        parts = [
            gaussian_kl(m, (2 * s).exp(), a, (2 * b).exp())
            for m, s, a, b in zip(mean, log_std, old_mean, old_std, strict=True)
        ]
        return torch.stack(parts).sum() / self.samples

    def end_task(self, learner: Learner) -> None:
        """The posterior is the next prior."""
        mean, log_std = _halves(learner.params)
        self.mean, self.log_std = [m.detach().clone() for m in mean], [s.detach().clone() for s in log_std]


def _halves(params: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    half = len(params) // 2
    return list(params[:half]), list(params[half:])


@methods.add("vcl")
@dataclass(frozen=True, kw_only=True)
class VCL(Method):
    """E_q[CE] + β·KL(q ‖ q_old)/N, q a mean-field Gaussian over the weights. A coreset is ER's term: "vcl + er".

    Args:
        beta: β; 1 is the variational bound.
        prior_std: standard deviation of the first prior.
        initial_std: standard deviation of q at the start.
    """

    form: ClassVar[Form] = "exact"
    boundaries: ClassVar[bool] = True

    beta: float = setting(1.0, low=0)
    prior_std: float = setting(1.0, above=0)
    initial_std: float = setting(0.05, above=0)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with Gaussian weights."""
        return MeanField(network, math.log(self.initial_std))

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss under drawn weights, and the divergence from the last posterior."""
        return [TaskLoss(), Posterior(self.beta, self.prior_std)]

    def end_task(self, learner: Learner) -> None:
        """Leave the means in the network."""
        assert isinstance(learner.model, MeanField)
        learner.model.settle()


class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient step for mean-field Gaussians given as (means, log standard deviations).

    With S = 1/σ² and the objective L per sample, N samples: S ← S + ρ·2N ∂L/∂σ², m ← m - ρ N ∂L/∂m / S
    (Khan and Nielsen 2018). S is kept within a factor of two a step and never negative.

    Args:
        params: means, then log standard deviations, alike in number and shape.
        lr: ρ.
        samples: function that gives N.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, samples: Callable[[], int]) -> None:
        super().__init__(params, {"lr": lr})
        self.samples = samples

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        group = self.param_groups[0]
        mean, log_std = _halves(group["params"])
        n = self.samples()
        for m, s in zip(mean, log_std, strict=True):
            if m.grad is None or s.grad is None:
                continue
            precision = (-2 * s).exp()
            gradient = s.grad * precision / 2  # ∂L/∂σ²
            moved = (precision + group["lr"] * 2 * n * gradient).clamp(min=precision / 2, max=precision * 2)
            s.copy_(-0.5 * moved.log())
            m.sub_(group["lr"] * n * m.grad / moved)


@methods.add("nvcl")
@dataclass(frozen=True, kw_only=True)
class NVCL(VCL):
    """VCL's objective under the natural-gradient step.

    Args:
        rate: ρ, in place of the learning rate.
    """

    rate: float = setting(0.02, above=0)

    def optimizer(self, learner: Learner) -> torch.optim.Optimizer:
        """The natural gradient, which knows the task's size."""

        def samples() -> int:
            return sum(len(learner.data[task][1]) for task in learner.stage_tasks)

        return NaturalGradient(learner.params, self.rate, samples)
