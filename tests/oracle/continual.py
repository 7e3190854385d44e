"""Losses and updates of methods of continual learning, written once more from the papers' formulas (refresh.md §1.3).

One sample, one class, one weight at a time where that is bearable. ``net`` maps (B, ...) to logits (B, C).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

Net = Callable[[Tensor], Tensor]
Memory = tuple[Tensor, Tensor, Tensor | None] | None


# ---- losses of outputs ----


def mean(values: Iterable[Tensor]) -> Tensor:
    listed = list(values)
    return sum(listed[1:], listed[0]) / len(listed)


def surprise(h: Tensor, y: int, classes: Iterable[int] | None = None) -> Tensor:
    """-log of the softmax over ``classes`` at y, h (C,)."""
    of = range(len(h)) if classes is None else classes
    return torch.log(sum(torch.exp(h[c]) for c in of)) - h[y]


def cross_entropy(net: Net, x: Tensor, y: Tensor, classes: Iterable[int] | None = None) -> Tensor:
    return mean(surprise(h, int(label), classes) for h, label in zip(net(x), y, strict=True))


def er(net: Net, x: Tensor, y: Tensor, memory: Memory, alpha: float) -> Tensor:
    new = cross_entropy(net, x, y)
    return new if memory is None else new + alpha * cross_entropy(net, memory[0], memory[1])


def er_concatenated(net: Net, x: Tensor, y: Tensor, memory: Memory) -> Tensor:
    if memory is None:
        return cross_entropy(net, x, y)
    return cross_entropy(net, torch.cat([x, memory[0]]), torch.cat([y, memory[1]]))


def er_ace(net: Net, x: Tensor, y: Tensor, memory: Memory, alpha: float) -> Tensor:
    new = cross_entropy(net, x, y, sorted(set(y.tolist())))
    return new if memory is None else new + alpha * cross_entropy(net, memory[0], memory[1])


def to_stored(net: Net, memory: Memory) -> Tensor:
    """Mean over samples and classes of (h - z)²."""
    assert memory is not None and memory[2] is not None
    rows = zip(net(memory[0]), memory[2], strict=True)
    return mean(mean((a - b) ** 2 for a, b in zip(h, z, strict=True)) for h, z in rows)


def der(net: Net, x: Tensor, y: Tensor, memory: Memory, alpha: float) -> Tensor:
    new = cross_entropy(net, x, y)
    return new if memory is None else new + alpha * to_stored(net, memory)


def derpp(net: Net, x: Tensor, y: Tensor, first: Memory, second: Memory, alpha: float, beta: float) -> Tensor:
    loss = der(net, x, y, first, alpha)
    return loss if second is None else loss + beta * cross_entropy(net, second[0], second[1])


def xder(
    net: Net,
    x: Tensor,
    y: Tensor,
    first: Memory,
    second: Memory,
    alpha: float,
    beta: float,
    new: list[int],
    old: list[int] | None = None,
) -> Tensor:
    """``old``: the classes that the memory's cross-entropy is over; all without."""
    loss = cross_entropy(net, x, y, new)
    if first is None or second is None:
        return loss
    return loss + alpha * to_stored(net, first) + beta * cross_entropy(net, second[0], second[1], old)


def implanted(z: Tensor, now: Tensor, y: int, new: list[int], gamma: float, threshold: float) -> Tensor:
    """Stored logits z (C,) with those of the present outputs at ``new``: where the largest passes threshold × z_y, it
    is scaled to gamma × z_y."""
    z = z.clone()
    most, cap, limit = max(float(now[c]) for c in new), gamma * float(z[y]), threshold * float(z[y])
    for c in new:
        if most <= limit:
            z[c] = now[c]
        elif most * cap > 0:
            z[c] = now[c] * cap / most
        else:
            z[c] = 0
    return z


def fdr(net: Net, x: Tensor, y: Tensor, memory: Memory, alpha: float) -> Tensor:
    loss = cross_entropy(net, x, y)
    if memory is None:
        return loss
    rows = zip(net(memory[0]).softmax(1), memory[2].softmax(1), strict=True)
    return loss + alpha * mean(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p, q in rows)


def cpr(net: Net, x: Tensor, alpha: float) -> Tensor:
    """α (log C - H(p))."""
    rows = net(x).softmax(1)
    return alpha * mean(math.log(len(p)) + sum(v * v.log() for v in p) for p in rows)


def smoothed(net: Net, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Cross-entropy with targets (1 - ε) e_y + ε/C."""

    def one(h: Tensor, label: int) -> Tensor:
        targets = [(1 - epsilon) * (c == label) + epsilon / len(h) for c in range(len(h))]
        return sum(t * surprise(h, c) for c, t in enumerate(targets))

    return mean(one(h, int(label)) for h, label in zip(net(x), y, strict=True))


def lwf(
    net: Net, old: Net | None, x: Tensor, y: Tensor, seen: list[int], before: list[int], alpha: float, t: float
) -> Tensor:
    """CE over seen classes, + α T² × the cross-entropy of softened answers over earlier classes."""
    loss = cross_entropy(net, x, y, seen)
    if old is None:
        return loss
    target = (old(x)[:, before] / t).softmax(1).detach()
    answer = (net(x)[:, before] / t).log_softmax(1)
    return loss - alpha * t**2 * mean((q * p).sum() for q, p in zip(target, answer, strict=True))


def icarl(
    net: Net, old: Net | None, x: Tensor, y: Tensor, memory: Memory, new: list[int], before: list[int], alpha: float
) -> Tensor:
    """Binary cross-entropy: new classes against labels, old ones against the old network's sigmoids."""
    if memory is not None:
        x, y = torch.cat([x, memory[0]]), torch.cat([y, memory[1]])
    g = net(x).sigmoid()
    q = None if old is None else old(x).sigmoid().detach()
    rows = []
    for i in range(len(x)):
        total = torch.zeros((), dtype=g.dtype)
        for c in new:
            total = total - (g[i, c].log() if int(y[i]) == c else (1 - g[i, c]).log())
        for c in before if q is not None else []:
            total = total - alpha * (q[i, c] * g[i, c].log() + (1 - q[i, c]) * (1 - g[i, c]).log())
        rows.append(total)
    return mean(rows)


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def herded(phi: Tensor, count: int) -> list[int]:
    """iCaRL, algorithm 4: each pick keeps the mean of the picks nearest to the mean of all."""
    phi = torch.stack([unit(v) for v in phi])
    mu, picks = phi.mean(0), []
    for _ in range(count):
        rest = [i for i in range(len(phi)) if i not in picks]
        picks.append(min(rest, key=lambda i: float((mu - phi[[*picks, i]].mean(0)).norm())))
    return picks


def to_means(phi: Tensor, kept: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Distances (B, classes) of unit features from each class's mean of unit features (brought to length 1)."""
    found = torch.full((len(phi), classes), math.inf, dtype=phi.dtype)
    for c in set(labels.tolist()):
        mu = unit(torch.stack([unit(v) for v in kept[labels == c]]).mean(0))
        for i, v in enumerate(phi):
            found[i, c] = (unit(v) - mu).norm()
    return found


# ---- quadratics around old weights ----


def quadratic(params: Sequence[Tensor], anchor: Sequence[Tensor], importance: Sequence[Tensor]) -> Tensor:
    """½ Σ F (θ - θ_old)²."""
    parts = zip(params, anchor, importance, strict=True)
    return 0.5 * sum((f * (p - a) ** 2).sum() for p, a, f in parts)


class Path:
    """SI and RWalk: follow the weights by (task loss's gradient, weights before, weights after)."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.omega = [torch.zeros_like(p) for p in params]
        self.score = [torch.zeros_like(p) for p in params]
        self.last_score: list[Tensor] | None = None
        self.fisher = [torch.zeros_like(p) for p in params]
        self.start = [p.detach().clone() for p in params]

    def moved(self, g: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], decay: float, eps: float):
        for i in range(len(g)):
            move = after[i] - before[i]
            self.omega[i] = self.omega[i] - g[i] * move
            self.fisher[i] = decay * self.fisher[i] + (1 - decay) * g[i] ** 2
            gain = torch.maximum(-g[i] * move, torch.zeros(()))
            self.score[i] = self.score[i] + gain / (0.5 * self.fisher[i] * move**2 + eps)

    def si(self, params: Sequence[Tensor], xi: float) -> list[Tensor]:
        """max(0, ω / (Δ² + ξ)) of the task, and begin the next."""
        found = []
        for i, p in enumerate(params):
            ratio = self.omega[i] / ((p.detach() - self.start[i]) ** 2 + xi)
            found.append(torch.maximum(ratio, torch.zeros(())))
        self._begin(params)
        return found

    def rwalk(self, params: Sequence[Tensor]) -> list[Tensor]:
        """F̃ + s, both divided by their largest entry, and begin the next."""
        score = self.score
        if self.last_score is not None:
            score = [(a + b) / 2 for a, b in zip(self.last_score, score, strict=True)]
        self.last_score = score
        most_f, most_s = (max(float(t.max()) for t in each) for each in (self.fisher, score))
        self._begin(params)
        return [f / most_f + s / most_s for f, s in zip(self.fisher, score, strict=True)]

    def _begin(self, params: Sequence[Tensor]) -> None:
        self.omega = [torch.zeros_like(p) for p in params]
        self.score = [torch.zeros_like(p) for p in params]
        self.start = [p.detach().clone() for p in params]


def layer_factors(net: Net, x: Tensor, layer: nn.Linear, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A = E[a aᵀ] with a = [input, 1], and G = E Σ_y p g gᵀ with g the gradient at the layer's output (its bias's)."""
    a = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)
    g_sum = torch.zeros(layer.out_features, layer.out_features, dtype=inputs.dtype)
    for sample in x:
        row = net(sample[None]).log_softmax(1)[0]
        for value in row:
            (g,) = torch.autograd.grad(value, layer.bias, retain_graph=True)
            g_sum += value.detach().exp() * torch.outer(g, g)
    return sum(torch.outer(v, v) for v in a.detach()) / len(a), g_sum / len(x)


def dense(weight: Tensor, bias: Tensor, matrix: Tensor) -> Tensor:
    """½ δᵀ M δ with δ = [W b] row by row."""
    delta = torch.cat([weight, bias[:, None]], 1).flatten()
    return 0.5 * delta @ matrix @ delta


# ---- Gaussians over weights ----


def gaussian_kl(
    mean: Sequence[Tensor], log_std: Sequence[Tensor], old_mean: Sequence[Tensor], old_log_std: Sequence[Tensor]
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for m, s, a, b in zip(mean, log_std, old_mean, old_log_std, strict=True):
        total = total + kl_divergence(Normal(m, s.exp()), Normal(a, b.exp())).sum()
    return total


def natural_step(
    loss: Callable[[list[Tensor], list[Tensor]], Tensor],
    mean: Sequence[Tensor],
    variance: Sequence[Tensor],
    rate: float,
    samples: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """New means and variances: 1/σ² += 2ρN ∂L/∂σ², then m -= ρN σ² ∂L/∂m, ``loss`` a function of (m, σ²)."""
    m = [t.detach().clone().requires_grad_() for t in mean]
    v = [t.detach().clone().requires_grad_() for t in variance]
    grads = torch.autograd.grad(loss(m, v), [*m, *v])
    new_v = [1 / (1 / a.detach() + 2 * rate * samples * g) for a, g in zip(v, grads[len(m) :], strict=True)]
    new_m = [a.detach() - rate * samples * g * b for a, g, b in zip(m, grads[: len(m)], new_v, strict=True)]
    return new_m, new_v


# ---- rules on the gradient ----


def agem_weight(g: Tensor, reference: Tensor) -> float:
    """α_t = max(0, -<g, g_M>) / ‖g_M‖²."""
    return max(0.0, -float(g @ reference)) / float(reference @ reference)


def gem_by_faces(memories: Tensor, g: Tensor, margin: float) -> Tensor:
    """The multipliers of min ½‖g + Σ v_k g_k‖², v ≥ margin, by trying every set of active bounds."""
    gram, linear = memories @ memories.T, memories @ g
    best, value = None, math.inf
    for free in itertools.product([False, True], repeat=len(gram)):
        v = torch.full((len(gram),), margin, dtype=g.dtype)
        inner = [i for i, f in enumerate(free) if f]
        outer = [i for i, f in enumerate(free) if not f]
        if inner:
            right = -linear[inner] - gram[inner][:, outer] @ v[outer]
            v[inner] = torch.linalg.solve(gram[inner][:, inner], right)
        if bool((v >= margin - 1e-12).all()):
            now = float(0.5 * v @ gram @ v + linear @ v)
            if now < value:
                best, value = v, now
    assert best is not None
    return best


def gem_by_slsqp(memories: Tensor, g: Tensor) -> Tensor:
    """The primal: the vector nearest to g whose inner product with no memory gradient is negative."""
    rows, target = memories.numpy(), g.numpy()
    found = minimize(
        lambda z: 0.5 * float(np.sum((z - target) ** 2)),
        target,
        jac=lambda z: z - target,
        constraints=[{"type": "ineq", "fun": lambda z: rows @ z, "jac": lambda z: rows}],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    return torch.from_numpy(found.x)


def off_span(g: Tensor, vectors: Tensor) -> Tensor:
    """g (P,) less its least-squares fit by the columns of (P, k), whatever their rank."""
    return g - vectors @ (torch.linalg.pinv(vectors, rtol=1e-9) @ g)


def true_logit_gradients(net: Net, x: Tensor, y: Tensor, params: Sequence[Tensor]) -> Tensor:
    """∂h_y/∂θ of each sample, (P, n)."""
    columns = []
    for sample, label in zip(x, y, strict=True):
        grads = torch.autograd.grad(net(sample[None])[0, int(label)], list(params))
        columns.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(columns, 1)


def grown(basis: Tensor | None, inputs: Tensor, threshold: float) -> Tensor:
    """GPM: add left singular vectors of what the basis misses of ``inputs`` (d, n) until it holds the threshold."""
    total = float((inputs**2).sum())
    basis = inputs[:, :0] if basis is None else basis
    inside = float(((basis @ basis.T @ inputs) ** 2).sum())
    u, s, _ = torch.linalg.svd(inputs - basis @ basis.T @ inputs)
    taken = 0
    while inside < threshold * total - 1e-9 * total:
        inside += float(s[taken] ** 2)
        taken += 1
    return torch.cat([basis, u[:, :taken]], 1)


def penalised_step(g: Tensor, projector: Tensor, lr: float, beta: float) -> Tensor:
    """argmin_δ <g, δ> + ‖δ‖²/(2η) + β/2 δᵀPδ."""
    eye = torch.eye(len(g), dtype=g.dtype)
    return torch.linalg.solve(eye / lr + beta * projector, -g)


# ---- training from memory ----


def fit(
    net: nn.Module, params: Sequence[nn.Parameter], batches: Sequence[tuple[Tensor, Tensor]], lr: float, momentum: float
) -> None:
    """SGD with momentum over these batches, the rate falling along half a cosine; cross-entropy."""
    speed = [torch.zeros_like(p) for p in params]
    for step, (x, y) in enumerate(batches):
        grads = torch.autograd.grad(cross_entropy(net, x, y), list(params))
        rate = lr * (1 + math.cos(math.pi * step / len(batches))) / 2
        with torch.no_grad():
            for i, p in enumerate(params):
                speed[i] = momentum * speed[i] + grads[i]
                p -= rate * speed[i]
