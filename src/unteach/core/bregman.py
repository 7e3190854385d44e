"""Bregman divergences D_Φ(a, b) = Φ(a) - Φ(b) - <∇Φ(b), a - b> and their generators Φ (refresh §1.1, §1.2).

The model is the first argument, the target or anchor the second. :class:`Generator` acts on outputs, over the
last dimension; :class:`Quadratic` acts on lists of parameters. Nothing reads a value back from the device: what
lies outside a generator's domain shows as an infinite or undefined divergence. Inputs below fp32 are computed in
fp32 and the result is fp32. The target is not detached; whoever does not want its gradient detaches it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unteach.core.curvature import Curvature, differences
from unteach.core.settings import Settings, setting
from unteach.errors import ConfigError

__all__ = [
    "Generator",
    "LogSumExp",
    "MeanSquare",
    "NegEntropy",
    "Quadratic",
    "Softplus",
    "Square",
    "gaussian_kl",
    "labels",
]


@dataclass(frozen=True, kw_only=True)
class Generator(Settings, ABC):
    """A differentiable convex Φ over the last dimension.

    A new one implements ``_value``, ``_gradient`` and ``_divergence`` for checked inputs in fp32 or fp64.
    """

    kind: ClassVar[str] = "generator"

    def value(self, u: Tensor) -> Tensor:
        """Φ(u): (..., C) to (...)."""
        return self._value(self._checked(u))

    def gradient(self, u: Tensor) -> Tensor:
        """∇Φ(u), shape of ``u``."""
        return self._gradient(self._checked(u))

    def divergence(self, a: Tensor, b: Tensor) -> Tensor:
        """D_Φ(a, b), in a form without the cancellation of the definition; differentiable in both.

        Args:
            a: the model's outputs, (..., C).
            b: targets, same shape.

        Returns:
            One divergence a row, (...).

        Raises:
            ConfigError: shapes that differ, or inputs that are not floating point.
        """
        return self._divergence(*self._pair(a, b))

    @abstractmethod
    def _value(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _gradient(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _divergence(self, a: Tensor, b: Tensor) -> Tensor: ...

    def _pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if a.shape != b.shape:
            raise ConfigError(
                f"the two arguments of the divergence '{self.name}' differ in shape",
                found=f"{tuple(a.shape)} and {tuple(b.shape)}",
                fix="give one target for each row of outputs, over the same classes",
            )
        return self._checked(a), self._checked(b)

    def _checked(self, u: Tensor) -> Tensor:
        if not u.is_floating_point() or u.dim() == 0:
            raise ConfigError(
                f"the generator '{self.name}' takes floating-point tensors with at least one dimension",
                found=f"{u.dtype} of shape {tuple(u.shape)}",
                fix="labels become targets by labels(y, classes)",
            )
        return u.to(torch.promote_types(u.dtype, torch.float32))


# ---- squares ----


@dataclass(frozen=True, kw_only=True)
class _Squares(Generator):
    """Φ = c Σ u², with c a function of C."""

    @abstractmethod
    def _scale(self, width: int) -> float: ...

    def _value(self, u: Tensor) -> Tensor:
        return self._scale(u.shape[-1]) * u.square().sum(-1)

    def _gradient(self, u: Tensor) -> Tensor:
        return 2 * self._scale(u.shape[-1]) * u

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        return self._scale(a.shape[-1]) * (a - b).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class Square(_Squares):
    """Φ = Σ u², D = ‖a - b‖² (DER); with ``half`` both carry ½."""

    name: ClassVar[str] = "square"
    half: bool = False

    def _scale(self, width: int) -> float:
        return 0.5 if self.half else 1.0


@dataclass(frozen=True, kw_only=True)
class MeanSquare(_Squares):
    """Φ = (1/C) Σ u², D = the mean squared error over classes, which ``mse_loss`` computes (α of Mammoth's DER)."""

    name: ClassVar[str] = "mean-square"

    def _scale(self, width: int) -> float:
        return 1 / width


# ---- categorical ----


@dataclass(frozen=True, kw_only=True)
class NegEntropy(Generator):
    """Negative entropy Φ = Σ p log p on the simplex; D = KL(a ‖ b).

    D carries the terms - Σa + Σb, which vanish on the simplex: each summand is then ≥ 0, and the gradient in ``a``
    is ∇Φ(a) - ∇Φ(b) exactly. 0 log 0 = 0; b = 0 < a gives inf. Where a = 0 the slope is -inf, and log a in it is
    replaced by that of the smallest normal number, so that a softmax that underflows still has a finite gradient.

    ``mass`` m is what the entries sum to: Φ = m Σ p log(p/m), D = m KL(a ‖ b). LogSumExp at temperature m has
    this conjugate.
    """

    name: ClassVar[str] = "negent"
    mass: float = setting(1.0, above=0.0)

    def _value(self, u: Tensor) -> Tensor:
        return self.mass * torch.xlogy(u, u / self.mass).sum(-1)

    def _gradient(self, u: Tensor) -> Tensor:
        return self.mass * ((u / self.mass).log() + 1)

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        return self.mass * _relative_entropy(a, b).sum(-1)


@dataclass(frozen=True, kw_only=True)
class LogSumExp(Generator):
    """Φ = T² log Σ exp(u/T) on logits; D = T² KL(softmax(b/T) ‖ softmax(a/T)).

    With the model first this is the *forward* KL, i.e. cross-entropy less the target's entropy: ER, LwF. A class
    whose target probability is 0 (logit -inf) adds nothing, also where the model's logit is -inf.
    """

    name: ClassVar[str] = "lse"
    temperature: float = setting(1.0, above=0.0)

    def to_label(self, a: Tensor, y: Tensor) -> Tensor:
        """The exact limit s → ∞ of ``divergence(a, labels(y, C, s))``: T² times the cross-entropy at temperature T.

        Args:
            a: logits, (..., C).
            y: labels in [0, C), int64, (...); one outside makes torch raise.

        Returns:
            One loss a row, (...).

        Raises:
            ConfigError: shapes or dtypes that do not fit.
        """
        a = self._checked(a)
        if y.shape != a.shape[:-1] or y.dtype != torch.int64:
            raise ConfigError(
                "labels do not fit the logits",
                found=f"labels {y.dtype} {tuple(y.shape)}, logits {tuple(a.shape)}",
                fix="give one int64 label for each row of logits",
            )
        log_p = F.log_softmax(a / self.temperature, -1)
        return -(self.temperature**2) * log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)

    def _value(self, u: Tensor) -> Tensor:
        return self.temperature**2 * torch.logsumexp(u / self.temperature, -1)

    def _gradient(self, u: Tensor) -> Tensor:
        return self.temperature * F.softmax(u / self.temperature, -1)

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        log_a, log_b = (F.log_softmax(u / self.temperature, -1) for u in (a, b))
        p = log_b.exp()
        gap = torch.where(p == 0, 0, log_b - log_a)
        return self.temperature**2 * (p * gap).sum(-1)


def labels(y: Tensor, classes: int, scale: float = 40.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits z = s·e_y that stand for hard labels: (...) int64 to (..., classes).

    KL(softmax z ‖ p) differs from the cross-entropy -log p_y by less than about C (s + largest logit gap) e^-s:
    below 1e-9 at s = 40. :meth:`LogSumExp.to_label` is the limit itself.

    Raises:
        ConfigError: labels that are not int64 or outside [0, classes).
    """
    if y.dtype != torch.int64 or (y.numel() and not bool(((y >= 0) & (y < classes)).all())):
        low, high = (int(y.min()), int(y.max())) if y.numel() else (0, 0)
        raise ConfigError(
            f"labels must be int64 in [0, {classes})",
            found=f"{y.dtype} in [{low}, {high}]",
            fix="give global labels and the number of classes of the whole stream",
        )
    return scale * F.one_hot(y, classes).to(dtype)


# ---- Bernoulli ----


@dataclass(frozen=True, kw_only=True)
class Softplus(Generator):
    """Φ = Σ log(1 + e^u) on logits; D = Σ_c binary KL(σ(b_c) ‖ σ(a_c)): sigmoid heads, iCaRL."""

    name: ClassVar[str] = "softplus"

    def _value(self, u: Tensor) -> Tensor:
        return -F.logsigmoid(-u).sum(-1)  # F.softplus is linear above 20, which is 2e-9 off

    def _gradient(self, u: Tensor) -> Tensor:
        return u.sigmoid()

    def _divergence(self, a: Tensor, b: Tensor) -> Tensor:
        on = b.sigmoid() * (F.logsigmoid(b) - F.logsigmoid(a))
        off = (-b).sigmoid() * (F.logsigmoid(-b) - F.logsigmoid(-a))
        return (on + off).sum(-1)


def _relative_entropy(a: Tensor, b: Tensor) -> Tensor:
    """a log(a/b) - a + b ≥ 0 elementwise, with 0 log 0 = 0."""
    log_a = torch.where(a == 0, torch.finfo(a.dtype).tiny, a).log()
    log_b = torch.where((a == 0) & (b == 0), 1, b).log()
    return a * (log_a - log_b) - a + b


# ---- weights ----


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Ψ = ½ θᵀAθ over lists of parameters: EWC, SI, MAS, Laplace, L2-SP, by choice of the curvature A ⪰ 0.

    A may be singular; the divergence is then degenerate, that is 0 also for some a ≠ b.
    """

    curvature: Curvature

    def value(self, u: Sequence[Tensor]) -> Tensor:
        """½ uᵀAu, shape ()."""
        return 0.5 * self.curvature.quadratic(u)

    def divergence(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """½ (a - b)ᵀ A (a - b), shape (); its gradient in ``a`` is A (a - b).

        Raises:
            ConfigError: lists or shapes that do not match each other or the curvature.
        """
        return self.value(differences(a, b))


def gaussian_kl(
    mean_a: Tensor | Sequence[Tensor],
    var_a: Tensor | Sequence[Tensor],
    mean_b: Tensor | Sequence[Tensor],
    var_b: Tensor | Sequence[Tensor],
) -> Tensor:
    """KL(q_a ‖ q_b) of mean-field Gaussians, the weight term of VCL; shape ().

    Summed over all entries of tensors, or of lists of tensors, of equal shapes. A variance that is not positive shows
    as a NaN or an infinity.

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


def _gaussian_kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    ratio = var_a / var_b
    return 0.5 * ((ratio - 1 - ratio.log()) + (mean_a - mean_b).square() / var_b)
