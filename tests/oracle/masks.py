"""The choice by score, by looking at every answer there could be."""

from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal
from itertools import combinations


def by_score(
    scores: Mapping[str, float], sizes: Mapping[str, int], budget: float, measure: str = "tensors"
) -> set[str]:
    """Of all sets within the budget, the one that a ranking prefers: it has the best name if any fitting set
    has it, and among those the second best if any fitting set has both, and so on (2ⁿ sets)."""
    cost = {name: 1 if measure == "tensors" else sizes[name] for name in scores}
    limit = int((Decimal(str(budget)) * sum(cost.values())).to_integral_value(ROUND_FLOOR))
    ranking = sorted(sorted(scores), key=scores.__getitem__, reverse=True)
    fitting = [
        chosen
        for n in range(len(ranking) + 1)
        for chosen in map(set, combinations(ranking, n))
        if sum(cost[name] for name in chosen) <= limit
    ]
    return max(fitting, key=lambda chosen: [name in chosen for name in ranking])
