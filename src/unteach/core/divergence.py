"""The base of the generators of Bregman divergences, and their registry; the generators are in core.bregman."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unteach.core.registry import Registry
from unteach.core.settings import Settings
from unteach.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Generator(Settings, ABC):
    """A differentiable convex Φ over the last dimension.

    A new one implements ``_value``, ``_gradient`` and ``_divergence`` for checked inputs in fp32 or fp64, and
    ``conjugate`` where Φ* is at hand.
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

    def definition(self, a: Tensor, b: Tensor) -> Tensor:
        """Φ(a) - Φ(b) - <∇Φ(b), a - b> as it is written: exact in principle, inexact for a close to b."""
        a, b = self._pair(a, b)
        return self._value(a) - self._value(b) - (self._gradient(b) * (a - b)).sum(-1)

    def conjugate(self) -> "Generator":
        """Φ*, with which D_Φ(p, q) = D_Φ*(∇Φ(q), ∇Φ(p)).

        Raises:
            ConfigError: this generator's conjugate is not implemented.
        """
        raise ConfigError(
            f"the conjugate of the generator '{self.name}' is not implemented",
            fix="keep the order of the arguments, or implement conjugate()",
        )

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


generators: Registry[type[Generator]] = Registry("generator")
