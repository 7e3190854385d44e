"""Images on their way into the network: random crops, shifts and flips of a whole uint8 batch, then normalising."""

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from unteach.core.registry import near
from unteach.errors import ConfigError, DataError

__all__ = ["KINDS", "Kind", "augment", "normalise"]

Kind = Literal["none", "shift", "crop", "crop-flip"]
KINDS: tuple[str, ...] = get_args(Kind)


def augment(
    x: Tensor,
    kind: str,
    generator: torch.Generator,
    *,
    padding: int = 4,
    share: float = 1 / 8,
    fill: int | Literal["edge"] | None = None,
) -> Tensor:
    """A random view of each image, of the same size; every image has draws of its own.

    Kinds:
        none: ``x`` itself.
        shift: moved by up to ``int(share · side)`` pixels up or down and left or right.
        crop: a random crop of the image padded by ``padding`` on all sides, which is a move by up to ``padding``.
        crop-flip: the same, and half of the images are mirrored left to right afterwards.

    Args:
        x: (B, C, H, W) uint8. Anything else is allowed with the kind "none" alone.
        kind: one of :data:`KINDS`.
        generator: on the CPU, draws B moves down, B moves right and, for crop-flip, B numbers in [0, 1).
        padding: pixels, for crops.
        share: share of the side, in [0, 1], for shifts.
        fill: value in 0..255 of the pixels that come into view, or "edge" for the nearest one of the image;
            0 for crops and "edge" for shifts unless given.

    Returns:
        (B, C, H, W) uint8 on the device of ``x``, which is not changed.

    Raises:
        ConfigError: an unknown kind, features that are not images, or numbers out of range.
    """
    if kind not in KINDS:
        raise ConfigError(f"no augmentation is called {kind!r}", fix=near(kind, KINDS))
    if kind == "none":
        return x
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ConfigError(
            f"the augmentation '{kind}' is for images, uint8 (B, C, H, W)",
            found=f"{x.dtype} {tuple(x.shape)}",
            fix="use the augmentation 'none' for this stream",
        )
    if fill is None:
        fill = "edge" if kind == "shift" else 0
    if padding < 0 or not 0 <= share <= 1 or (fill != "edge" and not 0 <= fill <= 255):
        raise ConfigError(
            "the augmentation's numbers are out of range",
            found=f"padding {padding}, share {share}, fill {fill!r}",
            fix="give padding >= 0, share in [0, 1] and fill in 0..255 or 'edge'",
        )
    height, width = x.shape[2:]
    most = (int(share * height), int(share * width)) if kind == "shift" else (padding, padding)
    down, right = (torch.randint(-m, m + 1, (len(x),), generator=generator) for m in most)
    flip = torch.rand(len(x), generator=generator) < 0.5 if kind == "crop-flip" else None
    return _moved(x, down, right, flip, fill, most)


def _moved(
    x: Tensor, down: Tensor, right: Tensor, flip: Tensor | None, fill: int | Literal["edge"], most: tuple[int, int]
) -> Tensor:
    """``out[b, :, i, j] = x[b, :, i - down[b], j - right[b]]``, then mirrored where ``flip``; one gather for all."""
    height, width = x.shape[2:]
    columns = torch.arange(width).expand(len(x), width)
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    rows, columns = torch.arange(height) - down[:, None], columns - right[:, None]
    if fill == "edge":
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    else:
        x = F.pad(x, (most[1], most[1], most[0], most[0]), value=fill)
        rows, columns = rows + most[0], columns + most[1]
    at = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).flatten(1).to(x.device)
    flat = x.flatten(2).gather(2, at[:, None].expand(-1, x.shape[1], -1))
    return flat.view(*x.shape[:2], height, width)


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(x / 255 - mean) / std`` a channel, float32; the memory format is kept, and float data passes as it is.

    Args:
        x: (B, C, ...) uint8, or floating point.
        mean: mean of x / 255, one a channel or one for all; empty together with ``std`` for x / 255 itself.
        std: standard deviation, as ``mean``, above 0.

    Raises:
        ConfigError: numbers that do not fit the channels, or a std that is not above 0.
        DataError: data that are neither uint8 nor floating point.
    """
    if x.is_floating_point():
        return x
    if x.dtype != torch.uint8:
        raise DataError("inputs must be uint8 or floating point", found=x.dtype, fix="convert them in the stream")
    channels = x.shape[1] if x.ndim > 1 else 1
    if len(mean) != len(std) or len(mean) not in (0, 1, channels) or any(not s > 0 for s in std):
        raise ConfigError(
            f"mean and std must be one number a channel ({channels}), std above 0",
            found=f"mean {tuple(mean)}, std {tuple(std)}",
            fix="set the stream's mean and std, or leave both empty",
        )
    scale, offset = _affine(tuple(mean) or (0.0,), tuple(std) or (1.0,), x.ndim, x.device)
    return x.to(torch.float32).mul_(scale).sub_(offset)


@functools.lru_cache(maxsize=32)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], ndim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """1 / (255 std) and mean / std, shape (1, C, 1, ...); kept, since each copy to the device would make it wait."""
    shape = (1, -1, *([1] * (ndim - 2)))
    wide = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (255 * wide[1]), wide[0] / wide[1]
    return scale.float().reshape(shape).to(device), offset.float().reshape(shape).to(device)
