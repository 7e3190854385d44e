"""EmojiCanvas: loading the packed icons and drawing views of them. Everything ships with the package."""

import functools
import hashlib
import io
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unteach.core.registry import near
from unteach.data.vocabulary import (
    HELD_OUT_TEMPLATES,
    OBJECTS,
    STYLES,
    TRAIN_TEMPLATES,
    ObjectInfo,
    caption,
    fix_articles,
)
from unteach.errors import ConfigError, DataError

__all__ = [
    "HELD_OUT_TEMPLATES",
    "OBJECTS",
    "STYLES",
    "TRAIN_TEMPLATES",
    "Canvas",
    "Domain",
    "FullSet",
    "ObjectInfo",
    "adaptation",
    "caption",
    "draw",
    "fix_articles",
    "full",
    "grid",
]

SIZE = 32
"""Side of every picture of this world, in pixels."""

BACKGROUNDS = torch.tensor([[1, 1, 1], [1, 0.97, 0.9], [0.91, 0.96, 1], [0.93, 0.99, 0.92], [1, 0.93, 0.95]])
"""White and four pale backgrounds, RGB in [0, 1]."""


@functools.cache
def index() -> dict[str, Any]:
    """The packs' table of contents: sources with licences, and what each sheet holds.

    Raises:
        DataError: the packed data is missing or of another version.
    """
    try:
        text = (resources.files("unteach.data") / "packs" / "index.json").read_text(encoding="utf-8")
        table = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError("the packed emoji data is missing or damaged", found=error, fix="reinstall unteach") from error
    if not isinstance(table, dict) or table.get("format") != "unteach-emoji":
        raise DataError("the packed emoji data is damaged: index.json is not its index", fix="reinstall unteach")
    if table.get("version") != 1:
        raise DataError(
            "the packed emoji data is of another version",
            found=table.get("version"),
            fix="reinstall unteach",
        )
    missing = sorted({"sources", "sheets", "grid", "full", "domains"} - set(table))
    if missing:
        raise DataError("the packed emoji data is damaged", found=f"no {missing}", fix="reinstall unteach")
    return table


def _sheet(name: str, size: int, columns: int, count: int) -> Tensor:
    """The icons of a sheet, uint8, (count, channels, size, size)."""
    try:
        data = (resources.files("unteach.data") / "packs" / f"{name}.webp").read_bytes()
    except OSError as error:
        raise DataError(
            f"the packed sheet '{name}' is missing", found=error.strerror or error, fix="reinstall unteach"
        ) from error
    if hashlib.sha256(data).hexdigest() != index()["sheets"].get(name):
        raise DataError(
            f"the packed sheet '{name}' is damaged: its digest is not the one in index.json",
            found=f"{len(data)} bytes",
            fix="reinstall unteach",
        )
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    rows = -(-count // columns)
    if pixels.shape[:2] != (rows * size, columns * size):
        raise DataError(f"the packed sheet '{name}' has the wrong size", found=pixels.shape, fix="reinstall unteach")
    tiles = torch.from_numpy(pixels.copy()).view(rows, size, columns, size, -1).permute(0, 2, 4, 1, 3)
    return tiles.reshape(rows * columns, -1, size, size)[:count]


def draw(
    icons: Tensor,
    generator: torch.Generator | None = None,
    *,
    strong: bool = False,
    background: Tensor | None = None,
) -> Tensor:
    """Draw RGBA icons as 32 x 32 views: a little scaled and shifted, on white or a pale background.

    Args:
        icons: (B, 4, 64, 64), uint8.
        generator: randomness of scale, shift and background; None: the canonical view (centred, on white).
        strong: wider scale and shift, a rotation and darker backgrounds (for training judges).
        background: (B, 3) RGB in [0, 1], instead of a random one.

    Returns:
        (B, 3, 32, 32), float in [0, 1].
    """
    count = len(icons)
    if count == 0:
        return torch.empty(0, 3, SIZE, SIZE)

    def uniform(*shape: int) -> Tensor:
        return torch.full(shape, 0.5) if generator is None else torch.rand(*shape, generator=generator)

    scale = 0.82 + 0.22 * uniform(count) if strong else 0.91 + 0.09 * uniform(count)
    shift = (uniform(count, 2) * 2 - 1) * ((2.2 if strong else 1.0) / (SIZE / 2))
    angle = (uniform(count) * 2 - 1) * (0.16 if strong else 0.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1] = cos, sin, -sin, cos
    theta[:, 0, 2] = -(cos * shift[:, 0] + sin * shift[:, 1])
    theta[:, 1, 2] = -(-sin * shift[:, 0] + cos * shift[:, 1])
    places = F.affine_grid(theta, [count, 4, 2 * SIZE, 2 * SIZE], align_corners=False)
    # Colours are weighted by alpha before they are averaged, so no fringe of transparent pixels appears.
    rgba = icons.float() / 255
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    rgba = F.avg_pool2d(F.grid_sample(rgba, places, align_corners=False), 2)
    if background is None:
        pale = 1 + (uniform(count) * 4).long().clamp(max=3)
        choice = torch.where(uniform(count) < 0.6, torch.zeros(count, dtype=torch.long), pale)
        background = BACKGROUNDS[choice]
    paper = background[:, :, None, None]
    if strong:
        dark = uniform(count, 3, 1, 1) * 0.12 * (uniform(count, 1, 1, 1) < 0.5)
        paper = (paper - dark).clamp(0, 1)
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * paper).clamp(0, 1)


@dataclass(frozen=True)
class Canvas:
    """The grid: every object in every style, as RGBA icons of 64 px, uint8, (objects, styles, 4, 64, 64)."""

    icons: Tensor
    objects: tuple[ObjectInfo, ...] = OBJECTS
    styles: tuple[str, ...] = STYLES

    def object_index(self, name: str) -> int:
        """The index of an object by either of its names."""
        names = {known: i for i, info in enumerate(self.objects) for known in info.names}
        if name not in names:
            raise ConfigError(f"no object is called '{name}'", fix=near(name, names))
        return names[name]

    def style_index(self, name: str) -> int:
        """The index of a style by its word."""
        if name not in self.styles:
            raise ConfigError(f"no style is called '{name}'", fix=near(name, self.styles))
        return self.styles.index(name)

    def views(
        self,
        objects: Tensor,
        styles: Tensor,
        generator: torch.Generator | None = None,
        *,
        strong: bool = False,
    ) -> Tensor:
        """Views of the icons at (objects[i], styles[i]): (B, 3, 32, 32) in [0, 1]; see :func:`draw`."""
        return draw(self.icons[objects, styles], generator, strong=strong)

    def images(self, objects: Tensor, styles: Tensor) -> Tensor:
        """Canonical views, uint8, (B, 3, 32, 32)."""
        return (self.views(objects, styles) * 255).round().to(torch.uint8)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """All (object, style) index pairs of the grid, objects slowest."""
        n, m = len(self.objects), len(self.styles)
        return torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)


@functools.cache
def grid() -> Canvas:
    """EmojiCanvas's 60 objects x 8 styles."""
    spec = index()["grid"]
    if spec["styles"] != list(STYLES) or spec["objects"] != [o.file for o in OBJECTS]:
        raise DataError("the packed grid does not fit this version's objects and styles", fix="rebuild the packs")
    sheets = [_sheet(f"grid-{s}", spec["size"], spec["columns"], len(OBJECTS)) for s in STYLES]
    return Canvas(torch.stack(sheets, dim=1))


@dataclass(frozen=True)
class Domain:
    """An adaptation domain: RGBA icons (N, 4, 64, 64) uint8 with an object word and a style word each."""

    name: str
    icons: Tensor
    objects: tuple[str, ...]
    styles: tuple[str, ...]

    def captions(self, template: str = TRAIN_TEMPLATES[0]) -> list[str]:
        """One caption an icon."""
        return [caption(template, o, s) for o, s in zip(self.objects, self.styles, strict=True)]

    def views(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Views of icons by row: (B, 3, 32, 32), float in [0, 1]."""
        return draw(self.icons[rows], generator)


@functools.cache
def adaptation() -> dict[str, Domain]:
    """Domains that the bundled model never saw: two icon sets, a family of objects, digits in colour."""
    out = {}
    for name, spec in index()["domains"].items():
        rows = spec["items"]
        icons = _sheet(f"domain-{name}", spec["size"], spec["columns"], len(rows))
        out[name] = Domain(name, icons, tuple(r["object"] for r in rows), tuple(r["style"] for r in rows))
    return out


@dataclass(frozen=True)
class FullSet:
    """Every name common to the eight styles: uint8 images on white (names, styles, 3, 32, 32)."""

    images: Tensor
    names: tuple[str, ...]
    categories: tuple[str, ...]
    subcategories: tuple[str, ...]
    styles: tuple[str, ...] = STYLES


@functools.cache
def full() -> FullSet:
    """The full set, for continual learning."""
    spec = index()["full"]
    rows = spec["names"]
    sheets = [_sheet(f"full-{s}", spec["size"], spec["columns"], len(rows)) for s in STYLES]
    return FullSet(
        torch.stack(sheets, dim=1),
        tuple(r["name"] for r in rows),
        tuple(r["category"] for r in rows),
        tuple(r["subcategory"] for r in rows),
    )
