"""Refresh and its neighbours, written once more from the papers' formulas, one tensor at a time."""

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax


def official_unlearn(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    curvature: list[Tensor],
    white: list[Tensor],
    delta: float = 1e-5,
    factor: float = 1e-3,
    noise: float = 1e-3,
) -> None:
    """The released unlearn step (refresh §4.2): a proxy copy takes an SGD step uphill, Δ is their difference."""
    proxy = copy.deepcopy(net)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    optimizer.zero_grad()
    (-cross_entropy(proxy(x), y)).backward()
    optimizer.step()
    with torch.no_grad():
        for param, other, f, xi in zip(net.parameters(), proxy.parameters(), curvature, white, strict=True):
            difference = other - param
            direction = param.norm() / (difference.norm() + 1e-20) * difference
            param.add_(delta * (direction + noise * xi) / (1 + factor * f))


def official_fisher(net: nn.Module, samples: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Mean over samples of p(y|x) (∂ log p(y|x))², one sample at a time, batch norm in evaluation mode."""
    training = net.training
    net.eval()
    total = [torch.zeros_like(param) for param in net.parameters()]
    count = 0
    for batch, labels in samples:
        for x, y in zip(batch, labels, strict=True):
            net.zero_grad()
            log_p = log_softmax(net(x.unsqueeze(0)), 1)[0, y]
            log_p.backward()
            for part, param in zip(total, net.parameters(), strict=True):
                assert param.grad is not None
                part += log_p.detach().exp() * param.grad**2
            count += 1
    net.zero_grad()
    net.train(training)
    return [part / count for part in total]


def sam_gradient(params: list[Tensor], loss: Callable[[], Tensor], rho: float) -> list[Tensor]:
    """∇L(θ + ρ g/‖g‖), θ unchanged."""
    slope = torch.autograd.grad(loss(), params)
    length = math.sqrt(sum(float((g**2).sum()) for g in slope))
    return _gradient_at(params, loss, [rho * g / length for g in slope])


def asam_gradient(params: list[Tensor], loss: Callable[[], Tensor], rho: float, eta: float) -> list[Tensor]:
    """∇L(θ + ρ T² g/‖T g‖), T = |θ| + η."""
    slope = torch.autograd.grad(loss(), params)
    scales = [param.detach().abs() + eta for param in params]
    length = math.sqrt(sum(float(((t * g) ** 2).sum()) for t, g in zip(scales, slope, strict=True)))
    return _gradient_at(params, loss, [rho * t * t * g / length for t, g in zip(scales, slope, strict=True)])


def penalty_gradient(params: list[Tensor], loss: Callable[[], Tensor], precondition: list[Tensor], gamma: float):
    """The gradient of L + (γ/2) gᵀPg for a diagonal P, by differentiating twice."""
    slope = torch.autograd.grad(loss(), params, create_graph=True)
    penalty = sum((g * p * g).sum() for g, p in zip(slope, precondition, strict=True))
    return torch.autograd.grad(loss() + gamma / 2 * penalty, params)


def _gradient_at(params: list[Tensor], loss: Callable[[], Tensor], moves: list[Tensor]) -> list[Tensor]:
    before = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param, move in zip(params, moves, strict=True):
            param += move
    gradient = torch.autograd.grad(loss(), params)
    with torch.no_grad():
        for param, old in zip(params, before, strict=True):
            param.copy_(old)
    return list(gradient)


def dense_kronecker(a: Tensor, g: Tensor, damping: float) -> Tensor:
    """(G ⊗ A + λI)⁻¹ for a joint weight (out, in [+ 1]) laid out row by row."""
    matrix = torch.kron(g, a)
    return torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))
