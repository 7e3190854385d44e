"""Faults of torch's own code on processors, and what keeps out of their way: results and processes do not end in them.

Two are known, both in backward passes over images with their channels innermost ("channels last"), torch 2.13.0:
a strided 1x1 convolution of few channels, and a group norm whose input needs no gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn

_VECTOR = 8
"""float32 numbers in an AVX2 register. oneDNN's 1x1 convolution for AVX2 writes whole registers when a stride leaves
pixels out; with 2 to 7 input channels (measured, torch 2.13.0, float32, one thread) its backward pass writes behind the
end of a buffer. With 1, with 8 and more, with groups, other kernels, stride 1, other dtypes or contiguous images and
weights it does not."""


def channels_last_is_safe(model: nn.Module) -> bool:
    """Whether no convolution of ``model`` is one whose channels-last backward pass can corrupt memory.

    That is a 1x1 kernel without groups, a stride above 1 and 2 to 7 input channels, on a CPU with AVX2 and without
    AVX-512. The answer is the same on every machine, so that results do not depend on where they were made.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and all(size == 1 for size in module.kernel_size)
        and any(step > 1 for step in module.stride)
        and module.groups == 1
        and 1 < module.in_channels < _VECTOR
        for module in model.modules()
    )


def fastest(model: nn.Module) -> torch.memory_format:
    """The memory format to keep ``model`` and its images (B, C, H, W) in: channels last if that is safe."""
    return torch.channels_last if channels_last_is_safe(model) else torch.contiguous_format


def is_channels_last(model: nn.Module) -> bool:
    """Whether a convolution of ``model`` keeps its weights with channels innermost, and so asks for such images."""
    return any(
        isinstance(module, nn.Conv2d) and module.weight.stride(1) == 1 < module.weight.stride(3)
        for module in model.modules()
    )


def mend_group_norms(model: nn.Module) -> None:
    """From now on every group norm of ``model`` reads a contiguous copy of an input that needs no gradient.

    Its backward pass on a processor writes through a null pointer when the channels of the input are innermost and
    only scale or shift are asked for. A U-Net meets this without anybody choosing the layout: what leaves an attention
    block is such a view, and everything before it may be frozen. Calling it twice changes nothing more; sampling and
    norms whose input needs a gradient stay as they are, bit for bit.
    """
    for part in model.modules():
        if isinstance(part, nn.GroupNorm) and _contiguous not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_contiguous)


def _contiguous(norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x: Tensor = args[0]
    if not torch.is_grad_enabled() or x.requires_grad or x.device.type != "cpu" or x.is_contiguous():
        return None
    return (x.contiguous(), *args[1:])
