"""The memory's policies as one would tell them: a sample at a time, plain lists, no tensors of indices."""

from collections.abc import Sequence

import torch
from torch import Tensor


def reservoir(content: list[int], seen: int, capacity: int, items: Sequence[int], draws: Sequence[float]) -> int:
    """Vitter's algorithm R on ``content`` in place; sample ``items[i]`` uses ``draws[i]`` in [0, 1)."""
    for item, u in zip(items, draws, strict=True):
        if len(content) < capacity:
            content.append(item)
        else:
            row = int(u * (seen + 1))
            if row < capacity:
                content[row] = item
        seen += 1
    return seen


def balanced(keys: Sequence[float], labels: Sequence[int], capacity: int) -> set[int]:
    """Positions that stay: round by round each class gives its best sample left, in the last round best first."""
    waiting = {c: sorted((k, i) for i, k in enumerate(keys) if labels[i] == c) for c in set(labels)}
    kept: set[int] = set()
    while len(kept) < capacity and any(waiting.values()):
        offered = sorted(queue.pop(0) for queue in waiting.values() if queue)
        kept |= {i for _, i in offered[: capacity - len(kept)]}
    return kept


def ring(labels: Sequence[int], share: int) -> dict[int, list[int]]:
    """Class to the positions of its last ``share`` samples, oldest first."""
    queues: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        queue = queues.setdefault(label, [])
        queue.append(i)
        if len(queue) > share:
            queue.pop(0)
    return queues


def herding_distances(features: Tensor, picked: list[int]) -> list[float]:
    """iCaRL, algorithm 4, every distance written out: of each row to the class mean if it came next (picked: inf)."""
    rows = [row / row.norm() if row.norm() > 0 else row for row in features.double()]
    mean = sum(rows) / len(rows)
    distances = []
    for i, row in enumerate(rows):
        total = row + sum((rows[j] for j in picked), torch.zeros_like(row))
        distances.append(float("inf") if i in picked else float((mean - total / (len(picked) + 1)).norm()))
    return distances
