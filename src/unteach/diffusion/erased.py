"""A model with an erasure applied, in the values that a published folder will hold."""

import torch

from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.export import rounded
from unteach.diffusion.model import Model

__all__ = ["lay_on"]


def lay_on(model: Model, delta: WeightDelta) -> None:
    """Apply a delta to a float32 model, also one that was learned in 16 bits.

    Its base is then the model rounded to 16 bits; the tensors that it changes get the very values that the erased model
    had, all others keep theirs. At the end everything is rounded to the number format of the model's files.

    Raises:
        ModelError: it was learned on another model.
    """
    values = dict(model.denoiser.named_parameters())
    before = {name: value.detach().clone() for name, value in values.items()}
    base, kind = delta.meta.get("base"), torch.float32
    with torch.no_grad():
        for narrow in (torch.bfloat16, torch.float16):
            if base is None or model.digest(fresh=True) == base:
                break
            kind = narrow
            for name, value in values.items():
                value.copy_(before[name].to(kind))
        if base is not None and model.digest(fresh=True) != base:
            kind = torch.float32
            for name, value in values.items():
                value.copy_(before[name])
        delta.apply(model)  # refuses what is not its base
        for name, value in values.items():
            value.copy_(value.to(kind) if name in delta.tensors else before[name])
    rounded(model)
