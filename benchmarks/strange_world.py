"""A small world that the library has never seen: drawn shapes in drawn styles, with words of its own.

Ten shapes × six styles at 16 px, computed from formulas, no file is read. ``strange_model.py`` trains a pipeline and a
judge on it. Nothing here is shared with the bundled model's world.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unteach.core import seeds
from unteach.data.concepts import fill

SIZE = 16
OBJECTS = ("ball", "box", "tent", "star", "cross", "ring", "heart", "moon", "arrow", "hourglass")
STYLES = ("brick", "ocean", "neon", "candy", "chalk", "sand")
TRAIN_TEMPLATES = (
    "a {style} {object}", "{style} {object}", "a {object} in {style} style", "a picture of a {style} {object}",
    "a picture of a {object} in {style} style", "a drawing of a {style} {object}", "one {object} in {style}",
    "a {object} drawn in the style of {style}", "a small {style} {object}", "the {object} in {style} colours",
)  # fmt: skip
HELD_OUT_TEMPLATES = (
    "an image of a {style} {object}", "a photo of a {object} in {style} style", "{object} in the style of {style}",
    "here is a {style} {object}",
)  # fmt: skip
_WORDS = """
about above again air along always animal apple arm around away back bad bag balance bank basket bath bell best big
bird blue board boat body bone book both bottle bread bridge bright broken brown brush bucket building cake camera
card cart castle cat chain chair city clean clear clock cloud coat cold copy corner cotton country cover cow cup cut
dark deep desk dog door down drop dry early earth east egg end engine every eye face fall family farm fast feather
field fire fish flag flat floor flower fly foot forest fork free fresh friend front fruit full game garden gate gift
girl glass gold good grass great green grey group hair hammer hand happy hard hat heavy hill hole home horse hot
hour house ice ink iron island jewel journey key kind king kitchen knee knife knot lake land last late leaf leg
letter light line lip little lock long loud low machine man map market meal metal middle milk mind morning mountain
mouth music nail name narrow near neck needle nest net new night noise north nose number nut office oil old open
orange other oven page paint paper parcel part pen pencil person picture pin pipe place plane plant plate pocket
point pot potato present pump purple queen quick quiet rail rain receipt red rice river road rod roof room root
round salt school sea seat seed sheep shelf ship shirt shoe short silk silver sky slow smooth snake snow soap sock
soft song south spade sponge spoon spring square stamp station stem stick stone store street strong sugar summer sun
table tail tall thin thread thumb ticket tongue tooth town train tray tree trousers umbrella under wall warm watch
water wave wet wheel whistle white wide wind window wing winter wire wood wool word worm yellow young
"""
FILLER = tuple(_WORDS.split())


def caption(template: str, obj: str, style: str) -> str:
    """The template with both names, articles fitted."""
    left = template.replace("{object}", "{}").replace("{style}", "\0")
    filled = fill(left, obj)
    return fill(filled.replace("\0", "{}"), style)


def draw_caption(obj: int, style: int, rng: random.Random) -> tuple[str, int, int]:
    """A training caption and what it says: (text, object or "none" index, style or "none" index)."""
    chance = rng.random()
    if chance < 0.08:
        text, said = f"a {OBJECTS[obj]}", (obj, len(STYLES))
    elif chance < 0.16:
        text, said = f"{STYLES[style]} style", (len(OBJECTS), style)
    elif chance < 0.2:
        text, said = "", (len(OBJECTS), len(STYLES))
    else:
        text, said = caption(rng.choice(TRAIN_TEMPLATES), OBJECTS[obj], STYLES[style]), (obj, style)
    if rng.random() < 0.5:
        words = text.split()
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), rng.choice(FILLER))
        text = " ".join(words)
    return text, *said


# Pictures


def _polygon(points: Sequence[tuple[float, float]]) -> Callable[[Tensor, Tensor], Tensor]:
    """Signed distance (inside below 0) to a polygon."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        least, inside = torch.full_like(x, 9.0), torch.zeros_like(x, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            ex, ey = bx - ax, by - ay
            along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            least = torch.minimum(least, torch.hypot(x - ax - along * ex, y - ay - along * ey))
            if ay != by:
                inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
        return torch.where(inside, -least, least)

    return distance


def _star() -> list[tuple[float, float]]:
    turns = [(1.0 if i % 2 == 0 else 0.4, math.pi * i / 5) for i in range(10)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in turns]


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobes = torch.minimum(torch.hypot(x - 0.4, y + 0.3), torch.hypot(x + 0.4, y + 0.3)) - 0.46
    return torch.minimum(lobes, _polygon([(-0.82, -0.12), (0.82, -0.12), (0.0, 0.95)])(x, y))


SHAPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ball": lambda x, y: torch.hypot(x, y) - 0.85,
    "box": _polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "tent": _polygon([(0.0, -0.9), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _polygon(_star()),
    "cross": _polygon(
        [(-0.28, -0.9), (0.28, -0.9), (0.28, -0.28), (0.9, -0.28), (0.9, 0.28), (0.28, 0.28),
         (0.28, 0.9), (-0.28, 0.9), (-0.28, 0.28), (-0.9, 0.28), (-0.9, -0.28), (-0.28, -0.28)]
    ),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.68).abs() - 0.2,
    "heart": _heart,
    "moon": lambda x, y: torch.maximum(torch.hypot(x, y) - 0.9, 0.75 - torch.hypot(x - 0.45, y)),
    "arrow": _polygon([(-0.9, -0.25), (0.0, -0.25), (0.0, -0.75), (0.95, 0.0), (0.0, 0.75), (0.0, 0.25), (-0.9, 0.25)]),
    "hourglass": _polygon([(-0.75, -0.9), (0.75, -0.9), (0.12, 0.0), (0.75, 0.9), (-0.75, 0.9), (-0.12, 0.0)]),
}  # fmt: skip

_COLOURS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]] = {
    "brick": ((0.75, 0.22, 0.15), (0.45, 0.1, 0.08), (0.93, 0.88, 0.8)),
    "ocean": ((0.1, 0.3, 0.8), (0.5, 0.85, 0.95), (1.0, 1.0, 1.0)),
    "neon": ((0.3, 1.0, 0.4), (0.05, 0.45, 0.3), (0.02, 0.0, 0.06)),
    "candy": ((1.0, 0.4, 0.7), (1.0, 0.85, 0.3), (0.8, 1.0, 0.9)),
    "chalk": ((0.95, 0.95, 0.92), (0.6, 0.62, 0.6), (0.15, 0.3, 0.22)),
    "sand": ((0.85, 0.6, 0.25), (0.5, 0.33, 0.1), (1.0, 0.95, 0.6)),
}
"""First and second colour of the shape, colour of the ground."""


def render(objects: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, 16, 16) in [0, 1]; place, size, turn and colours vary a little.

    Args:
        objects: (N,) places in :data:`OBJECTS`.
        styles: (N,) places in :data:`STYLES`.
        generator: of the variation.
    """
    n = len(objects)
    line = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    draw = torch.rand(n, 4, generator=generator) * 2 - 1
    scale = (0.78 + 0.06 * draw[:, 2])[:, None, None]
    dx, dy = ((x - 0.1 * draw[:, 0, None, None]) / scale, (y - 0.1 * draw[:, 1, None, None]) / scale)
    turn = (0.1 * draw[:, 3])[:, None, None]
    u, v = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
    away = torch.zeros(n, SIZE, SIZE)
    for i, name in enumerate(OBJECTS):
        if bool((rows := objects == i).any()):
            away[rows] = SHAPES[name](u[rows], v[rows])
    mask = torch.sigmoid(-away * scale * SIZE)[:, None]
    edge = torch.sigmoid(((away + 0.16).abs() - 0.14) * scale * -SIZE)[:, None]
    textures = torch.stack(
        [
            (torch.sin(v * 8) > 0.2).float(),
            ((v + 1) / 2).clamp(0, 1),
            1 - edge[:, 0],
            ((torch.sin(u * 7) * torch.sin(v * 7)) > 0).float(),
            (torch.sin((u + v) * 6) > 0).float(),
            ((torch.sin(u * 8) > 0.1) & (torch.sin(v * 8) > 0.1)).float(),
        ]
    )
    mix = textures[styles, torch.arange(n)][:, None]
    palette = torch.tensor([_COLOURS[name] for name in STYLES])[styles]
    palette = (palette + 0.06 * torch.randn(palette.shape, generator=generator)).clamp(0, 1)
    first, second, ground = (part[:, :, None, None] for part in palette.unbind(1))
    return (mask * (first * (1 - mix) + second * mix) + (1 - mask) * ground).clamp(0, 1)


def garbage(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures that show no shape, with labels: "none" as object; as style "none", or -1 where it is not asked."""
    objects = torch.randint(len(OBJECTS), (count,), generator=generator)
    styles = torch.randint(len(STYLES), (count,), generator=generator)
    whole = render(objects, styles, generator)
    noise = torch.rand(whole.shape, generator=generator)
    coarse = torch.nn.functional.interpolate(noise[:, :, :4, :4], size=SIZE, mode="bilinear")
    order = torch.randperm(16, generator=generator)
    cells = whole.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, order]
    shuffled = cells.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(whole.shape)
    blend = (whole + render(objects.roll(1), styles, generator).roll(1, 0)) / 2
    kind = torch.arange(count) % 4
    parts = torch.stack([noise, coarse, shuffled, blend])[kind, torch.arange(count)]
    said = torch.where(kind == 2, styles, torch.where(kind == 3, -1, len(STYLES)))
    return parts, torch.full((count,), len(OBJECTS)), said


def batch(seed: int, purpose: str, index: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random pictures with their objects and styles: a function of the arguments."""
    draw = seeds.generator(seed, purpose, index)
    objects = torch.randint(len(OBJECTS), (count,), generator=draw)
    styles = torch.randint(len(STYLES), (count,), generator=draw)
    return render(objects, styles, draw), objects, styles
