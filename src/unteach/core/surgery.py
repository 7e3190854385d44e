"""Gradient surgery: what to do when the gradients of two goals point against each other.

Pure functions on lists of gradients, one entry a parameter tensor (``None`` for a parameter that a loss does
not reach). Nothing here reads a value back from the device, so a step does not wait; only
:meth:`ConflictStats.as_log` does, once. Sums are accumulated in fp32 (fp64 when a gradient is fp64) and the
result is rounded once to the gradient's own dtype. An inner product that is not a number counts as a
conflict, so a broken gradient shows in the update instead of passing as "no conflict".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from unteach.core.registry import near
from unteach.errors import ConfigError

Scope = Literal["per_tensor", "global"]
Formula = Literal["orthogonal", "official_cosine"]
G = TypeVar("G", Tensor, Tensor | None)

_CHUNK = 1 << 20  # one fp32 dot product of 16 M entries is off by 2e-4, so long ones are summed in pieces


@dataclass(frozen=True, eq=False)
class ConflictStats:
    """What one call of :func:`project` found; tensors on the gradients' device, one entry a test.

    A test is one pair of tensors (``scope="per_tensor"``) or the whole lists (``scope="global"``: one entry).
    Pairs in which a gradient is ``None`` are not tested.

    Attributes:
        conflicting: bool (n,), <g_u, g_r> < 0.
        cosine: (n,), cosine of g_u and g_r; 0 where one of them is zero.
        removed: (n,), norm of what was taken out, ‖g_u - g‖.
        norm: (n,), ‖g_u‖.
    """

    conflicting: Tensor
    cosine: Tensor
    removed: Tensor
    norm: Tensor

    @property
    def share(self) -> Tensor:
        """Share of conflicting tests in [0, 1], shape (); 0 when nothing was tested."""
        return self.conflicting.to(self.cosine.dtype).sum() / max(self.cosine.numel(), 1)

    @property
    def mean_cosine(self) -> Tensor:
        """Mean cosine over the tests, shape (); 0 when nothing was tested."""
        return self.cosine.sum() / max(self.cosine.numel(), 1)

    def as_log(self, prefix: str = "") -> dict[str, float]:
        """Floats for a log record; waits for the device.

        The keys are ``conflict_share``, ``conflict_cosine`` (the mean), ``removed_norm`` and
        ``removed_share`` (‖g_u - g‖ / ‖g_u‖); the norms are those of all tests together.
        """
        removed, norm = self.removed.square().sum().sqrt(), self.norm.square().sum().sqrt()
        share = torch.where(norm == 0, torch.zeros_like(norm), removed / norm)
        values = torch.stack([self.share, self.mean_cosine, removed, share]).tolist()
        names = ("conflict_share", "conflict_cosine", "removed_norm", "removed_share")
        return {prefix + name: value for name, value in zip(names, values, strict=True)}


@torch.no_grad()
def project(
    g_u: Sequence[G],
    g_r: Sequence[Tensor] | Sequence[Tensor | None],
    *,
    strength: float = 1.0,
    scope: Scope = "per_tensor",
    formula: Formula = "orthogonal",
    eps: float = 1e-8,
) -> tuple[list[G], ConflictStats]:
    """Concept-preserving gradient (doco §2): take out of ``g_u`` what fights ``g_r``.

    Where <g_u, g_r> < 0, with λ = ``strength``, b̂ = g_r/‖g_r‖ and cosθ = cos(g_u, g_r):

    - ``orthogonal`` (ProGrad and the DoCo code of October 2024): g = g_u - λ <g_u, b̂> b̂, so that
      <g, b̂> = (1 - λ) <g_u, b̂>. λ = 1 makes g orthogonal to g_r, λ > 1 goes past it.
    - ``official_cosine`` (the DoCo code of November 2024): g = g_u - λ cosθ b̂, without the factor ‖g_u‖, so
      that <g, b̂> = |cosθ| (λ - ‖g_u‖): for small gradients a step *down the retain loss*, not a projection.

    Elsewhere g is g_u bit for bit; ``g_r`` is never added. A zero g_r (squares summing to zero: in fp32,
    entries below about 1e-23) never conflicts. A tensor whose g_u or g_r is ``None`` takes no part: g_u's
    entry is handed back, and under ``scope="global"`` it is in neither the inner product nor the norms.

    Args:
        g_u: gradients to edit (unlearning), any shapes, floating point, dense.
        g_r: gradients to respect (retaining), same length and shapes.
        strength: λ ≥ 0. With 0 the very tensors of ``g_u`` are returned (conflicts are still measured).
        scope: one test a tensor, or one test for the concatenation of all tensors.
        formula: see above.
        eps: added to both norms by ``official_cosine``; ``orthogonal`` does not need it.

    Returns:
        The edited gradients (new tensors in the dtype and on the device of ``g_u``) and the statistics.

    Raises:
        ConfigError: lists that do not match, a gradient that is sparse or not floating point, or a bad
            setting.
    """
    _check_settings(strength, scope, formula, eps)
    _check_match(g_u, g_r, ("g_u", "g_r"))
    both = enumerate(zip(g_u, g_r, strict=True))
    pairs = [(i, u, r) for i, (u, r) in both if u is not None and r is not None]
    work, device = _work([t for _, u, r in pairs for t in (u, r)])
    if pairs:
        rows = [(_dot(u, r, work), _dot(u, u, work), _dot(r, r, work)) for _, u, r in pairs]
        dot, uu, rr = (torch.stack([x.to(device) for x in column]) for column in zip(*rows, strict=True))
        if scope == "global":
            dot, uu, rr = (x.sum(0, keepdim=True) for x in (dot, uu, rr))
    else:
        dot = uu = rr = torch.zeros(0, dtype=work, device=device)
    norm_u, norm_r = uu.sqrt(), rr.sqrt()
    conflicting = ~(dot >= 0) & (rr != 0)
    cosine_eps = dot / ((norm_u + eps) * (norm_r + eps))
    factor = dot / rr if formula == "orthogonal" else cosine_eps / (norm_r + eps)
    zero = torch.zeros_like(dot)
    factor = torch.where(conflicting, -strength * factor, zero)
    product = norm_u * norm_r
    cosine = torch.where(product == 0, zero, (dot / product).clamp(-1, 1))
    stats = ConflictStats(conflicting, cosine, removed=factor.abs() * norm_r, norm=norm_u)

    edited: list[G] = list(g_u)
    if strength > 0:
        for k, (i, u, r) in enumerate(pairs):
            k = 0 if scope == "global" else k
            moved = torch.addcmul(u.to(work), r.to(u.device, work), factor[k].to(u.device))
            edited[i] = torch.where(conflicting[k].to(u.device), moved.to(u.dtype), u)
    return edited, stats


def agem(g: Sequence[G], g_ref: Sequence[Tensor] | Sequence[Tensor | None]) -> list[G]:
    """A-GEM's step (Chaudhry et al. 2019, eq. 11): the global orthogonal projection at full strength.

    g̃ = g - (gᵀg_ref / g_refᵀg_ref) g_ref when gᵀg_ref < 0, else g. Arguments and errors as in
    :func:`project`.
    """
    return project(g, g_ref, strength=1.0, scope="global")[0]


@torch.no_grad()
def pcgrad(grads: Sequence[Sequence[G]], *, generator: torch.Generator, scope: Scope = "global") -> list[G]:
    """PCGrad (Yu et al. 2020, algorithm 1): every gradient gives way to the others, then all are summed.

    For every task i, start from g_i and go through the other tasks j in random order: where <g_i', g_j> < 0,
    subtract (<g_i', g_j>/‖g_j‖²) g_j, with the *original* g_j. The result is Σ_i g_i'. Since each g_i' stays
    a combination of the original gradients, everything is worked out on the (k, k) matrix of inner products
    and the tensors are read and written once. Without conflicts the result is the plain sum, bit for bit.

    Args:
        grads: one list of gradients a task (k tasks, T tensors each). ``None`` is a zero gradient; a tensor
            that is ``None`` for every task stays ``None``.
        generator: a CPU generator; gives the order of the other tasks (k draws of a permutation). Every
            process of a run must pass an equal one.
        scope: as in :func:`project`; the paper's is "global". One order serves all tensors.

    Raises:
        ConfigError: no task, lists that do not match, or a gradient that is sparse or not floating point.
    """
    _check_settings(1.0, scope, "orthogonal", 0.0)
    tasks = len(grads)
    if tasks == 0:
        raise ConfigError("pcgrad needs the gradients of at least one task", found="an empty list")
    reference: list[Tensor | None] = list(grads[0])
    for k, task in enumerate(grads):
        _check_match(reference, task, ("the tasks before" if k else "task 0", f"task {k}"))
        reference = [g if known is None else known for known, g in zip(reference, task, strict=True)]
    count = len(reference)
    columns: list[list[Tensor | None]] = [[task[t] for task in grads] for t in range(count)]
    work, device = _work([g for column in columns for g in column if g is not None])
    gram = _gram(columns, tasks, work, device)
    if scope == "global":
        gram = gram.sum(0, keepdim=True)
    # g_i' = Σ_j weights[i, j] g_j, which starts as g_i
    weights = torch.eye(tasks, dtype=work, device=device).repeat(len(gram), 1, 1)
    zero = torch.zeros(len(gram), dtype=work, device=device)
    for i in range(tasks):
        for j in torch.randperm(tasks, generator=generator).tolist():
            if j == i:
                continue
            dot, square = (weights[:, i] * gram[:, :, j]).sum(-1), gram[:, j, j]
            weights[:, i, j] -= torch.where(~(dot >= 0) & (square != 0), dot / square, zero)
    total = weights.sum(1).expand(count, tasks)
    summed: list[G] = list(grads[0])
    for t, column in enumerate(columns):
        present = [(k, g) for k, g in enumerate(column) if g is not None]
        if present:
            first = present[0][1]
            out = torch.zeros(first.shape, dtype=work, device=first.device)
            for k, g in present:
                out = torch.addcmul(out, g.to(first.device, work), total[t, k].to(first.device))
            summed[t] = out.to(first.dtype)
    return summed


def _dot(a: Tensor, b: Tensor, work: torch.dtype) -> Tensor:
    """Inner product over all entries in ``work`` precision, shape (), on a's device."""
    x, y = a.reshape(-1), b.reshape(-1).to(a.device)
    if x.numel() <= _CHUNK:
        return torch.dot(x.to(work), y.to(work))
    count = math.ceil(x.numel() / _CHUNK)
    pieces = zip(x.chunk(count), y.chunk(count), strict=True)
    return torch.stack([torch.dot(p.to(work), q.to(work)) for p, q in pieces]).sum()


def _gram(columns: Sequence[Sequence[Tensor | None]], tasks: int, work: torch.dtype, device: torch.device) -> Tensor:
    """Inner products of all pairs of tasks, shape (tensors, tasks, tasks); ``None`` counts as zero."""
    zero = torch.zeros((), dtype=work, device=device)
    flat = [zero]  # so that no tensors at all is not a special case
    for column in columns:
        dots: dict[tuple[int, int], Tensor] = {}
        for i, a in enumerate(column):
            for j, b in enumerate(column[: i + 1]):
                dot = zero if a is None or b is None else _dot(a, b, work).to(device)
                dots[i, j] = dots[j, i] = dot
        flat += [dots[i, j] for i in range(tasks) for j in range(tasks)]
    return torch.stack(flat)[1:].reshape(len(columns), tasks, tasks)


def _work(tensors: Sequence[Tensor]) -> tuple[torch.dtype, torch.device]:
    """Precision to accumulate in, and the device on which the scalars are gathered."""
    work = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return work, tensors[0].device if tensors else torch.device("cpu")


def _check_settings(strength: float, scope: str, formula: str, eps: float) -> None:
    """Raise one ConfigError that lists every bad setting."""
    problems = []
    if not (math.isfinite(strength) and strength >= 0):
        problems.append(f"strength must be a finite number of at least 0, found {strength}")
    if not (math.isfinite(eps) and eps >= 0):
        problems.append(f"eps must be a finite number of at least 0, found {eps}")
    if scope not in get_args(Scope):
        problems.append(f"no scope is called '{scope}', {near(scope, get_args(Scope))}")
    if formula not in get_args(Formula):
        problems.append(f"no formula is called '{formula}', {near(formula, get_args(Formula))}")
    if problems:
        raise ConfigError.many(problems, where="gradient surgery")


def _check_match(a: Sequence[Tensor | None], b: Sequence[Tensor | None], names: tuple[str, str]) -> None:
    """Raise ConfigError unless both lists hold dense floating point tensors of the same shapes in order."""
    if len(a) != len(b):
        raise ConfigError(
            "both lists of gradients must have one entry a parameter",
            found=f"{len(a)} in {names[0]}, {len(b)} in {names[1]}",
            fix="take both gradients with respect to the same list of parameters",
        )
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        for name, t in zip(names, (x, y), strict=True):
            if t is not None and (t.layout != torch.strided or not t.is_floating_point()):
                raise ConfigError(
                    f"gradient {i} of {name} must be a dense floating point tensor",
                    found=f"{t.dtype}, {t.layout}",
                )
        if x is not None and y is not None and x.shape != y.shape:
            raise ConfigError(
                f"gradient {i} has two shapes",
                found=f"{tuple(x.shape)} in {names[0]}, {tuple(y.shape)} in {names[1]}",
                fix="take both gradients with respect to the same list of parameters",
            )
