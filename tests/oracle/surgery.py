"""Gradient surgery in plain Python floats, one number at a time: slow, easy to check on paper."""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from unteach.core.surgery import ConflictStats

Vector = list[float]


def project(
    g_u: Sequence[Tensor | None],
    g_r: Sequence[Tensor | None],
    *,
    strength: float = 1.0,
    scope: str = "per_tensor",
    formula: str = "orthogonal",
    eps: float = 1e-8,
) -> tuple[list[Tensor | None], ConflictStats]:
    """doco §2, one tensor (or, globally, one long vector) after the other."""
    shared = [i for i in range(len(g_u)) if g_u[i] is not None and g_r[i] is not None]
    tests = [[i] for i in shared] if scope == "per_tensor" else [shared] if shared else []
    edited = list(g_u)
    conflicting, cosines, removed, norms = [], [], [], []
    for members in tests:
        u, r = _flat([g_u[i] for i in members]), _flat([g_r[i] for i in members])
        inner, norm_u, norm_r = _inner(u, r), _norm(u), _norm(r)
        conflict = inner < 0
        cosine = inner / (norm_u * norm_r) if norm_u * norm_r > 0 else 0.0
        g = u
        if conflict and formula == "orthogonal":
            direction = [x / norm_r for x in r]
            along = _inner(u, direction)
            g = [x - strength * along * b for x, b in zip(u, direction, strict=True)]
        elif conflict:
            direction = [x / (norm_r + eps) for x in r]
            published = inner / ((norm_u + eps) * (norm_r + eps))
            g = [x - strength * published * b for x, b in zip(u, direction, strict=True)]
        conflicting.append(conflict)
        cosines.append(cosine)
        removed.append(_norm([x - y for x, y in zip(u, g, strict=True)]))
        norms.append(norm_u)
        if conflict:
            for i, part in zip(members, _unflat(g, [g_u[i] for i in members]), strict=True):
                edited[i] = part
    stats = ConflictStats(
        torch.tensor(conflicting, dtype=torch.bool),
        torch.tensor(cosines, dtype=torch.float64),
        torch.tensor(removed, dtype=torch.float64),
        torch.tensor(norms, dtype=torch.float64),
    )
    return edited, stats


def agem(g: Sequence[Tensor], g_ref: Sequence[Tensor]) -> list[Tensor]:
    """A-GEM as it is defined (its eq. 10): what is nearest to g with <g̃, g_ref> ≥ 0, by a full matrix.

    With the constraint active, g̃ is the projection of g on the null space of g_ref, the span of the right
    singular vectors for the singular value 0.
    """
    flat, reference = (torch.tensor(_flat(each), dtype=torch.float64) for each in (g, g_ref))
    if float(flat @ reference) >= 0:
        return list(g)
    _, _, rows = torch.linalg.svd(reference[None])  # (n, n); row 0 spans g_ref
    null = rows[1:]
    return _unflat((null.T @ (null @ flat)).tolist(), g)


def pcgrad(
    grads: Sequence[Sequence[Tensor | None]], *, generator: torch.Generator, scope: str = "global"
) -> list[Tensor | None]:
    """PCGrad, algorithm 1, line by line; ``None`` is written out as zeros."""
    tasks, count = len(grads), len(grads[0])
    shown = [next((task[t] for task in grads if task[t] is not None), None) for t in range(count)]
    orders = [[j for j in torch.randperm(tasks, generator=generator).tolist() if j != i] for i in range(tasks)]
    result: list[Tensor | None] = [None] * count
    present = [t for t in range(count) if shown[t] is not None]
    groups = [[t] for t in present] if scope == "per_tensor" else [present]
    for members in groups:
        like = [shown[t] for t in members]
        filled = [
            _flat([torch.zeros_like(shown[t]) if task[t] is None else task[t] for t in members]) for task in grads
        ]
        total = [0.0] * len(filled[0])
        for i in range(tasks):
            g = list(filled[i])
            for j in orders[i]:
                inner = _inner(g, filled[j])
                if inner < 0:
                    square = _inner(filled[j], filled[j])
                    g = [x - inner / square * y for x, y in zip(g, filled[j], strict=True)]
            total = [x + y for x, y in zip(total, g, strict=True)]
        for t, part in zip(members, _unflat(total, like), strict=True):
            result[t] = part
    return result


def _flat(tensors: Sequence[Tensor]) -> Vector:
    return [x for t in tensors for x in t.double().reshape(-1).tolist()]


def _unflat(values: Vector, like: Sequence[Tensor]) -> list[Tensor]:
    parts, at = [], 0
    for t in like:
        part = torch.tensor(values[at : at + t.numel()], dtype=torch.float64)
        parts.append(part.reshape(t.shape).to(t.dtype))
        at += t.numel()
    return parts


def _inner(a: Vector, b: Vector) -> float:
    """Exactly, then rounded once."""
    return float(sum((Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)), Fraction(0)))


def _norm(a: Vector) -> float:
    return math.sqrt(_inner(a, a))
