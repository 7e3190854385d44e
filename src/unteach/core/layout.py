"""The memory format of images: channels innermost where it is fastest, and never where torch's own code is wrong."""

import torch
from torch import nn

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
