"""Importances one sample, one class and one autograd call at a time, and Kronecker factors of a linear layer."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

Batches = Sequence[tuple[Tensor, Tensor]]


def gradient(value: Tensor, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return dict(zip(params, torch.autograd.grad(value, list(params.values()), retain_graph=True), strict=True))


def log_p(model: nn.Module, x: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """log p(y|x), (B, classes); the softmax is taken over ``classes`` alone, other entries are -inf."""
    h = model(x)
    classes = range(h.shape[1]) if classes is None else classes
    kept = h[:, list(classes)]
    out = torch.full_like(h, -torch.inf)
    out[:, list(classes)] = kept - kept.exp().sum(1, keepdim=True).log()
    return out


def samples(batches: Batches) -> Iterator[tuple[Tensor, int]]:
    for x, y in batches:
        for i in range(len(x)):
            yield x[i : i + 1], int(y[i])


def fisher(
    model: nn.Module,
    batches: Batches,
    kind: str,
    params: dict[str, nn.Parameter],
    classes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """``exact``, ``empirical`` or ``official``; the model is taken as it is (set it to eval())."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    count = 0
    for x, y in samples(batches):
        count += 1
        row = log_p(model, x, classes)[0]
        for c in range(len(row)):
            p = float(row[c].detach().exp())
            weight = {"exact": p, "official": p * (c == y), "empirical": float(c == y)}[kind]
            if weight:
                for name, g in gradient(row[c], params).items():
                    total[name] += weight * g**2
    return {name: t / count for name, t in total.items()}


def of_batches(
    model: nn.Module, batches: Batches, labels: Sequence[Tensor], params: dict[str, nn.Parameter], mean: bool
) -> dict[str, Tensor]:
    """Squared batch gradients at ``labels``: of the batch's mean, averaged over samples, or of its sum, over N."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    count = sum(len(x) for x, _ in batches)
    for (x, _), y in zip(batches, labels, strict=True):
        g_sum = {name: torch.zeros_like(p) for name, p in params.items()}
        for i in range(len(x)):
            for name, g in gradient(log_p(model, x[i : i + 1])[0, int(y[i])], params).items():
                g_sum[name] += g
        for name, g in g_sum.items():
            total[name] += len(x) * (g / len(x)) ** 2 if mean else g**2
    return {name: t / count for name, t in total.items()}


def mas(model: nn.Module, batches: Batches, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    count = 0
    for x, _ in samples(batches):
        count += 1
        for name, g in gradient((model(x) ** 2).sum(), params).items():
            total[name] += g.abs()
    return {name: t / count for name, t in total.items()}


def block(model: nn.Module, batches: Batches, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The exact mean Fisher of one layer's [W b], W flattened to (out, in), as a full matrix (row-major)."""
    total, count = 0.0, 0
    for x, _ in samples(batches):
        count += 1
        row = log_p(model, x)[0]
        for c in range(len(row)):
            g = torch.autograd.grad(row[c], layer.weight, retain_graph=True)[0].flatten(1)
            if layer.bias is not None:
                b = torch.autograd.grad(row[c], layer.bias, retain_graph=True)[0]
                g = torch.cat([g, b.unsqueeze(1)], 1)
            total = total + row[c].detach().exp() * torch.outer(g.flatten(), g.flatten())
    return total / count
