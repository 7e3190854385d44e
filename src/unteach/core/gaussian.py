"""Mean-field Gaussians as an exponential family: the generators whose divergence is the KL of VCL (refresh §1.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unteach.core.divergence import Generator, generators
from unteach.errors import ConfigError


@generators.add("gaussian-mean")
@dataclass(frozen=True, kw_only=True)
class GaussianMean(Generator):
    """Negative entropy of a mean-field Gaussian as a function of its mean parameters u = (m, m² + σ²), (..., 2d).

    D = KL(q_a ‖ q_b), the weight term of VCL. m² + σ² loses σ² where |m| is large against σ; :meth:`kl` takes
    means and variances themselves. A variance that is not positive shows as a NaN or an infinity.
    """

    name: ClassVar[str] = "gaussian-mean"

    @staticmethod
    def pack(mean: Tensor, var: Tensor) -> Tensor:
        """Mean parameters (..., 2d) of Gaussians with these means and variances, (..., d) each."""
        return torch.cat([mean, mean.square() + var], -1)

    @staticmethod
    def kl(
        mean_a: Tensor | Sequence[Tensor],
        var_a: Tensor | Sequence[Tensor],
        mean_b: Tensor | Sequence[Tensor],
        var_b: Tensor | Sequence[Tensor],
    ) -> Tensor:
        """KL(q_a ‖ q_b) summed over all entries of tensors, or of lists of tensors, of equal shapes; shape ().

        Raises:
            ConfigError: lists or shapes that do not match.
        """
        given = (mean_a, var_a, mean_b, var_b)
        lists = [[each] if isinstance(each, Tensor) else list(each) for each in given]
        shapes = [[tuple(t.shape) for t in each] for each in lists]
        if any(each != shapes[0] for each in shapes) or not shapes[0]:
            raise ConfigError(
                "means and variances of the two Gaussians differ in number or shape",
                found=" / ".join(map(str, shapes)),
                fix="give four tensors, or four lists of tensors, of the same shapes",
            )
        wide = [[t.to(torch.promote_types(t.dtype, torch.float32)) for t in each] for each in lists]
        return torch.stack([_gaussian_kl(*each).sum() for each in zip(*wide, strict=True)]).sum()

    def conjugate(self) -> Generator:
        """The log-partition function of the natural parameters."""
        return GaussianNatural()

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


@generators.add("gaussian-natural")
@dataclass(frozen=True, kw_only=True)
class GaussianNatural(Generator):
    """Log-partition function of a mean-field Gaussian, u = (m/σ², -1/(2σ²)), (..., 2d); D = KL(q_b ‖ q_a)."""

    name: ClassVar[str] = "gaussian-natural"

    def conjugate(self) -> Generator:
        """Negative entropy of the mean parameters."""
        return GaussianMean()

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


def _gaussian_kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    ratio = var_a / var_b
    return 0.5 * ((ratio - 1 - ratio.log()) + (mean_a - mean_b).square() / var_b)
