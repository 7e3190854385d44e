"""Where torch's own kernels fail, and what keeps out of their way.

On a processor, the backward pass of group norm writes through a null pointer when its input is stored with the
channels innermost, few pixels, and no gradient of that input is asked for while the scale or the shift trains
(torch 2.13; ``native_group_norm_backward``). A U-Net meets this without anybody choosing the layout: what leaves an
attention block is such a view, and everything before it may be frozen.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def keep_group_norms_contiguous(module: nn.Module) -> list[RemovableHandle]:
    """From now on every group norm in ``module`` reads a plain copy of an input whose channels are innermost.

    Only where a gradient may be asked for, and only on a processor; values are the same up to rounding.

    Returns:
        One handle a group norm; ``handle.remove()`` ends it.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    return [norm.register_forward_pre_hook(_contiguous) for norm in norms]


@contextlib.contextmanager
def partly_trained(module: nn.Module) -> Iterator[None]:
    """Inside the block a part of ``module`` can be trained alone on any processor."""
    handles = keep_group_norms_contiguous(module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _contiguous(norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x: Tensor = args[0]
    if not torch.is_grad_enabled() or x.device.type != "cpu" or x.is_contiguous():
        return None
    return (x.contiguous(), *args[1:])
