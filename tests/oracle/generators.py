"""Generators that nothing is trained with: the conjugates of those that are, and Gaussians in both their parameters."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unteach.core.bregman import (
    Generator,
    LogSumExp,
    MeanSquare,
    NegEntropy,
    Softplus,
    Square,
    _gaussian_kl,
    _relative_entropy,
    _Squares,
)
from unteach.errors import ConfigError


def conjugate(phi: Generator) -> Generator:
    """Φ*, with which D_Φ(p, q) = D_Φ*(∇Φ(q), ∇Φ(p)) (refresh §1.1)."""
    match phi:
        case Square():
            return phi if phi.half else QuarterSquare()
        case MeanSquare():
            return QuarterSquare(times_width=True)
        case QuarterSquare():
            return MeanSquare() if phi.times_width else Square()
        case NegEntropy():
            return LogSumExp(temperature=phi.mass)
        case LogSumExp():
            return NegEntropy(mass=phi.temperature)
        case Softplus():
            return BinaryNegEntropy()
        case BinaryNegEntropy():
            return Softplus()
        case GaussianMean():
            return GaussianNatural()
    assert isinstance(phi, GaussianNatural)
    return GaussianMean()


def definition(phi: Generator, a: Tensor, b: Tensor) -> Tensor:
    """Φ(a) - Φ(b) - <∇Φ(b), a - b> as it is written: exact in principle, inexact for a close to b."""
    return phi.value(a) - phi.value(b) - (phi.gradient(b) * (a - b)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class QuarterSquare(_Squares):
    """Φ = ¼ Σ v², the conjugate of :class:`Square`; with ``times_width`` (C/4) Σ v², that of :class:`MeanSquare`."""

    name: ClassVar[str] = "quarter-square"
    times_width: bool = False

    def _scale(self, width: int) -> float:
        return width / 4 if self.times_width else 0.25


@dataclass(frozen=True, kw_only=True)
class BinaryNegEntropy(Generator):
    """Φ = Σ p log p + (1-p) log(1-p) on [0, 1]^C; D = Σ_c binary KL(a_c ‖ b_c). Zeros as in :class:`NegEntropy`."""

    name: ClassVar[str] = "binary-negent"

    def _value(self, u: Tensor) -> Tensor:
        return (torch.xlogy(u, u) + torch.xlogy(1 - u, 1 - u)).sum(-1)

    def _gradient(self, u: Tensor) -> Tensor:
        return u.log() - (-u).log1p()

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        return (_relative_entropy(a, b) + _relative_entropy(1 - a, 1 - b)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class GaussianMean(Generator):
    """Negative entropy of a mean-field Gaussian as a function of its mean parameters u = (m, m² + σ²), (..., 2d).

    D = KL(q_a ‖ q_b), the weight term of VCL. m² + σ² loses σ² where |m| is large against σ; :func:`gaussian_kl`
    takes means and variances themselves. A variance that is not positive shows as a NaN or an infinity.
    """

    name: ClassVar[str] = "gaussian-mean"

    @staticmethod
    def pack(mean: Tensor, var: Tensor) -> Tensor:
        """Mean parameters (..., 2d) of Gaussians with these means and variances, (..., d) each."""
        return torch.cat([mean, mean.square() + var], -1)

    def _value(self, u: Tensor) -> Tensor:
        _, var = self._split(u)
        return -0.5 * (2 * math.pi * math.e * var).log().sum(-1)

    def _gradient(self, u: Tensor) -> Tensor:
        mean, var = self._split(u)
        return torch.cat([mean / var, -0.5 / var], -1)

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        return _gaussian_kl(*self._split(a), *self._split(b)).sum(-1)

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        mean, second = _halves(self.name, u)
        return mean, second - mean.square()


@dataclass(frozen=True, kw_only=True)
class GaussianNatural(Generator):
    """Log-partition function of a mean-field Gaussian, u = (m/σ², -1/(2σ²)), (..., 2d); D = KL(q_b ‖ q_a)."""

    name: ClassVar[str] = "gaussian-natural"

    def _value(self, u: Tensor) -> Tensor:
        mean, var = self._split(u)
        return 0.5 * (mean.square() / var + (2 * math.pi * var).log()).sum(-1)

    def _gradient(self, u: Tensor) -> Tensor:
        return GaussianMean.pack(*self._split(u))

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        return _gaussian_kl(*self._split(b), *self._split(a)).sum(-1)

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        first, second = _halves(self.name, u)
        var = -0.5 / second
        return first * var, var


def _halves(name: str, u: Tensor) -> tuple[Tensor, Tensor]:
    if u.shape[-1] % 2:
        raise ConfigError(
            f"the generator '{name}' takes two parameters for each dimension, side by side",
            found=f"an odd last dimension, {tuple(u.shape)}",
            fix="pack them with GaussianMean.pack(mean, var)",
        )
    first, second = u.chunk(2, -1)
    return first, second
