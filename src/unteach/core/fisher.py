"""How much each parameter matters: diagonal Fisher information, Kronecker factors of it, and MAS.

With g_y = ∂ log p(y|x)/∂θ, every value is a *mean over samples*, so that it depends neither on the number of
samples nor on how they are cut into batches (``kind="batch"`` apart). The network is in evaluation mode during
the pass (batch norm by its running statistics, no dropout) and is handed back as it was, statistics included.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unteach.core.kernels import channels_last_is_safe, is_channels_last
from unteach.core.persample import (
    Cotangent,
    Implementation,
    Reduce,
    Target,
    channels_last,
    choose,
    evaluating,
    padded,
    record,
    target,
)
from unteach.core.registry import near
from unteach.errors import ConfigError, DataError, ModelError, NumericsError

Kind = Literal["exact", "empirical", "sampled", "official", "batch"]
KroneckerKind = Literal["exact", "empirical", "sampled"]
Batches = Iterable[tuple[Tensor, Tensor]]


def fisher(
    model: nn.Module,
    batches: Batches,
    *,
    kind: Kind = "exact",
    params: Mapping[str, nn.Parameter] | None = None,
    classes: Tensor | None = None,
    implementation: Implementation = "auto",
    generator: torch.Generator | None = None,
    chunk: int = 32,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of p(y|x) = softmax of the logits, averaged over samples.

    - ``exact``: mean_x Σ_y p(y|x) g_y², one backward pass a class. The Fisher.
    - ``sampled``: one y ~ p(·|x) a sample, unbiased for ``exact``. Since E[g_y] = 0, cross terms vanish and one
      backward pass a batch does: (Σ_b g_b)² / N summed over batches, i.e. B·ḡ² weighted by batch size
      (refresh §4.5). Its relative error per entry is about √(2 / number of batches): give many small batches.
    - ``empirical``: mean_x g_y² at the true label. Not the Fisher unless the model fits the labels.
    - ``official``: mean_x p(y|x) g_y² at the true label, the refresh and Mammoth codes' (refresh §4.2): one
      term of the exact sum.
    - ``batch``: ḡ² with ḡ the mean gradient of a batch at the true labels, averaged over batches (by size);
      what Avalanche, FACIL and others compute. Not a Fisher: it shrinks with the batch size, to about
      ``empirical`` / B where gradients are uncorrelated.

    Args:
        model: maps x (B, ...) to logits (B, C); samples must not depend on each other in evaluation mode, and
            dimension 0 of every layer's input must be the batch.
        batches: (x float (B, ...), y int64 (B,)) pairs; ``exact`` and ``sampled`` use y for nothing but a check.
        kind: see above.
        params: result key to parameter; default all that require a gradient, by name, in the model's order.
        classes: bool (C,), softmax over these classes only (those seen so far); default all.
        implementation: how per-sample kinds are computed, see :mod:`unteach.core.persample`; ``auto`` takes hooks, else
            vmap, else the loop. All give the same to rounding.
        generator: draws the labels of ``sampled``, which needs one; equal seeds give equal labels.
        chunk: samples at a time in the per-sample kinds; bounds memory, changes nothing else.

    Returns:
        Key to tensor of the parameter's shape, in the order of ``params``, in fp32 (fp64 for fp64 parameters).

    Raises:
        ConfigError: an unknown kind or implementation, chunk below 1, no generator for ``sampled``, bad classes.
        DataError: no batch, an empty batch, labels that are not int64 (B,), or outside the head or ``classes``.
        ModelError: a parameter without a gradient, logits that are not (B, C), batch norm without running
            statistics, or an implementation that cannot serve the model.
        NumericsError: a value that is not finite.
    """
    _check(kind, get_args(Kind), implementation, chunk, generator)
    work = target(model, params)
    totals = work.zeros()
    samples = 0
    with evaluating(model):
        stream = _Stream(work, batches, classes)
        cotangent = _log_likelihood(stream.allowed, weighted=kind in ("exact", "official"))
        if kind in ("sampled", "batch"):
            choose(work, stream.first, "loop")  # for its checks
            for x, y in stream:
                logits = model(x)
                labels = (
                    draw(logits.detach(), stream.allowed, generator)
                    if kind == "sampled" and generator is not None
                    else y
                )
                v = cotangent(logits.detach(), labels)
                grads = torch.autograd.grad(logits, list(work.params.values()), v)
                for total, g in zip(totals.values(), grads, strict=True):
                    total += g.square() / (1 if kind == "sampled" else len(x))
                samples += len(x)
        else:
            every = stream.allowed.nonzero() if kind == "exact" else None
            samples = _per_sample(work, stream, every, cotangent, "square", implementation, chunk, totals)
    return _mean(totals, samples)


def mas(
    model: nn.Module,
    batches: Batches,
    *,
    params: Mapping[str, nn.Parameter] | None = None,
    implementation: Implementation = "auto",
    chunk: int = 32,
) -> dict[str, Tensor]:
    """Memory-aware synapses: Ω = mean over samples of |∂‖h(x)‖²/∂θ|, h the logits (Aljundi et al. 2018, eq. 3-4).

    The absolute value is taken per sample. Labels are not used. Arguments, results and errors as in
    :func:`fisher`.
    """
    _check("exact", get_args(Kind), implementation, chunk, None)
    work = target(model, params)
    totals = work.zeros()
    with evaluating(model):
        stream = _Stream(work, batches, None, labels=False)
        samples = _per_sample(work, stream, None, lambda h, _: 2 * h, "abs", implementation, chunk, totals)
    return _mean(totals, samples)


def kronecker(
    model: nn.Module,
    batches: Batches,
    *,
    kind: KroneckerKind = "exact",
    layers: Iterable[str] | None = None,
    classes: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Kronecker factors (A, G) of each layer's block of the mean Fisher: F ≈ G ⊗ A for row-major [W b].

    A is (in + 1, in + 1) with a last row and column for the bias, if there is one, and G is (out, out), so that
    F[(o, i), (o', i')] ≈ G[o, o'] A[i, i'] and, for a change Δ of [W b], vec(Δ)ᵀ F vec(Δ) ≈ tr(Δᵀ G Δ A).
    With per-sample input a and output gradient g of log p(y|x) (means over samples, y as for ``kind``):

    - linear on (B, in): A = E[a aᵀ], G = E[g gᵀ] (Martens & Grosse 2015). Exact for one sample.
    - linear on (B, ..., in) and convolution, T positions t: A = E[Σ_t a_t a_tᵀ], G = E[Σ_t g_t g_tᵀ] / T, with
      a_t the patch in the order of the weight's (in, kh, kw) (Grosse & Martens 2016, eq. 31-32).

    Args:
        model: as in :func:`fisher`.
        batches: as in :func:`fisher`.
        kind: ``exact`` (all classes, weighted by p), ``sampled`` or ``empirical``.
        layers: dotted names of ``Linear`` and ``Conv2d`` modules, each called once; default all whose weight
            requires a gradient, in the model's order.
        classes: as in :func:`fisher`.
        generator: as in :func:`fisher`.

    Raises:
        ModelError: no such layer, a layer that is called several times, or one with groups.
        ConfigError, DataError, NumericsError: as in :func:`fisher`.
    """
    _check(kind, get_args(KroneckerKind), "auto", 1, generator)
    named = _kronecker_layers(model, layers)
    work = target(model, {f"{name}.weight": module.get_parameter("weight") for name, module in named.items()})
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    samples = 0
    with evaluating(model):
        stream = _Stream(work, batches, classes)
        cotangent = _log_likelihood(stream.allowed, weighted=kind == "exact")
        for x, y in stream:
            logits, calls = record(model, named.values(), x)
            for name, module in named.items():
                if len(calls[module]) != 1 or len(calls[module][0].input) != len(x):
                    raise ModelError(
                        f"Kronecker factors need '{name}' to be called once, with the batch in dimension 0",
                        found=f"{len(calls[module])} calls",
                        fix="name the other layers in layers",
                    )
            rows = y.unsqueeze(0)
            if kind == "exact":
                rows = stream.allowed.nonzero().expand(-1, len(x))
            elif kind == "sampled" and generator is not None:
                rows = draw(logits.detach(), stream.allowed, generator).unsqueeze(0)
            parts = {name: [_input_factor(module, calls[module][0].input)] for name, module in named.items()}
            edges = [calls[module][0].output for module in named.values()]
            for row in rows:
                deltas = torch.autograd.grad(logits, edges, cotangent(logits.detach(), row), retain_graph=True)
                for (name, module), delta in zip(named.items(), deltas, strict=True):
                    parts[name].append(_output_factor(module, delta))
            for name, (a, *g) in parts.items():
                both = a, torch.stack(g).sum(0)
                sums[name] = (sums[name][0] + both[0], sums[name][1] + both[1]) if name in sums else both
            samples += len(x)
    flat = _mean({f"{i} of {name}": s for name, pair in sums.items() for i, s in zip("AG", pair, strict=True)}, samples)
    return {name: (flat[f"A of {name}"], flat[f"G of {name}"]) for name in sums}


def draw(logits: Tensor, allowed: Tensor, generator: torch.Generator) -> Tensor:
    """One label per row of ``logits`` (B, C), drawn from their softmax over ``allowed`` (bool (C,)); int64 (B,).

    On the CPU in fp64, so that equal logits and seeds give equal labels on every device.
    """
    p = _log_softmax(logits, allowed).cpu().double().exp()
    cumulative = p.cumsum(-1)
    u = torch.rand(len(p), 1, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    label = (cumulative <= u * cumulative[:, -1:]).sum(-1)
    return label.clamp(max=int(allowed.nonzero().max())).to(logits.device)


def _log_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """log p over the allowed classes, -∞ elsewhere, the shape of ``logits`` (..., C)."""
    return torch.log_softmax(logits.masked_fill(~allowed, -math.inf), -1)


def _log_likelihood(allowed: Tensor, *, weighted: bool) -> Cotangent:
    """Cotangent of log p(y|x): e_y - p; if ``weighted`` times √p_y, so that squares carry the weight p_y."""

    def cotangent(logits: Tensor, label: Tensor) -> Tensor:
        log_p = _log_softmax(logits, allowed)
        hit = torch.arange(logits.shape[-1], device=logits.device) == label.unsqueeze(-1)
        v = hit.to(log_p.dtype) - log_p.exp()
        if weighted:
            v = v * (log_p.gather(-1, label.unsqueeze(-1)) / 2).exp()
        return v

    return cotangent


def _per_sample(
    work: Target,
    stream: "_Stream",
    every: Tensor | None,
    cotangent: Cotangent,
    reduce: Reduce,
    implementation: Implementation,
    chunk: int,
    totals: dict[str, Tensor],
) -> int:
    """Add Σ_b reduce(g_b) over the stream, at its labels or at ``every`` class (K, 1); the number of samples."""
    accumulate = choose(work, stream.first, implementation)
    samples = 0
    for x, y in stream:
        for piece, labels in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
            rows = labels.unsqueeze(0) if every is None else every.expand(-1, len(piece))
            accumulate(work, piece, rows, cotangent, reduce, totals)
        samples += len(x)
    return samples


class _Stream:
    """The batches, checked one by one and moved to the parameters' device; knows the first and the head's width."""

    def __init__(self, work: Target, batches: Batches, classes: Tensor | None, *, labels: bool = True) -> None:
        self._iterator = iter(batches)
        self._labels = labels
        self._device = next(iter(work.params.values())).device
        self._given = next(self._iterator, None)
        if self._given is None:
            raise DataError("no batch was given, so there is nothing to average over", fix="give at least one sample")
        self._format: Callable[[Tensor], Tensor] = lambda x: x
        x = self._given[0].to(self._device)
        if not len(x):
            raise _empty()
        if channels_last(work.model, x):
            self._format = lambda x: x.contiguous(memory_format=torch.channels_last)
        elif x.dim() == 4 and not channels_last_is_safe(work.model):
            _refuse_channels_last(work.model, self._device)
            self._format = lambda x: x.contiguous()
        self.first = self._format(x[:2])
        width = record(work.model, (), self.first)[0].shape[1]
        self.allowed = torch.ones(width, dtype=torch.bool, device=self._device)
        if classes is not None:
            if classes.dtype != torch.bool or classes.shape != (width,) or not classes.any():
                raise ConfigError(
                    f"classes must be a bool tensor ({width},), one entry a logit, with at least one True",
                    found=f"{classes.dtype}, shape {tuple(classes.shape)}, {int(classes.sum())} non-zero",
                )
            self.allowed = classes.to(self._device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self._given
        while batch is not None:
            x, y = (t.to(self._device) for t in batch)
            if not len(x):
                raise _empty()
            if self._labels:
                self._check_labels(x, y)
            yield self._format(x), y
            batch = next(self._iterator, None)

    def _check_labels(self, x: Tensor, y: Tensor) -> None:
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise DataError(
                f"labels must be int64, one for each of the {len(x)} samples", found=f"{y.dtype}, {tuple(y.shape)}"
            )
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= len(self.allowed):
            raise DataError(
                f"labels must lie in [0, {len(self.allowed)}), the width of the head",
                found=f"labels from {low} to {high}",
                fix="use the labels that the head was made for, or a wider head",
            )
        if not bool(self.allowed[y].all()):
            raise DataError(
                "a label is not one of the classes that the softmax is restricted to",
                found=f"labels {sorted(set(y[~self.allowed[y]].tolist()))}",
                fix="set them in classes, or leave these samples out",
            )


def _kronecker_layers(model: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers to take factors of, by name."""
    known = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if layers is None:
        named = {name: module for name, module in known.items() if module.weight.requires_grad}
    else:
        wanted = list(layers)
        missing = [name for name in wanted if name not in known]
        if missing:
            raise ModelError(f"no linear or convolution layer is called '{missing[0]}'", fix=near(missing[0], known))
        named = {name: known[name] for name in wanted}
    if not named:
        raise ModelError("there is no linear or convolution layer with a weight to learn", found=type(model).__name__)
    for name, module in named.items():
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ModelError(
                "Kronecker factors are not defined for a grouped convolution",
                found=f"'{name}' with {module.groups} groups",
                fix="name the other layers in layers",
            )
    return named


def _input_factor(module: nn.Linear | nn.Conv2d, a: Tensor) -> Tensor:
    """Σ_b Σ_t a_t a_tᵀ, (in, in), or (in + 1, in + 1) with the bias."""
    if isinstance(module, nn.Conv2d):
        a = F.unfold(padded(module, a), module.kernel_size, module.dilation, stride=module.stride).mT
    a = a.reshape(-1, a.shape[-1])
    if module.bias is not None:
        a = torch.cat([a, a.new_ones(len(a), 1)], 1)
    return a.T @ a


def _output_factor(module: nn.Linear | nn.Conv2d, delta: Tensor) -> Tensor:
    """Σ_b Σ_t g_t g_tᵀ / T, (out, out)."""
    if isinstance(module, nn.Conv2d):
        delta = delta.flatten(2).mT
    positions = delta.numel() // (len(delta) * delta.shape[-1])
    delta = delta.reshape(-1, delta.shape[-1])
    return delta.T @ delta / positions


def _mean(totals: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    """Divide by the number of samples; refuse what is not finite."""
    for key, total in totals.items():
        total /= samples
        if not bool(torch.isfinite(total).all()):
            raise NumericsError(
                f"the importance of '{key}' is not finite",
                found=f"{int((~torch.isfinite(total)).sum())} of {total.numel()} values",
                fix="look for infinite inputs, weights or logits",
            )
    return totals


def _refuse_channels_last(model: nn.Module, device: torch.device) -> None:
    if device.type == "cpu" and is_channels_last(model):
        raise ModelError(
            f"{type(model).__name__} is channels-last, and so torch's backward pass of it can corrupt memory",
            found="a 1x1 convolution with a stride and fewer than 8 input channels",
            fix="call model.to(memory_format=torch.contiguous_format) first",
        )


def _empty() -> DataError:
    return DataError("a batch has no samples", found="a tensor of length 0", fix="leave empty batches out")


def _check(
    kind: str, kinds: tuple[str, ...], implementation: str, chunk: int, generator: torch.Generator | None
) -> None:
    """Raise one ConfigError that lists every bad setting."""
    problems = []
    if kind not in kinds:
        problems.append(f"no kind is called '{kind}', {near(kind, kinds)}")
    if implementation not in get_args(Implementation):
        problems.append(
            f"no implementation is called '{implementation}', {near(implementation, get_args(Implementation))}"
        )
    if chunk < 1:
        problems.append(f"chunk must be at least 1, found {chunk}")
    if kind == "sampled" and generator is None:
        problems.append("kind 'sampled' draws labels and needs a generator, e.g. seeds.generator(seed, 'fisher')")
    if problems:
        raise ConfigError.many(problems, where="importance")
