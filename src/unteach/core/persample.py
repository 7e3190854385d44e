"""Per-sample gradients, summed as squares or absolute values: by layer hooks, by ``torch.func``, or one by one.

Everything here is about g_b = J_bᵀ v_b, with J_b the Jacobian of sample b's logits and v_b a fixed vector of
length C (the *cotangent*). For log p(y|x) it is e_y - softmax(h), for ‖h‖² it is 2h, so one engine serves every
importance in :mod:`unteach.core.fisher`. Three implementations with one signature give the same sums:

- ``hooks``: one batched forward pass and one batched backward pass per cotangent, down to the layers' outputs
  only. A layer's per-sample gradients follow from its input a and its output gradient δ: (δ²)ᵀ(a²) for a linear
  layer, no per-sample tensor at all (refresh §4.5; Goodfellow 2015, arXiv 1510.01799).
- ``vmap``: ``torch.func.vmap`` over ``grad``; memory (chunk, parameters).
- ``loop``: samples one at a time.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call, grad, vmap

from unteach.core.kernels import channels_last_is_safe
from unteach.errors import ModelError

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "hooks", "vmap", "loop"]
Reduce = Literal["square", "abs"]
#: (logits (..., C), label (...)) -> cotangent (..., C)
Cotangent = Callable[[Tensor, Tensor], Tensor]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_LAYERS = (nn.Linear, nn.Conv2d, *_NORMS)
_ENTRIES = {True: 1 << 19, False: 1 << 26}  # of unfolded inputs and weight gradients at a time; CPU, other devices
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, eq=False)
class Target:
    """A model and those of its parameters that gradients are taken of.

    Attributes:
        model: maps (B, ...) to logits (B, C).
        params: key of the result to parameter, in the result's order.
        names: key to the parameter's dotted name in the model.
        layers: module to {"weight" or "bias": key}, for all modules that hold one of ``params``.
    """

    model: nn.Module
    params: Mapping[str, nn.Parameter]
    names: Mapping[str, str]
    layers: Mapping[nn.Module, Mapping[str, str]]

    def zeros(self) -> dict[str, Tensor]:
        """One zero per entry of every parameter, fp32 (fp64 for an fp64 parameter)."""
        return {
            key: torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
            for key, p in self.params.items()
        }


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: its input (B, ...), the edge of its output in the autograd graph, the input's version."""

    input: Tensor
    output: GradientEdge
    version: int


def target(model: nn.Module, params: Mapping[str, nn.Parameter] | None = None) -> Target:
    """Look up ``params`` (default: all that require a gradient) in ``model``.

    Raises:
        ModelError: nothing to take a gradient of, or a parameter that is frozen or not the model's.
    """
    if params is None:
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ModelError(
            f"{type(model).__name__} has no parameter to take a gradient of",
            found=f"{len(list(model.parameters()))} parameters, none of them chosen or none requiring a gradient",
            fix="set requires_grad on the parameters that move, or pass them as params",
        )
    frozen = [key for key, p in params.items() if not p.requires_grad]
    if frozen:
        raise ModelError(
            "a parameter without a gradient has no importance",
            found=f"requires_grad is False for {_some(frozen)}",
            fix="leave them out of params",
        )
    known: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        known.setdefault(id(p), name)
    foreign = [key for key, p in params.items() if id(p) not in known]
    if foreign:
        raise ModelError(
            f"params must be parameters of this {type(model).__name__}",
            found=f"{_some(foreign)}, which it does not hold",
            fix="take them from model.named_parameters() of the same object, not of a copy",
        )
    keys = {id(p): key for key, p in params.items()}
    layers: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        held = {local: keys[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in keys}
        if held:
            layers[module] = held
    return Target(model, dict(params), {key: known[id(p)] for key, p in params.items()}, layers)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients on; every module's own training flag is restored at the end.

    Raises:
        ModelError: a batch norm without running statistics, which mixes samples even in evaluation mode.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            raise ModelError(
                f"'{name}' normalises by the batch even in evaluation mode, so a sample has no gradient of its own",
                found=f"{type(module).__name__} without running statistics",
                fix="use track_running_stats=True, or layer or group norm",
            )
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def channels_last(model: nn.Module, x: Tensor) -> bool:
    """Whether ``model`` takes x (B, C, H, W) in the memory format in which convolutions are fastest, and it is safe."""
    if x.dim() != 4 or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return False
    if not channels_last_is_safe(model):
        return False
    try:
        with torch.no_grad():
            model(x[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:  # a .view() that needs the other order
        logger.debug("no channels_last in %s: %s", type(model).__name__, error)
        return False
    return True


# ---- choosing ----


def choose(work: Target, x: Tensor, implementation: Implementation = "auto") -> "Accumulate":
    """The implementation to use for inputs like ``x``; with "auto" hooks if they fit, else vmap, else loop.

    Raises:
        ModelError: logits that are not (B, C), a parameter that the logits do not depend on, or an
            implementation asked for that cannot serve this model (says why).
    """
    probe = x[:2]
    logits, calls = record(work.model, work.layers, probe)
    uses = _uses(logits)
    unreached = [key for key, p in work.params.items() if not uses[id(p)]]
    if unreached:
        raise ModelError(
            "a parameter without a gradient has no importance",
            found=f"the logits do not depend on {_some(unreached)}",
            fix="pass the others as params",
        )
    reason: str | None = None
    if implementation in ("auto", "hooks"):
        reason = _why_no_hooks(work, calls, uses, len(probe))
        if reason is None:
            return hooks
        if implementation == "hooks":
            raise ModelError(
                "layer hooks do not give this model's per-sample gradients", found=reason, fix="use 'auto' or 'vmap'"
            )
        logger.debug("no hooks for %s: %s", type(work.model).__name__, reason)
    if implementation in ("auto", "vmap"):
        try:
            labels = torch.zeros(1, len(probe), dtype=torch.int64, device=x.device)
            over_samples(work, probe, labels, lambda h, _: 2 * h, "square", work.zeros())
            return over_samples
        except (RuntimeError, ValueError) as error:
            if implementation == "vmap":
                raise ModelError(
                    "torch.func.vmap does not run this model", found=str(error).strip(), fix="use 'auto' or 'loop'"
                ) from error
            logger.debug("no vmap for %s: %s", type(work.model).__name__, error)
    return loop


def _why_no_hooks(work: Target, calls: Mapping[nn.Module, list[Call]], uses: Counter[int], batch: int) -> str | None:
    """What makes layer hooks wrong for this model, or None."""
    owner = {id(module): name or "the model itself" for name, module in work.model.named_modules()}
    for module, held in work.layers.items():
        name, made = owner[id(module)], calls[module]
        rule = next((kind for kind in _LAYERS if isinstance(module, kind)), None)
        if rule is None or type(module).forward is not rule.forward or not held.keys() <= {"weight", "bias"}:
            return f"no rule for {type(module).__name__} ({name})"
        if len(made) != 1:
            return f"{name} is called {len(made)} times in one pass"
        if made[0].input.shape[0] != batch:
            return f"the first dimension of {name}'s input is not the batch"
        if made[0].input._version != made[0].version:
            return f"{name}'s input is changed in place afterwards"
        for local, key in held.items():
            if uses[id(work.params[key])] != 1:
                return f"{name}.{local} is used {uses[id(work.params[key])]} times in one pass"
    return None


def _uses(logits: Tensor) -> Counter[int]:
    """How often every leaf enters the autograd graph of ``logits``, by id."""
    uses: Counter[int] = Counter()
    seen: set[Node] = set()
    pending = [] if logits.grad_fn is None else [logits.grad_fn]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if parent is None:
                continue
            leaf = getattr(parent, "variable", None)
            if leaf is None:
                pending.append(parent)
            else:
                uses[id(leaf)] += 1
    return uses


# ---- the three implementations ----

#: (target, x (B, ...), labels (K, B), cotangent, reduce, totals): for each of the K rows of labels, add
#: Σ_b reduce(g_b) to ``totals``.
Accumulate = Callable[[Target, Tensor, Tensor, Cotangent, Reduce, dict[str, Tensor]], None]


def loop(
    work: Target, x: Tensor, labels: Tensor, cotangent: Cotangent, reduce: Reduce, totals: dict[str, Tensor]
) -> None:
    """Add the sums by one forward pass per sample and one backward pass per sample and row of ``labels``."""
    shaped = _REDUCE[reduce]
    for b in range(len(x)):
        logits = work.model(x[b : b + 1])
        for row in labels:
            v = cotangent(logits.detach(), row[b : b + 1])
            grads = torch.autograd.grad(logits, list(work.params.values()), v, retain_graph=True)
            for key, g in zip(work.params, grads, strict=True):
                totals[key] += shaped(g)


def over_samples(
    work: Target, x: Tensor, labels: Tensor, cotangent: Cotangent, reduce: Reduce, totals: dict[str, Tensor]
) -> None:
    """Add the sums by ``torch.func.vmap``; all B per-sample gradients are in memory at once."""

    def projected(params: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(work.model, params, (x.unsqueeze(0),)).squeeze(0)
        return torch.sum(cotangent(logits.detach(), label) * logits)

    params = {work.names[key]: p.detach() for key, p in work.params.items()}
    with torch.no_grad():  # no outer graph for the parameters that are not in params
        for row in labels:
            grads = vmap(grad(projected), (None, 0, 0))(params, x, row)
            for key in totals:
                totals[key] += _REDUCE[reduce](grads[work.names[key]]).sum(0)


def hooks(
    work: Target, x: Tensor, labels: Tensor, cotangent: Cotangent, reduce: Reduce, totals: dict[str, Tensor]
) -> None:
    """Add the sums from the layers' inputs and output gradients; K backward passes share one forward pass."""
    logits, calls = record(work.model, work.layers, x)
    edges = [calls[module][0].output for module in work.layers]
    for row in labels:
        v = cotangent(logits.detach(), row)
        deltas = torch.autograd.grad(logits, edges, v, retain_graph=True)
        with torch.no_grad():
            for (module, held), delta in zip(work.layers.items(), deltas, strict=True):
                for local, key in held.items():
                    totals[key] += _layer_sum(module, local, calls[module][0].input, delta, reduce)


def record(model: nn.Module, modules: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, dict[nn.Module, list[Call]]]:
    """Logits (B, C) of ``x`` and the calls that each of ``modules`` answered on the way.

    Raises:
        ModelError: an output that is not a tensor (B, C).
    """
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor) and isinstance(output, Tensor) and output.requires_grad:
            # An edge, not the tensor: what is done in place to the output later does not matter.
            calls[module].append(Call(given.detach(), get_gradient_edge(output), given._version))

    handles = [module.register_forward_hook(keep, prepend=True, with_kwargs=True) for module in calls]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the model must map {len(x)} samples to logits ({len(x)}, classes)",
            found=found,
            fix="wrap it in a module that returns the logits alone",
        )
    return logits, calls


# ---- one layer ----

_REDUCE: dict[Reduce, Callable[[Tensor], Tensor]] = {"square": torch.square, "abs": torch.abs}


def _layer_sum(module: nn.Module, local: str, a: Tensor, delta: Tensor, reduce: Reduce) -> Tensor:
    """Σ_b reduce(g_b) of ``module.weight`` or ``module.bias`` from its input a and output gradient δ, (B, ...)."""
    shaped = _REDUCE[reduce]
    if isinstance(module, nn.Linear):
        if delta.dim() == 2:  # g_b = δ_b a_bᵀ, and both reductions are multiplicative
            return shaped(delta).sum(0) if local == "bias" else shaped(delta).T @ shaped(a)
        delta = delta.flatten(1, -2)
        if local == "bias":
            return shaped(delta.sum(1)).sum(0)
        return shaped(torch.bmm(delta.mT, a.flatten(1, -2))).sum(0)
    if isinstance(module, nn.Conv2d):
        return shaped(delta.sum((2, 3))).sum(0) if local == "bias" else _conv_sum(module, a, delta, reduce)
    assert isinstance(module, _NORMS)
    scaled = delta if local == "bias" else delta * _normalised(module, a)
    if isinstance(module, nn.LayerNorm):
        rest = tuple(range(1, delta.dim() - len(module.normalized_shape)))
    else:
        rest = tuple(range(2, delta.dim()))
    return shaped(scaled.sum(rest) if rest else scaled).sum(0)


def _normalised(module: nn.Module, a: Tensor) -> Tensor:
    """What a norm layer multiplies its weight with, the shape of a."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(a, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(a, module.num_groups, eps=module.eps)
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    return F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)


def _conv_sum(conv: nn.Conv2d, a: Tensor, delta: Tensor, reduce: Reduce) -> Tensor:
    """Σ_b reduce(g_b) of a convolution's weight, (out, in / groups, kh, kw): patches times output gradients.

    As many samples at a time as fit into the cache of a CPU, which is up to three times faster than all at once.
    """
    a = padded(conv, a).permute(0, 2, 3, 1).contiguous()  # (B, H, W, in)
    groups, area = conv.groups, delta[0, 0].numel()
    delta = delta.reshape(len(delta), groups, -1, area)  # (B, groups, out / groups, positions)
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    total = a.new_zeros(groups, conv.out_channels // groups, conv.weight[0].numel())
    entries = groups * (area + total.shape[1]) * total.shape[2]
    step = max(1, _ENTRIES[a.device.type == "cpu"] // entries)
    for a_part, delta_part in zip(torch.split(a, step), torch.split(delta, step), strict=True):
        patches = a_part.unfold(1, spans[0], conv.stride[0]).unfold(2, spans[1], conv.stride[1])
        patches = patches[..., :: conv.dilation[0], :: conv.dilation[1]]  # (B, h, w, in, kh, kw)
        patches = patches.reshape(*patches.shape[:3], groups, -1, *conv.kernel_size).permute(0, 3, 1, 2, 5, 6, 4)
        g = delta_part @ patches.reshape(len(a_part), groups, area, -1)
        g = g.square_() if reduce == "square" else g.abs_()
        total += g.sum(0) if len(g) > 1 else g[0]
    return total.view(conv.out_channels, *conv.kernel_size, -1).permute(0, 3, 1, 2)


def padded(conv: nn.Conv2d, a: Tensor) -> Tensor:
    """The input of a convolution with its padding put on, so that it needs none any more."""
    if conv.padding == "valid":
        return a
    if isinstance(conv.padding, str):  # "same": what is odd goes to the right and to the bottom
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
    else:
        top, left = bottom, right = conv.padding
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(a, (left, right, top, bottom), mode)


def _some(names: list[str], most: int = 4) -> str:
    """At most ``most`` quoted names and how many there are beyond."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
