"""Curvatures that no method needs: a low-rank one, for the limits of OGD and GPM, and a whole matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unteach.core.curvature import Curvature, _constants, _importances, _match, _not_convex, _shapes, _symmetric, _wide
from unteach.errors import ConfigError


@dataclass(frozen=True, eq=False)
class LowRank(Curvature):
    """A = U Uᵀ, or U Uᵀ + diag(F): OGD, GPM, low-rank Laplace.

    Args:
        factor: U. Either one tensor (D, r) over the concatenation, or its rows cut into one tensor (d_i, r) for each
            parameter. The pieces share their r columns: A is not block-diagonal.
        diagonal: F as in :class:`Diagonal`, or none.

    Raises:
        ConfigError: pieces that are not matrices with the same number of columns, or negative entries in F.
        NumericsError: entries that are not finite.
    """

    factor: Tensor | Sequence[Tensor]
    diagonal: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        pieces = [self.factor] if isinstance(self.factor, Tensor) else list(self.factor)
        if not pieces or any(piece.dim() != 2 for piece in pieces) or len({piece.shape[1] for piece in pieces}) > 1:
            raise ConfigError(
                "the factor of a low-rank curvature is a matrix (D, r), or the pieces (d_i, r) of one",
                found=_shapes(pieces),
                fix="give every piece the same number of columns",
            )
        wide = _constants(pieces)
        object.__setattr__(self, "factor", wide[0] if isinstance(self.factor, Tensor) else wide)
        if self.diagonal is not None:
            object.__setattr__(self, "diagonal", _importances(self.diagonal))

    def times(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """U (Uᵀδ) + F ⊙ δ."""
        wide = _wide(delta)
        pieces = self._pieces(wide)
        along = _along(pieces, wide)
        product = [(piece.to(d.dtype) @ along.to(d.dtype)).view(d.shape) for piece, d in zip(pieces, wide, strict=True)]
        if self.diagonal is None:
            return product
        return list(torch._foreach_add(product, torch._foreach_mul(wide, list(self.diagonal))))

    def _pieces(self, delta: Sequence[Tensor]) -> list[Tensor]:
        sizes = [d.numel() for d in delta]
        whole = isinstance(self.factor, Tensor)
        pieces = [self.factor] if isinstance(self.factor, Tensor) else list(self.factor)
        rows = [piece.shape[0] for piece in pieces]
        if rows != ([sum(sizes)] if whole else sizes):
            raise ConfigError(
                "the differences do not fit the rows of the low-rank factor",
                found=f"tensors of {sizes} entries, factors of {rows} rows",
                fix="give one row for each entry of the parameters, in their order",
            )
        if self.diagonal is not None:
            _match(delta, self.diagonal, "the differences", "the diagonal")
        return list(torch.split(pieces[0], sizes)) if whole else pieces


@dataclass(frozen=True, eq=False)
class Dense(Curvature):
    """A as one matrix (D, D) over the concatenation: for tests and small networks.

    Raises:
        ConfigError: not square, not symmetric, or with a negative eigenvalue beyond rounding.
        NumericsError: entries that are not finite.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        matrix = _symmetric(self.matrix)
        eigenvalues = torch.linalg.eigvalsh(matrix)
        rounding = 10 * matrix.shape[0] * torch.finfo(matrix.dtype).eps * eigenvalues.abs().max()
        if bool(eigenvalues[0] < -rounding):
            raise _not_convex(f"an eigenvalue of {float(eigenvalues[0]):.3g}")
        object.__setattr__(self, "matrix", matrix)

    def times(self, delta: Sequence[Tensor]) -> list[Tensor]:
        """A δ."""
        wide = _wide(delta)
        sizes = [d.numel() for d in wide]
        if sum(sizes) != self.matrix.shape[0]:
            raise ConfigError(
                "the differences do not fit the matrix",
                found=f"{sum(sizes)} entries and a matrix {tuple(self.matrix.shape)}",
                fix="give one row for each entry of the parameters, in their order",
            )
        flat = torch.cat([d.reshape(-1) for d in wide])
        product = self.matrix.to(flat.dtype) @ flat
        return [part.view(d.shape) for part, d in zip(torch.split(product, sizes), wide, strict=True)]


def _along(pieces: Sequence[Tensor], delta: Sequence[Tensor]) -> Tensor:
    """Uᵀδ, shape (r,)."""
    parts = [piece.T.to(d.dtype) @ d.reshape(-1) for piece, d in zip(pieces, delta, strict=True)]
    return torch.stack(parts).sum(0)
