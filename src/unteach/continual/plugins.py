"""The neighbours of refresh, and the controls it must be compared with (refresh §2.4).

All are strength 0 = the host's own step, bit for bit. Extra passes leave the statistics of batch norm alone.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unteach.continual.plugin import Host, Learner, Plugin, Running, plugins, setting
from unteach.continual.refresh import Refresh
from unteach.core.ascent import Noise, adaptive, climb_, normalise
from unteach.errors import ConfigError

Gradients = list[Tensor | None]


class _Stateless(Running):
    """A step that is a function of the host alone."""

    def __init__(self, function: Callable[[Host], Gradients]) -> None:
        self._function = function

    def step(self, host: Host) -> Mapping[str, Tensor]:
        """The host's update with the gradient that the function gives."""
        host.update(self._function(host))
        return {}


@dataclass(frozen=True, kw_only=True)
class _ByGradient(Plugin):
    """A plug-in that only changes which gradient the host descends."""

    def start(self, learner: Learner) -> Running:
        """There is no state."""
        return _Stateless(self.gradient)

    @abstractmethod
    def gradient(self, host: Host) -> Gradients:
        """The gradient to descend; the parameters are as they were when this returns."""


def _known(gradients: Gradients, host: Host) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients that there are, and their parameters."""
    pairs = [(g, param) for g, param in zip(gradients, host.params, strict=True) if g is not None]
    return [g for g, _ in pairs], [param for _, param in pairs]


def _gradient_at(host: Host, params: list[Tensor], moves: list[Tensor], size: float, *, frozen: bool) -> Gradients:
    """The host's gradient at θ + size · move; θ is put back bit for bit."""
    before = [param.detach().clone() for param in params]
    climb_(params, moves, size)
    gradient = host.gradient(frozen_stats=frozen)
    if params:
        with torch.no_grad():
            torch._foreach_copy_(params, before)
    return gradient


@plugins.add("none")
@dataclass(frozen=True, kw_only=True)
class Plain(_ByGradient):
    """The host method as it is."""

    name: ClassVar[str] = "none"

    def gradient(self, host: Host) -> Gradients:
        """The host's own."""
        return host.gradient()


@plugins.add("sam")
@dataclass(frozen=True, kw_only=True)
class SAM(_ByGradient):
    """Sharpness-aware minimisation (Foret et al., ICLR 2021): descend ∇L(θ + ρ g/‖g‖) from θ.

    Args:
        rho: ρ, radius.
    """

    name: ClassVar[str] = "sam"

    rho: float = setting(0.05, low=0)

    def gradient(self, host: Host) -> Gradients:
        """∇L at the end of the climb."""
        if self.rho == 0:
            return host.gradient()
        slope, params = _known(host.gradient(frozen_stats=True), host)
        return _gradient_at(host, params, normalise(slope, params, "global"), self.rho, frozen=False)


@plugins.add("asam")
@dataclass(frozen=True, kw_only=True)
class ASAM(_ByGradient):
    """Adaptive SAM (Kwon et al., ICML 2021): as SAM in the space scaled by T = |θ| + η, elementwise, all tensors.

    Args:
        rho: ρ, radius in the scaled space.
        eta: η, floor of the scale.
    """

    name: ClassVar[str] = "asam"

    rho: float = setting(0.5, low=0)
    eta: float = setting(0.01, low=0)

    def gradient(self, host: Host) -> Gradients:
        """∇L at θ + ρ T² g/‖T g‖."""
        if self.rho == 0:
            return host.gradient()
        slope, params = _known(host.gradient(frozen_stats=True), host)
        return _gradient_at(host, params, adaptive(slope, params, self.eta), self.rho, frozen=False)


@plugins.add("gradient-norm")
@dataclass(frozen=True, kw_only=True)
class GradientNorm(_ByGradient):
    """Gradient-norm penalty (Zhao et al., ICML 2022): descend (1 − a) g + a ∇L(θ + r g/‖g‖), about L + a r ‖∇L‖.

    Args:
        alpha: a, balance; 0 is the host, 1 is SAM.
        radius: r.
    """

    name: ClassVar[str] = "gradient-norm"

    alpha: float = setting(0.8, low=0, high=1)
    radius: float = setting(0.05, above=0)

    def gradient(self, host: Host) -> Gradients:
        """The mixture of the two gradients; a tensor that only one of them reaches has 0 in the other."""
        here = host.gradient()
        if self.alpha == 0:
            return here
        slope, params = _known(here, host)
        there = _gradient_at(host, params, normalise(slope, params, "global"), self.radius, frozen=True)
        return [_mix(a, b, self.alpha) for a, b in zip(here, there, strict=True)]


def _mix(a: Tensor | None, b: Tensor | None, weight: float) -> Tensor | None:
    if a is None:
        return None if b is None else b * weight
    return a * (1 - weight) if b is None else torch.lerp(a, b, weight)


@plugins.add("weight-noise")
@dataclass(frozen=True, kw_only=True)
class WeightNoise(_ByGradient):
    """Descend ∇L(θ + σ ξ) from θ, with ξ ~ N(0, I) drawn anew in every step.

    Args:
        sigma: σ, standard deviation a weight.
    """

    name: ClassVar[str] = "weight-noise"

    sigma: float = setting(0.01, low=0)

    def gradient(self, host: Host) -> Gradients:
        """∇L beside θ."""
        if self.sigma == 0:
            return host.gradient()
        params: list[Tensor] = list(host.params)
        white = Noise(params).draw(host.generator("weight-noise"))
        return _gradient_at(host, params, white, self.sigma, frozen=False)


@plugins.add("reweight")
@dataclass(frozen=True, kw_only=True)
class Reweight(_ByGradient):
    """The host with the current batch's task loss × (1 − ratio): what refresh does to first order.

    Args:
        ratio: γ/η of the refresh step to compare with.
    """

    name: ClassVar[str] = "reweight"

    ratio: float = setting(1 / 3, low=0, high=1)

    def gradient(self, host: Host) -> Gradients:
        """The host's own; the weight comes in through :meth:`data_weight`."""
        return host.gradient()

    def data_weight(self, lr: float) -> float:
        """1 − ratio."""
        return 1.0 - self.ratio


@plugins.add("reduced-rate")
@dataclass(frozen=True, kw_only=True)
class ReducedRate(_ByGradient):
    """The host with its learning rate × (1 − ratio): what refresh on the host's whole loss does to first order.

    Args:
        ratio: γ/η of the refresh step to compare with.
    """

    name: ClassVar[str] = "reduced-rate"

    ratio: float = setting(1 / 3, low=0, high=1)

    def gradient(self, host: Host) -> Gradients:
        """The host's own; the factor comes in through :meth:`lr_factor`."""
        return host.gradient()

    def lr_factor(self) -> float:
        """1 − ratio."""
        return 1.0 - self.ratio


def controls(refresh: Refresh, lr: float) -> dict[str, Plugin]:
    """The arms that a run of ``refresh`` must be compared with at learning rate ``lr`` (refresh §2.4), by name.

    The noise arms are there only when ``refresh`` has noise. ``restored`` is SAM with refresh's own climb, so
    that the radius is the same in every step; ``reweight`` and ``reduced-rate`` take P for 1, J steps for J γ.

    Raises:
        ConfigError: γ is 0 or rescaled, so that no ratio γ/η matches it, or too large for one.
    """
    ratio = refresh.steps * refresh.rate(lr) / lr if lr > 0 else 0.0
    if refresh.normalise != "none" or not 0 < ratio <= 1:
        raise ConfigError(
            "no re-weighting matches this refresh: that takes 0 < J γ/η ≤ 1 and normalise='none'",
            found=f"J γ/η = {ratio:.3g}, normalise='{refresh.normalise}'",
            fix="choose gamma by its ratio to the learning rate, or pick the ratios of the controls by hand",
        )
    arms: dict[str, Plugin] = {
        "host": Plain(),
        "refresh": refresh,
        "reweight": Reweight(ratio=ratio),
        "reduced-rate": ReducedRate(ratio=ratio),
        "restored": replace(refresh, restore=True),
        "identity": replace(refresh, preconditioner="none"),
    }
    if refresh.noisy:
        arms["quiet"] = replace(refresh, temperature=0.0, noise=0.0)
        arms["noise-only"] = replace(refresh, drift=False)
    return arms
