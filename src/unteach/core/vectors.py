"""Lists of gradients as one vector and back, for rules that work on whole gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor


def flat(gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> Tensor:
    """All gradients as one vector (P,); zeros where a parameter has none."""
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(gradients, params, strict=True)]
    )


def shaped(flat: Tensor, like: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor | None]:
    """A vector (P,) in the shapes of the parameters; None where ``like`` has none."""
    parts = torch.split(flat, [p.numel() for p in params])
    return [None if g is None else part.view_as(p) for part, g, p in zip(parts, like, params, strict=True)]
