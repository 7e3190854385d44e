"""Divergences and curvatures by their definitions: Python floats, and matrices written out in full."""

import math

import torch
from torch import Tensor

from unteach.core.bregman import Quadratic


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p log(p/q) over the last dimension, entry by entry."""
    rows = zip(p.reshape(-1, p.shape[-1]).tolist(), q.reshape(-1, q.shape[-1]).tolist(), strict=True)
    term = lambda a, b: 0.0 if a == 0 else (math.inf if b == 0 else a * math.log(a / b))  # noqa: E731
    values = [math.fsum(term(a, b) for a, b in zip(*row, strict=True)) for row in rows]
    return torch.tensor(values, dtype=p.dtype).reshape(p.shape[:-1])


def binary_kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ_c of the KL between two coins."""
    coins = [torch.stack([each, 1 - each], -1) for each in (p, q)]
    return kl(*coins).sum(-1)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def quadratic(matrix: Tensor, delta: list[Tensor]) -> Tensor:
    v = flat(delta)
    return (v[:, None] * matrix * v[None, :]).sum()


def definition(psi: Quadratic, a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Ψ(a) - Ψ(b) - <∇Ψ(b), a - b> as it is written."""
    slope = [(g * (x - y)).sum() for g, x, y in zip(psi.curvature.times(b), a, b, strict=True)]
    return psi.value(a) - psi.value(b) - torch.stack(slope).sum()
