"""Budgets of a mask: what a tensor costs, which tensors go together, and the exact projection onto a share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unteach.core import masks
from unteach.diffusion.families import layers
from unteach.diffusion.model import Model
from unteach.errors import ConfigError
from unteach.records.mask import Granularity, Measure

__all__ = ["costs", "groups", "highest", "layer_type", "projected"]


def costs(model: Model, budget: Measure) -> dict[str, int]:
    """Cost of each of the denoiser's tensors.

    "flops" are the multiplications of its weight gradient in one backward pass on one image: parameters × places at
    which the layer is applied (measured by one pass).
    """
    params = dict(model.denoiser.named_parameters())
    if budget == "tensors":
        return dict.fromkeys(params, 1)
    if budget == "parameters":
        return {name: value.numel() for name, value in params.items()}
    places: dict[str, int] = {}
    handles = []
    for name, module in model.denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):

            def count(module: nn.Module, _: object, out: Tensor, name: str = name) -> None:
                size = out.shape[-2:].numel() if isinstance(module, nn.Conv2d) else out.shape[1:-1].numel()
                places[name] = places.get(name, 0) + size

            handles.append(module.register_forward_hook(count))
    try:
        with torch.no_grad():
            latents = torch.zeros(1, *model.latent_shape, dtype=model.dtype, device=model.device)
            model.predict(latents, 0, model.encode([""]))
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.numel() * places.get(name.rpartition(".")[0], 1) for name, value in params.items()}


def highest(model: Model, scores: Mapping[str, float], rho: float, budget: Measure) -> tuple[str, ...]:
    """The tensors with the highest scores within the budget, the largest set that fits; in the model's order.

    Args:
        model: whose denoiser's tensors.
        scores: score of every tensor.
        rho: share to freeze, in [0, 1].
        budget: share of what.
    """
    chosen = masks.by_score(scores, costs(model, budget), rho, "tensors" if budget == "tensors" else "parameters")
    return tuple(name for name, _ in model.denoiser.named_parameters() if name in chosen)


def groups(names: Sequence[str], granularity: Granularity) -> list[list[str]]:
    """Names that share a logit, in order: each alone, those of a module, or those of a block of the network."""
    if granularity == "tensor":
        return [[name] for name in names]
    table = layers(names)
    found: dict[str, list[str]] = {}
    for name in names:
        key = name.rpartition(".")[0]
        if granularity == "block":
            key = table[name].block
        found.setdefault(key, []).append(name)
    return list(found.values())


_TYPES = ("cross-attention", "self-attention", "feed-forward", "transformer", "resnet")


def layer_type(name: str, ndim: int) -> str:
    """The kind of layer (freezeasguard.md §1.1) and whether it is a weight or a vector (bias, norm)."""
    kind = layers([name])[name].kind
    return f"{kind if kind in _TYPES else 'other'} {'weight' if ndim > 1 else 'vector'}"


def projected(x: Tensor, weight: Tensor, rho: float, temperature: float) -> Tensor:
    """Logits shifted together so that Σ w·sigmoid(x/T) = rho, by bisection.

    Args:
        x: logits, (G,).
        weight: shares of the budget, (G,), summing to 1.
        rho: in [0, 1]; 0 and 1 shift as far as sigmoid saturates.
        temperature: T.
    """
    if not 0 <= rho <= 1:
        raise ConfigError("rho is a share", found=rho)
    wide, w = x.double(), weight.double()
    low = -float(wide.max()) - 60 * temperature
    high = -float(wide.min()) + 60 * temperature
    for _ in range(200):
        middle = (low + high) / 2
        if float((w * torch.sigmoid((wide + middle) / temperature)).sum()) < rho:
            low = middle
        else:
            high = middle
    return (wide + (low + high) / 2).to(x)
