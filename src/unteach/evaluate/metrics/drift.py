"""How far unrelated pictures moved: the same prompt and seed before and after (erasure §4.4, §4.9).

Erasing should leave the pictures of unrelated prompts alone. Because the noise of pair i is the same, pixel
distances say how far each picture moved, and the share of unchanged verdicts says whether it still shows the
same thing.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unteach.errors import DataError
from unteach.records.stats import Interval, bootstrap_mean, share

PSNR_CAP = 100.0
"""PSNR in dB given to two equal pictures (infinite by definition, which no mean survives)."""


@dataclass(frozen=True)
class Drift:
    """Paired drift of N pictures.

    Attributes:
        mae: mean absolute difference, in intensity (0 to 1).
        psnr: mean over pictures of the peak signal-to-noise ratio in dB, capped at ``PSNR_CAP``.
    """

    mae: Interval
    psnr: Interval


def drift(before: Tensor, after: Tensor, *, seed: int = 0) -> Drift:
    """Pixel drift with bootstrap intervals over pictures.

    Args:
        before: (N, 3, H, W) in [0, 1].
        after: (N, 3, H, W) in [0, 1]; picture i has the prompt and the seed of ``before[i]``.
        seed: seed of the bootstrap.

    Raises:
        DataError: when the shapes differ or there is no picture.
    """
    if before.shape != after.shape or before.dim() != 4 or not len(before):
        raise DataError(
            "drift compares two equal, non-empty batches (N, 3, H, W)",
            found=f"{tuple(before.shape)} and {tuple(after.shape)}",
        )
    mae, psnr = per_image(before, after)
    return Drift(bootstrap_mean(mae.numpy(), seed=seed), bootstrap_mean(psnr.numpy(), seed=seed))


def per_image(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) mean absolute difference and (N,) PSNR in dB of each pair: 10 log10(1 / MSE), capped."""
    gap = (after.double() - before.double()).flatten(1)
    mse = gap.square().mean(1)
    floor = math.pow(10.0, -PSNR_CAP / 10)
    return gap.abs().mean(1).cpu(), (-10 * torch.log10(mse.clamp_min(floor))).cpu()


def agreement(
    object_before: ArrayLike, style_before: ArrayLike, object_after: ArrayLike, style_after: ArrayLike
) -> Interval:
    """Share of pairs on which one judge sees the same object and style before and after, right or wrong."""
    same_object = np.asarray(object_before) == np.asarray(object_after)
    same_style = np.asarray(style_before) == np.asarray(style_after)
    return share(same_object & same_style)
