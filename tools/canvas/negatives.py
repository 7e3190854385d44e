"""Pictures that show none of the objects: what a judge must answer with "none of these".

A judge that knows sixty objects and nothing else names one of them for any picture, which would make a ruined
model look healthy. So judges are trained on the kinds of :data:`TRAINED` and tested on :data:`UNSEEN` too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from unteach.core.registry import Registry
from unteach.data.emoji import BACKGROUNDS, OBJECTS, SIZE, STYLES
from unteach.errors import DataError

NO_OBJECT, NO_STYLE = len(OBJECTS), len(STYLES)
"""The class indices that mean "none of these"."""


class Labelled(NamedTuple):
    """Pictures (B, 3, 32, 32), float in [0, 1], with class indices (B,), int64: objects 0-60, styles 0-8."""

    images: Tensor
    objects: Tensor
    styles: Tensor


Kind = Callable[[Labelled, Generator], tuple[Tensor, Tensor | None]]
kinds: Registry[Kind] = Registry("kind of negative")
"""Name to function of (views, generator): negatives, and where a style is left (None: nowhere)."""


def make(kind: str, views: Labelled, generator: Generator) -> Labelled:
    """Spoil views. No object is left in any; a style is left where everything shown is of that one style.

    Args:
        kind: one of :data:`kinds`.
        views: pictures with their true labels.
        generator: randomness.

    Raises:
        ConfigError: no such kind.
        DataError: a kind that mixes objects was given views of too few objects.
    """
    images, same = kinds[kind](views, generator)
    styles = torch.full_like(views.styles, NO_STYLE)
    if same is not None:
        styles = torch.where(same, views.styles, styles)
    return Labelled(images.clamp(0, 1), torch.full_like(views.objects, NO_OBJECT), styles)


def _uniform(views: Labelled, generator: Generator, low: float, high: float) -> Tensor:
    """One number a picture, (B, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(views.images), 1, 1, 1, generator=generator)


def _others(views: Labelled, generator: Generator, count: int) -> list[Tensor]:
    """For every picture ``count`` rows that show other objects than it and than each other."""
    objects = views.objects
    rank = torch.rand(len(objects), len(objects), generator=generator)
    taken, rows = objects[:, None] == objects[None], []
    for _ in range(count):
        if bool(taken.all(dim=1).any()):
            raise DataError(
                "this kind of negative mixes objects, and the views show too few",
                found=f"{len(set(objects.tolist()))} objects",
                fix=f"give views of at least {count + 1} objects",
            )
        row = rank.masked_fill(taken, -1).argmax(dim=1)
        taken = taken | (objects[row][:, None] == objects[None])
        rows.append(row)
    return rows


def cloud(count: int, cells: int, generator: Generator) -> Tensor:
    """Smooth normal noise with ``cells`` x ``cells`` independent values: (count, 3, 32, 32)."""
    coarse = torch.randn(count, 3, cells, cells, generator=generator)
    return F.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=False)


def bend(images: Tensor, amplitude: Tensor | float, generator: Generator, cells: int = 5) -> Tensor:
    """Warp pictures by a smooth random field; ``amplitude`` is in half pictures (0.06 is about one pixel)."""
    count = len(images)
    field = torch.randn(count, 2, cells, cells, generator=generator) * amplitude
    field = F.interpolate(field, size=SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 3, SIZE, SIZE], align_corners=False)
    return F.grid_sample(images, still + field, padding_mode="border", align_corners=False)


@kinds.add("noise")
def _noise(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Noise at scales from 1 to 16 pixels on a random colour."""
    count = len(views.images)
    scales = [cloud(count, cells, generator) for cells in (2, 4, 8, 16, 32)]
    choice = torch.randint(len(scales), (count,), generator=generator)
    noise = torch.stack(scales)[choice, torch.arange(count)]
    return torch.rand(count, 3, 1, 1, generator=generator) + _uniform(views, generator, 0.1, 0.5) * noise, None


@kinds.add("blend")
def _blend(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Two objects as a double exposure, 40 to 60 % each."""
    (other,) = _others(views, generator, 1)
    share = _uniform(views, generator, 0.4, 0.6)
    return share * views.images + (1 - share) * views.images[other], views.styles == views.styles[other]


@kinds.add("halves")
def _halves(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Half of one object beside (or above) half of another."""
    (other,) = _others(views, generator, 1)
    cut, place = _uniform(views, generator, 13, 20), torch.arange(SIZE)
    upright = _uniform(views, generator, 0, 1) < 0.5
    first = torch.where(upright, place[None, None, None, :] < cut, place[None, None, :, None] < cut)
    return torch.where(first, views.images, views.images[other]), views.styles == views.styles[other]


@kinds.add("scraps")
def _scraps(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Four quarters of four objects, each a quarter that belongs elsewhere in its picture."""
    rows, half = _others(views, generator, 3), SIZE // 2
    quarters = [x.reshape(-1, 3, 2, half, 2, half) for x in (views.images, *(views.images[r] for r in rows))]
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    tiles = [
        quarters[i][:, :, 1 - a, :, b] if i % 2 else quarters[i][:, :, a, :, 1 - b] for i, (a, b) in enumerate(places)
    ]
    upper, lower = torch.cat(tiles[:2], dim=3), torch.cat(tiles[2:], dim=3)
    return torch.cat([upper, lower], dim=2), None


@kinds.add("tiles")
def _tiles(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """The sixteen tiles of 8 x 8 pixels in random order."""
    tiles = F.unfold(views.images, 8, stride=8)
    order = torch.rand(len(tiles), 1, tiles.shape[2], generator=generator).argsort(dim=2)
    return F.fold(tiles.gather(2, order.expand_as(tiles)), SIZE, 8, stride=8), None


@kinds.add("blur")
def _blur(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Nothing but a few soft patches of colour is left."""
    coarse = F.adaptive_avg_pool2d(views.images, 3)
    return F.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=False), None


@kinds.add("blank")
def _blank(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """An empty sheet, white, pale or slightly grey, with a little grain."""
    count = len(views.images)
    paper = BACKGROUNDS[torch.randint(len(BACKGROUNDS), (count,), generator=generator)][:, :, None, None]
    grain = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return paper - _uniform(views, generator, 0, 0.1) + _uniform(views, generator, 0, 0.04) * grain, None


@kinds.add("warp")
def _warp(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Bent beyond recognition."""
    return bend(views.images, _uniform(views, generator, 0.34, 0.45), generator), None


@kinds.add("veil")
def _veil(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Half drowned in clouds of 2 to 8 pixels."""
    count, share = len(views.images), _uniform(views, generator, 0.35, 0.5)
    cells = (4, 8, 16)[int(torch.randint(3, (1,), generator=generator))]
    veil = torch.rand(count, 3, 1, 1, generator=generator) + 0.35 * cloud(count, cells, generator)
    return share * views.images + (1 - share) * veil.clamp(0, 1), None


HARD: tuple[str, ...] = ("halves", "blend", "warp")
"""Kinds that are near to real pictures, so that they need most of the training."""

TRAINED: tuple[str, ...] = (*HARD, "noise", "scraps", "tiles", "blur", "blank", "veil")
"""Kinds that the judges are trained on."""


@kinds.add("uniform")
def _uniform_noise(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Every channel of every pixel at random."""
    return torch.rand(views.images.shape, generator=generator), None


@kinds.add("blend3")
def _blend3(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Three objects, a third each."""
    a, b = _others(views, generator, 2)
    same = (views.styles == views.styles[a]) & (views.styles == views.styles[b])
    return (views.images + views.images[a] + views.images[b]) / 3, same


@kinds.add("rows")
def _rows(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """The rows of pixels in random order."""
    order = torch.rand(len(views.images), 1, SIZE, 1, generator=generator).argsort(dim=2)
    return views.images.gather(2, order.expand_as(views.images)), None


@kinds.add("static")
def _static(views: Labelled, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Half the picture, half uniform noise."""
    return 0.5 * views.images + 0.5 * torch.rand(views.images.shape, generator=generator), None


UNSEEN: tuple[str, ...] = ("uniform", "blend3", "rows", "static")
"""Kinds that no judge is trained on, to test with."""
