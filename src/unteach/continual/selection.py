"""Which samples a memory keeps: pure functions of labels, keys and rows, on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fair", "last_wins", "rank_within"]


def last_wins(targets: Sequence[int], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each target once, in order of first arrival, and the last row bound for it."""
    last = dict(zip(targets, rows, strict=True))
    return torch.tensor(list(last), dtype=torch.int64), torch.tensor(list(last.values()), dtype=torch.int64)


def rank_within(labels: Tensor) -> Tensor:
    """How many earlier entries have the same label, shape (n,)."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


def fair(keys: Tensor, labels: Tensor, capacity: int) -> Tensor:
    """Which ``capacity`` of the samples stay, bool (n,): those of lowest rank by key within their class.

    The last places left go to the smallest keys. A class's share only shrinks as more is offered, so a sample
    that was dropped would never be wanted back, and the outcome does not depend on how the samples were batched.
    """
    order = keys.argsort()
    rank = torch.empty_like(labels)
    rank[order] = rank_within(labels[order])
    kept = torch.zeros(len(keys), dtype=torch.bool)
    kept[(rank + keys).argsort()[:capacity]] = True
    return kept
