"""Which samples a memory keeps: pure functions of labels, keys, rows and features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unteach.errors import ConfigError, DataError

__all__ = ["fair", "herding", "last_wins", "rank_within"]


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


def herding(features: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` samples whose running mean stays nearest to the mean of all (iCaRL, algorithm 4).

    Step k picks p_k = argmin_i ‖μ - (φ_i + Σ_{j<k} φ_{p_j}) / k‖ among those not picked yet, with features φ
    brought to length 1 and μ their mean (not brought to length 1 again); ties go to the first.

    Args:
        features: (N, d), of the samples of one class.
        count: how many; all N, in this order, if there are fewer.

    Returns:
        (min(count, N),) int64, best first, on the features' device: any first part is itself a herding.

    Raises:
        DataError: features that are not a matrix, or not finite.
        ConfigError: a negative count.
    """
    if features.ndim != 2 or not bool(torch.isfinite(features).all()):
        raise DataError(
            "herding needs a matrix of finite features",
            found=f"shape {tuple(features.shape)}",
            fix="give one row of features a sample",
        )
    if count < 0:
        raise ConfigError("herding cannot pick fewer than no samples", found=count, fix="ask for 0 or more")
    phi = torch.nn.functional.normalize(features.detach().double(), dim=1)
    # ‖kμ - s - φ_i‖² = const + ‖φ_i‖² - 2 <φ_i, kμ - s>: a running score instead of N distances a step.
    square, to_mean = phi.square().sum(1), phi @ phi.mean(0) if len(phi) else phi.new_zeros(0)
    to_sum = torch.zeros_like(square)
    free = torch.zeros_like(square)
    picks = []
    for k in range(1, min(count, len(phi)) + 1):
        pick = (square - 2 * (k * to_mean - to_sum) + free).argmin()
        free[pick] = torch.inf
        to_sum += phi @ phi[pick]
        picks.append(pick)
    return torch.stack(picks) if picks else torch.zeros(0, dtype=torch.int64, device=features.device)
