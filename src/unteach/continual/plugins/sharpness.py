"""The neighbours of refresh: the gradient is taken beside the weights, and the weights are restored (refresh §2.4).

All are strength 0 = the host's own step, bit for bit. Extra passes leave the statistics of batch norm alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unteach.continual.plugins.base import GradientPlugin, Gradients, plugins, setting
from unteach.continual.step import StepContext
from unteach.core.ascent import Noise, adaptive, climb_, normalise


def _known(gradients: Gradients, context: StepContext) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients that there are, and their parameters."""
    pairs = [(g, param) for g, param in zip(gradients, context.params, strict=True) if g is not None]
    return [g for g, _ in pairs], [param for _, param in pairs]


def _gradient_at(
    context: StepContext, params: list[Tensor], moves: list[Tensor], size: float, *, frozen: bool
) -> Gradients:
    """The host's gradient at θ + size · move; θ is restored bit for bit."""
    before = [param.detach().clone() for param in params]
    climb_(params, moves, size)
    gradient = context.gradient(frozen_stats=frozen)
    if params:
        with torch.no_grad():
            torch._foreach_copy_(params, before)
    return gradient


@plugins.add("sam")
@dataclass(frozen=True, kw_only=True)
class SAM(GradientPlugin):
    """Sharpness-aware minimisation (Foret et al., ICLR 2021): descend ∇L(θ + ρ g/‖g‖) from θ.

    Args:
        rho: ρ, radius.
    """

    rho: float = setting(0.05, low=0)

    def gradient(self, context: StepContext) -> Gradients:
        """∇L at the end of the ascent step."""
        if self.rho == 0:
            return context.gradient()
        found, params = _known(context.gradient(frozen_stats=True), context)
        return _gradient_at(context, params, normalise(found, params, "global"), self.rho, frozen=False)


@plugins.add("asam")
@dataclass(frozen=True, kw_only=True)
class ASAM(GradientPlugin):
    """Adaptive SAM (Kwon et al., ICML 2021): as SAM in the space scaled by T = |θ| + η, elementwise, all tensors.

    Args:
        rho: ρ, radius in the scaled space.
        eta: η, floor of the scale.
    """

    rho: float = setting(0.5, low=0)
    eta: float = setting(0.01, low=0)

    def gradient(self, context: StepContext) -> Gradients:
        """∇L at θ + ρ T² g/‖T g‖."""
        if self.rho == 0:
            return context.gradient()
        found, params = _known(context.gradient(frozen_stats=True), context)
        return _gradient_at(context, params, adaptive(found, params, self.eta), self.rho, frozen=False)


@plugins.add("gradient-norm")
@dataclass(frozen=True, kw_only=True)
class GradientNorm(GradientPlugin):
    """Gradient-norm penalty (Zhao et al., ICML 2022): descend (1 − a) g + a ∇L(θ + r g/‖g‖), about L + a r ‖∇L‖.

    Args:
        alpha: a, balance; 0 is the host, 1 is SAM.
        radius: r.
    """

    alpha: float = setting(0.8, low=0, high=1)
    radius: float = setting(0.05, above=0)

    def gradient(self, context: StepContext) -> Gradients:
        """The mixture of the two gradients; a tensor that only one of them reaches has 0 in the other."""
        here = context.gradient()
        if self.alpha == 0:
            return here
        found, params = _known(here, context)
        there = _gradient_at(context, params, normalise(found, params, "global"), self.radius, frozen=True)
        return [_mix(a, b, self.alpha) for a, b in zip(here, there, strict=True)]


def _mix(a: Tensor | None, b: Tensor | None, weight: float) -> Tensor | None:
    if a is None:
        return None if b is None else b * weight
    return a * (1 - weight) if b is None else torch.lerp(a, b, weight)


@plugins.add("weight-noise")
@dataclass(frozen=True, kw_only=True)
class WeightNoise(GradientPlugin):
    """Descend ∇L(θ + σ ξ) from θ, with ξ ~ N(0, I) drawn anew in every step.

    Args:
        sigma: σ, standard deviation a weight.
    """

    sigma: float = setting(0.01, low=0)

    def gradient(self, context: StepContext) -> Gradients:
        """∇L beside θ."""
        if self.sigma == 0:
            return context.gradient()
        params: list[Tensor] = list(context.params)
        noise = Noise(params).draw(context.generator("weight-noise"))
        return _gradient_at(context, params, noise, self.sigma, frozen=False)
