"""Guards that look at the gradients of the illegal and of the innocent loss once, and learn nothing."""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch

from unteach.core.loop import Step
from unteach.core.settings import setting
from unteach.diffusion.examples import Examples, mixed
from unteach.diffusion.model import Model
from unteach.guard.data import GuardData, losses
from unteach.guard.methods.base import Job, Scored, guards

__all__ = ["saliency"]


@dataclass(frozen=True, kw_only=True)
class Saliency(Scored, ABC):
    """Scores by gradients on the publisher's pictures.

    Args:
        samples: pictures of each side.
    """

    samples: int = setting(64, low=1)

    def sides(self, model: Model, data: GuardData, job: Job, *, squared: bool) -> tuple[dict[str, float], ...]:
        """:func:`saliency` of the illegal and of the innocent side."""
        parts = (mixed("illegal", data.illegal_publisher), mixed("innocent", data.innocent_publisher))
        return tuple(saliency(model, part, self.samples, job.seed, squared=squared) for part in parts)


@dataclass(frozen=True, kw_only=True)
class Ratio(Saliency, ABC):
    """The illegal side's over the innocent one's."""

    squared: ClassVar[bool]

    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """The ratio."""
        illegal, innocent = self.sides(model, data, job, squared=self.squared)
        return {name: value / max(innocent[name], 1e-30) for name, value in illegal.items()}


@guards.add("gradient-saliency")
@dataclass(frozen=True, kw_only=True)
class GradientSaliency(Ratio):
    """Mean |gradient| of the illegal loss over that of the innocent loss."""

    squared = False


@guards.add("fisher-saliency")
@dataclass(frozen=True, kw_only=True)
class FisherSaliency(Ratio):
    """Mean squared per-sample gradient, illegal over innocent (diagonal Fisher)."""

    squared = True


@guards.add("gradient-share")
@dataclass(frozen=True, kw_only=True)
class GradientShare(Saliency):
    """Where illegal data puts more of its gradient than innocent data does.

    A step of AdamW moves every entry by about the rate, so a tensor's part in the first fall of the loss is its share
    of Σ|mean gradient|; ordered by the illegal share less the innocent one. One look at the gradient, no learning.
    """

    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """The difference of the shares."""
        sizes = {name: value.numel() for name, value in model.denoiser.named_parameters()}
        shares = []
        for side in self.sides(model, data, job, squared=False):
            sums = {name: value * sizes[name] for name, value in side.items()}
            whole = max(sum(sums.values()), 1e-30)
            shares.append({name: value / whole for name, value in sums.items()})
        return {name: shares[0][name] - shares[1][name] for name in sizes}


def saliency(model: Model, examples: Examples, samples: int, seed: int, *, squared: bool) -> dict[str, float]:
    """Mean over a tensor's entries of |mean gradient|, or of the mean squared gradient, over single samples.

    Noise and timesteps are the same for every set, so a ratio compares data alone.

    Args:
        model: whose denoiser's gradients.
        examples: drawn from.
        samples: how many.
        seed: root of the draws.
        squared: the mean squared gradient.
    """
    params = dict(model.denoiser.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for value in params.values():
        value.requires_grad_(True)
    try:
        for k in range(samples):
            step = Step(k, samples, seed)
            row = step.randint("saliency rows", len(examples), [0])
            (loss,) = losses(model, [(examples.latents[row], examples.conditioning.index(row))], step, "saliency")
            grads = torch.autograd.grad(loss.mean(), list(params.values()), allow_unused=True)
            for name, grad in zip(params, grads, strict=True):
                if grad is not None:
                    total[name] += grad.square() if squared else grad
    finally:
        for value in params.values():
            value.requires_grad_(False)
    return {name: float(value.abs().mean()) / samples for name, value in total.items()}
