"""Curvatures: the matrix A ⪰ 0 of a quadratic ½ δᵀAδ over a list of parameter tensors (refresh §1.2, quad_A).

δ is one list, one tensor a parameter, and A acts on the concatenation of its tensors (each row-major). A curvature
is a constant: its tensors are detached, live on the parameters' device, and are checked once, when it is made.
A may be singular: what lies in its null space costs nothing. Half-precision δ is computed in fp32.

``quadratic`` is differentiable, with gradient 2 Aδ. A training step that wants nothing but that gradient can add
``times(δ)`` to the others without building a graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unteach.errors import ConfigError, NumericsError

__all__ = ["Curvature", "Diagonal", "Identity", "Kronecker", "collapse", "differences"]


class Curvature(ABC):
    """A positive semi-definite matrix A over the concatenation of a list of tensors."""

    @abstractmethod
    def times(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """A δ, in the shapes of ``delta``.

        Raises:
            ConfigError: tensors that do not fit this curvature.
        """

    def quadratic(self, delta: Sequence[Tensor]) -> Tensor:
        """δᵀ A δ, shape (); ≥ 0 up to rounding.

        Raises:
            ConfigError: tensors that do not fit this curvature.
        """
        value: Tensor = _Quadratic.apply(self, *_wide(delta))  # type: ignore[no-untyped-call]
        return value


class _Quadratic(torch.autograd.Function):
    """δᵀAδ as one node of the graph: its gradient 2Aδ is at hand once the value is."""

    @staticmethod
    def forward(ctx: Any, curvature: Curvature, *delta: Tensor) -> Tensor:
        product = curvature.times(delta)
        ctx.curvature = curvature
        ctx.save_for_backward(*delta, *product)
        return torch.stack([(d * p).sum() for d, p in zip(delta, product, strict=True)]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        half = len(ctx.saved_tensors) // 2
        delta, product = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        if torch.is_grad_enabled():  # a second derivative is wanted, so the product must depend on δ
            product = ctx.curvature.times(delta)
        scale = 2 * grads[0]
        return None, *(scale * p for p in product)


@dataclass(frozen=True, eq=False)
class Identity(Curvature):
    """A = I: L2-SP."""

    def times(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """A copy of δ."""
        return [d.clone() for d in _wide(delta)]


@dataclass(frozen=True, eq=False)
class Diagonal(Curvature):
    """A = diag(F): EWC, online EWC, SI, MAS; with F > 0 also a preconditioner of :mod:`unteach.core.ascent`.

    Args:
        diagonal: F, one tensor a parameter, in its shape, entries ≥ 0.

    Raises:
        ConfigError: negative entries, or an empty list.
        NumericsError: entries that are not finite.
    """

    diagonal: Sequence[Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "diagonal", _importances(self.diagonal))

    def times(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """F ⊙ δ."""
        _match(delta, self.diagonal, "the differences", "the diagonal")
        return list(torch._foreach_mul(_wide(delta), list(self.diagonal)))

    def root(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """√F ⊙ δ."""
        return list(torch._foreach_mul(list(delta), list(torch._foreach_sqrt(list(self.diagonal)))))

    def eigenvalues(self) -> list[Tensor]:
        """F itself."""
        return list(self.diagonal)


@dataclass(frozen=True, eq=False)
class Kronecker(Curvature):
    """Block-diagonal A with a block G ⊗ A_in a layer (KFAC); its cost is tr(Δᵀ G Δ A_in), no block is ever formed.

    A weight (out, in, ...) is read as the matrix Δ (out, in·...), a vector (out,) as (out, 1). When A_in has one row
    more than that, the *next* tensor in the list is the layer's bias (out,) and is Δ's last column (homogeneous
    coordinates); its own entries in ``factors`` and ``diagonal`` must then be None.

    Args:
        factors: one entry a parameter, (A_in, G_out) or None; both symmetric and positive semi-definite.
        diagonal: one entry a parameter; F as in :class:`Diagonal` for a parameter without factors, or None. A
            parameter with neither costs nothing.

    Raises:
        ConfigError: factors that are not symmetric or have negative diagonals (their eigenvalues are not checked),
            lists of different lengths, or a parameter with both factors and a diagonal.
        NumericsError: entries that are not finite.
    """

    factors: Sequence[tuple[Tensor, Tensor] | None]
    diagonal: Sequence[Tensor | None] | None = None

    def __post_init__(self) -> None:
        pairs = [None if pair is None else (_symmetric(pair[0]), _symmetric(pair[1])) for pair in self.factors]
        given = [None] * len(pairs) if self.diagonal is None else list(self.diagonal)
        both = [i for i, (p, f) in enumerate(zip(pairs, given, strict=False)) if p is not None and f is not None]
        if len(pairs) != len(given) or both:
            raise ConfigError(
                "factors and diagonal of a Kronecker curvature do not fit together",
                found=f"{len(pairs)} factors, {len(given)} diagonals, both for the parameters {both}",
                fix="give one entry a parameter in each list, and None in one of them",
            )
        rest = iter(_importances([f for f in given if f is not None], empty=True))
        object.__setattr__(self, "factors", tuple(pairs))
        object.__setattr__(self, "diagonal", tuple(None if f is None else next(rest) for f in given))

    def times(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """G Δ A_in for each block, F ⊙ δ or 0 for the others."""
        wide = _wide(delta)
        product: list[Tensor] = []
        for members, pair, diagonal in self._blocks(wide):
            if pair is None:
                product.append(torch.zeros_like(members[0]) if diagonal is None else diagonal * members[0])
                continue
            matrix = torch.cat([d.reshape(d.shape[0], -1) for d in members], 1)
            moved = pair[1].to(matrix.dtype) @ matrix @ pair[0].to(matrix.dtype)
            widths = [d.numel() // d.shape[0] for d in members]
            product += [part.reshape(d.shape) for part, d in zip(torch.split(moved, widths, 1), members, strict=True)]
        return product

    def _blocks(
        self, delta: Sequence[Tensor]
    ) -> Iterator[tuple[Sequence[Tensor], tuple[Tensor, Tensor] | None, Tensor | None]]:
        """Each block's tensors (two when a bias is joined), its factors and its diagonal."""
        if len(delta) != len(self.factors):
            raise ConfigError(
                "the differences do not fit the Kronecker curvature",
                found=f"{len(delta)} tensors and {len(self.factors)} entries",
                fix="give one entry a parameter, in their order",
            )
        diagonal = self.diagonal or ()
        i = 0
        while i < len(delta):
            pair, own = self.factors[i], diagonal[i]
            if pair is None:
                if own is not None:
                    _match([delta[i]], [own], "the differences", "the diagonal")
                yield [delta[i]], None, own
                i += 1
                continue
            out, width = pair[1].shape[0], pair[0].shape[0]
            fits = delta[i].dim() > 0 and delta[i].shape[0] == out
            inputs = delta[i].numel() // out
            joined = fits and width == inputs + 1 and self._is_bias(i + 1, delta, out)
            if not fits or not (width == inputs or joined):
                raise ConfigError(
                    f"the Kronecker factors of parameter {i} do not fit it",
                    found=f"A_in {tuple(pair[0].shape)}, G {tuple(pair[1].shape)}, parameter {tuple(delta[i].shape)}",
                    fix="A_in has a row for each input, and one more only if the next parameter is the layer's bias "
                    "with None as its own entries",
                )
            yield delta[i : i + 1 + joined], pair, None
            i += 1 + joined

    def _is_bias(self, i: int, delta: Sequence[Tensor], out: int) -> bool:
        alone = i < len(delta) and self.factors[i] is None and (self.diagonal or ())[i] is None
        return alone and delta[i].shape == (out,)


def differences(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """a - b tensor by tensor, in fp32 at least.

    Raises:
        ConfigError: lists of different lengths or shapes.
    """
    _match(a, b, "the parameters", "the anchor")
    return list(torch._foreach_sub(_wide(a), _wide(b)))


@torch.no_grad()
def collapse(
    diagonals: Sequence[Sequence[Tensor]], anchors: Sequence[Sequence[Tensor]]
) -> tuple[Diagonal, list[Tensor]]:
    """The one quadratic that k-anchor EWC is, up to a constant: ΣF_k around (ΣF_k)⁻¹ ΣF_kθ_k (refresh §1.3).

    Args:
        diagonals: F_1 ... F_k, each one tensor a parameter, entries ≥ 0.
        anchors: θ_1 ... θ_k, in the same shapes. Where every F_k is 0 the last anchor is kept.

    Raises:
        ConfigError: nothing to collapse, lists that do not match, or negative entries.
        NumericsError: entries that are not finite.
    """
    if not diagonals or len(diagonals) != len(anchors):
        raise ConfigError(
            "each anchor needs its own diagonal, and there must be one at least",
            found=f"{len(diagonals)} diagonals and {len(anchors)} anchors",
        )
    for diagonal, anchor in zip(diagonals, anchors, strict=True):
        _match(diagonal, anchors[0], "a diagonal", "the first anchor")
        _match(anchor, anchors[0], "an anchor", "the first anchor")
    total = [torch.stack(_wide(parts)).sum(0) for parts in zip(*diagonals, strict=True)]
    last = _wide(anchors[-1])
    # measured from the last anchor, so that equal anchors give back themselves
    pull = [torch.zeros_like(each) for each in total]
    for diagonal, anchor in zip(diagonals, anchors, strict=True):
        torch._foreach_addcmul_(pull, _wide(diagonal), differences(anchor, last))
    moved = [torch.where(f == 0, 0, p / f) for p, f in zip(pull, total, strict=True)]
    return Diagonal(total), list(torch._foreach_add(last, moved))


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _constants(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wide = tuple(_wide([t.detach() for t in tensors]))
    if wide and not bool(torch.stack([t.isfinite().all() for t in wide]).all()):
        raise NumericsError(
            "a curvature has entries that are not finite",
            found=f"NaN or infinity in tensor {[bool(t.isfinite().all()) for t in wide].index(False)}",
            fix="look at the loss whose gradients it was made from",
        )
    return wide


def _importances(tensors: Sequence[Tensor], *, empty: bool = False) -> tuple[Tensor, ...]:
    wide = _constants(tensors)
    if not wide and not empty:
        raise ConfigError("a curvature needs one tensor a parameter", found="an empty list")
    # an empty tensor has no minimum
    lows = [t.min() for t in wide if t.numel()]
    if lows and bool(torch.stack(lows).min() < 0):
        raise _not_convex(f"a diagonal entry of {float(torch.stack(lows).min()):.3g}")
    return wide


def _symmetric(matrix: Tensor) -> Tensor:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise ConfigError("a curvature's matrix must be square", found=tuple(matrix.shape), fix="give it as (n, n)")
    (wide,) = _constants([matrix])
    skew, size = (wide - wide.T).abs().max(), wide.abs().max()
    if bool(skew > 1e-4 * size):
        raise ConfigError(
            "a curvature's matrix must be symmetric",
            found=f"a difference of {float(skew):.3g} from its transpose",
            fix="give (M + Mᵀ)/2",
        )
    if bool(wide.diagonal().min() < 0):
        raise _not_convex(f"a diagonal entry of {float(wide.diagonal().min()):.3g}")
    return wide if bool(skew == 0) else (wide + wide.T) / 2


def _not_convex(found: str) -> ConfigError:
    return ConfigError(
        "a curvature with a negative direction is not convex, so its quadratic is no Bregman divergence",
        found=found,
        fix="clamp it at 0, e.g. importance.clamp(min=0)",
    )


def _match(a: Sequence[Tensor], b: Sequence[Tensor], left: str, right: str) -> None:
    if not a or len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        raise ConfigError(
            f"{left} and {right} differ in number or shape",
            found=f"{_shapes(a)} and {_shapes(b)}",
            fix="give one tensor a parameter, in the same order and shapes",
        )


def _shapes(tensors: Sequence[Tensor]) -> str:
    """The shapes of up to four tensors, and how many there are."""
    listed = ", ".join(str(tuple(t.shape)) for t in tensors[:4])
    return f"{len(tensors)} [{listed}{', …' if len(tensors) > 4 else ''}]"
