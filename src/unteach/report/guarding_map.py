"""A U-Net drawn from the names of its tensors, each layer a cell that shows how much of it is frozen.

Down blocks descend on the left, the middle lies at the bottom, up blocks rise on the right. A line of a block is one
resnet and the attention after it; a cell is one module (weight and bias). Names of no known place are drawn in a box
of their own, so any network makes a picture.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from unteach.core import text
from unteach.records.mask import FrozenTensor, Mask

View = Literal["frozen", "score"]

WIDTH, CELL, TALL, PITCH, LINE = 1030, 14, 15, 16, 19
SIDE, EDGE = 446, 16
HEADS = 66
STEMS = ("conv_in", "time_embedding", "conv_norm_out", "conv_out")
GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "resnet",
        (
            ("norm1", "norm"),
            ("conv1", "conv"),
            ("time_emb_proj", "time"),
            ("norm2", "norm"),
            ("conv2", "conv"),
            ("conv_shortcut", "skip"),
        ),
    ),
    ("in", (("norm", "norm"), ("proj_in", "proj"))),
    (
        "self-attention",
        (("norm1", "norm"), ("attn1.to_q", "q"), ("attn1.to_k", "k"), ("attn1.to_v", "v"), ("attn1.to_out.0", "out")),
    ),
    (
        "cross-attention",
        (("norm2", "norm"), ("attn2.to_q", "q"), ("attn2.to_k", "k"), ("attn2.to_v", "v"), ("attn2.to_out.0", "out")),
    ),
    ("feed-forward", (("norm3", "norm"), ("ff.net.0.proj", "wide"), ("ff.net.2", "back"))),
    ("out", (("proj_out", "proj"),)),
)
_RESNET = {rest: i for i, (rest, _) in enumerate(GROUPS[0][1])}
_ATTENTION = {rest: len(_RESNET) + i for i, (rest, _) in enumerate(c for _, group in GROUPS[1:] for c in group)}
_INNER = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_BLOCK = re.compile(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)(?:\.([a-z_]+)\.(\d+))?\.(.+)")
_LAST = 10_000

KINDS = (
    "cross-attention",
    "self-attention",
    "feed-forward",
    "attention projections",
    "resnet convolutions",
    "time embedding",
    "resampling convolutions",
    "first and last convolution",
    "norms",
    "biases",
    "other",
)
"""Kinds of tensors, in the order of the table; a bias or a norm is counted as such wherever it is."""


class Place(NamedTuple):
    """Where a module is drawn: its box, its line in the box, its column in the line (-1: the next free one)."""

    box: str
    line: tuple[int, int]
    column: int


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Tensors and parameters, frozen and all, and the mean score of those tensors that have one."""

    tensors: int
    frozen: int
    size: int
    frozen_size: int
    score: float | None

    @property
    def shares(self) -> tuple[float, float]:
        """Frozen share of tensors and of parameters."""
        return self.frozen / max(self.tensors, 1), self.frozen_size / max(self.size, 1)


def tally(tensors: Iterable[FrozenTensor]) -> Tally:
    """Count."""
    found = list(tensors)
    scores = [t.score for t in found if t.score is not None]
    return Tally(
        tensors=len(found),
        frozen=sum(t.frozen for t in found),
        size=sum(t.size for t in found),
        frozen_size=sum(t.size for t in found if t.frozen),
        score=sum(scores) / len(scores) if scores else None,
    )


def place(module: str) -> Place:
    """Where a module ("down_blocks.0.resnets.0.conv1") is drawn."""
    block = _BLOCK.fullmatch(module)
    if not block:
        stem = module.split(".")[0]
        return Place(stem if stem in STEMS else "other", (0, 0), -1)
    box, part, index, rest = block[1], block[2], int(block[3] or 0), block[4]
    if part == "resnets" and rest in _RESNET:
        return Place(box, (index, 0), _RESNET[rest])
    if part == "attentions":
        inner = _INNER.fullmatch(rest)
        depth, rest = (int(inner[1]), inner[2]) if inner else (0, rest)
        if rest in _ATTENTION:
            return Place(box, (index, depth), _ATTENTION[rest])
    if part in ("downsamplers", "upsamplers"):
        return Place(box, (_LAST, 0), -1)
    return Place(box, (_LAST + 1, 0), -1)


def kind(name: str) -> str:
    """Kind of a tensor, one of :data:`KINDS`."""
    module, _, leaf = name.rpartition(".")
    if "norm" in module.rpartition(".")[2]:
        return "norms"
    if leaf == "bias":
        return "biases"
    for found, sign in (
        ("cross-attention", r"\.attn2\."),
        ("self-attention", r"\.attn1\."),
        ("feed-forward", r"\.ff\."),
        ("attention projections", r"\.proj_(in|out)$"),
        ("time embedding", r"(^time_embedding|\.time_emb_proj$)"),
        ("resnet convolutions", r"\.resnets\.\d+\.conv"),
        ("resampling convolutions", r"\.(down|up)samplers\."),
        ("first and last convolution", r"^conv_(in|out)$"),
    ):
        if re.search(sign, module):
            return found
    return "other"


def parts(mask: Mask) -> list[tuple[str, Tally]]:
    """The network by part, in the order of data flow."""
    found: dict[str, list[FrozenTensor]] = {}
    for tensor in mask.tensors:
        found.setdefault(place(_module(tensor.name)).box, []).append(tensor)
    return [(box, tally(found[box])) for box in sorted(found, key=_flow)]


def kinds(mask: Mask) -> list[tuple[str, Tally]]:
    """The network by kind of tensor, without kinds that do not occur."""
    found: dict[str, list[FrozenTensor]] = {}
    for tensor in mask.tensors:
        found.setdefault(kind(tensor.name), []).append(tensor)
    return [(name, tally(found[name])) for name in KINDS if name in found]


def score_range(mask: Mask) -> tuple[float, float] | None:
    """Lowest and highest mean score of a module; None when there are no scores."""
    found = [cell.score for _, cell in _modules(mask).items() if cell.score is not None]
    return (min(found), max(found)) if found else None


def draw(mask: Mask, what: View = "frozen") -> Markup:
    """The network as SVG; cells are filled from below by their frozen share of parameters, or by their mean score."""
    boxes: dict[str, dict[tuple[int, int], list[tuple[int, str, Tally]]]] = {}
    for module, cell in _modules(mask).items():
        at = place(module)
        boxes.setdefault(at.box, {}).setdefault(at.line, []).append((at.column, module, cell))
    pen = _Pen(what, score_range(mask) or (0.0, 1.0))
    down, up = ([b for b in boxes if b.startswith(side)] for side in ("down", "up"))
    down.sort(key=_flow)
    up.sort(key=_flow, reverse=True)
    y: float = _stems(pen, boxes, 4)
    if down or up or "mid_block" in boxes:
        for side in ([EDGE] if down else []) + ([WIDTH - SIDE - EDGE] if up else []):
            pen.heads(side, y + HEADS)
        y += HEADS + 4 if down or up else 0
        for level in range(max(len(down), len(up))):
            left, right = (found[level] if level < len(found) else "" for found in (down, up))
            tall = max(_height(boxes.get(left)), _height(boxes.get(right)))
            if left:
                pen.box(EDGE, y, tall, left, boxes[left])
            if right:
                pen.box(WIDTH - SIDE - EDGE, y, tall, right, boxes[right])
            if left and right:
                middle = y + tall / 2
                pen.flow(f"M{EDGE + SIDE + 3:g},{middle:g} H{WIDTH - SIDE - EDGE - 3:g}", "skip")
            below = level + 1 < max(len(down), len(up))
            for x, arrow in ((EDGE + SIDE / 2, bool(left)), (WIDTH - EDGE - SIDE / 2, bool(right))):
                if arrow and below:
                    pen.flow(f"M{x:g},{y + tall:g} v10", "run")
            y += tall + 10.0
        if "mid_block" in boxes:
            x, tall = (WIDTH - SIDE) / 2, _height(boxes["mid_block"])
            pen.heads(x, y + HEADS)
            top = y + HEADS + 4
            middle = top + tall / 2
            if down:
                pen.flow(f"M{EDGE + SIDE / 2 - 100:g},{y - 10:g} V{middle:g} H{x:g}", "run")
            if up:
                pen.flow(f"M{x + SIDE:g},{middle:g} H{WIDTH - EDGE - SIDE / 2 + 100:g} V{y - 10:g}", "run")
            pen.box(x, top, tall, "mid_block", boxes["mid_block"])
            y = top + tall + 10
    if "other" in boxes:
        y += pen.box(EDGE, y, 0, "other", boxes["other"], wide=True) + 10
    whole = tally(mask.tensors)
    label = (
        f"The network, layer by layer: {whole.frozen} of {whole.tensors} tensors are frozen"
        if what == "frozen"
        else "The network, layer by layer: mean score"
    )
    head = f'<svg class="map" viewBox="0 0 {WIDTH} {y:g}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(pen.parts) + "</svg>")  # numbers, classes of ours and escaped text


def _module(name: str) -> str:
    module, dot, leaf = name.rpartition(".")
    return module if dot and leaf in ("weight", "bias") else name


def _modules(mask: Mask) -> dict[str, Tally]:
    found: dict[str, list[FrozenTensor]] = {}
    for tensor in mask.tensors:
        found.setdefault(_module(tensor.name), []).append(tensor)
    return {module: tally(tensors) for module, tensors in found.items()}


def _flow(box: str) -> tuple[int, int]:
    order = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out", "other")
    name, _, index = box.partition(".")
    return order.index(name), int(index or 0)


Lines = dict[tuple[int, int], list[tuple[int, str, Tally]]]
_TOP = 17


def _height(lines: Lines | None) -> float:
    return _TOP + LINE * len(lines) + 4 if lines else 0


def _stems(pen: "_Pen", boxes: dict[str, Lines], y: float) -> float:
    """What comes before the blocks and after them, in one row. Returns where the next row begins."""
    for names, edge, step in (
        (("conv_in", "time_embedding"), EDGE, 1),
        (("conv_out", "conv_norm_out"), WIDTH - EDGE, -1),
    ):
        x = float(edge)
        for name in names:
            if name in boxes:
                count = sum(map(len, boxes[name].values()))
                wide = max(14 + PITCH * count, 14 + 6.7 * len(name))
                pen.box(x if step > 0 else x - wide, y, 0, name, boxes[name], width=wide)
                x += step * (wide + 10)
    return y + (_TOP + LINE + 8 if any(name in boxes for name in STEMS) else 0)


def _columns() -> list[float]:
    """Left edges of the columns, groups set apart."""
    found: list[float] = []
    x = 30.0
    for _, columns in GROUPS:
        for _ in columns:
            found.append(x)
            x += PITCH
        x += 10
    return found


class _Pen:
    """Collects SVG."""

    def __init__(self, what: View, span: tuple[float, float]) -> None:
        self.what, self.span = what, span
        self.parts: list[str] = []
        self.columns = _columns()

    def heads(self, x: float, y: float) -> None:
        """Names of the columns, ending at y."""
        index = 0
        for group, columns in GROUPS:
            first = x + self.columns[index]
            across = PITCH * len(columns) - (PITCH - CELL)
            if len(columns) > 2:
                self.text(first + across / 2, y - 40, group, "middle", "group")
                self.parts.append(f'<path class="span" d="M{first:g},{y - 35:g} h{across:g}"/>')
            for _, head in columns:
                at = x + self.columns[index] + CELL / 2 + 3
                self.parts.append(f'<text transform="translate({at:g},{y - 3:g}) rotate(-90)">{escape(head)}</text>')
                index += 1

    def text(self, x: float, y: float, words: str, anchor: str = "start", css: str = "") -> None:
        """A word."""
        style = f' class="{css}"' if css else ""
        self.parts.append(f'<text{style} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def flow(self, path: str, css: str) -> None:
        """A line between boxes."""
        self.parts.append(f'<path class="{css}" d="{path}"/>')

    def box(
        self, x: float, y: float, tall: float, name: str, lines: Lines, *, width: float = SIDE, wide: bool = False
    ) -> float:
        """A box with its lines, the first below for up blocks; returns its height."""
        order = sorted(lines, reverse=name.startswith("up_blocks"))
        rows = [(line, sorted(lines[line], key=lambda cell: cell[0])) for line in order]
        if wide:
            width, most = WIDTH - 2 * EDGE, (WIDTH - 2 * EDGE - 14) // PITCH
            (_, cells), *_ = rows
            rows = [((k, 0), cells[k : k + most]) for k in range(0, len(cells), most)]
        tall = max(tall, _TOP + LINE * len(rows) + 4)
        self.parts.append(f'<rect class="block" x="{x:g}" y="{y:g}" width="{width:g}" height="{tall:g}" rx="6"/>')
        self.text(x + 7, y + 12.5, name, css="name")
        known = name.startswith(("down", "up", "mid"))
        for k, (line, cells) in enumerate(rows):
            top = y + _TOP + LINE * k
            free = 0
            for column, module, cell in cells:
                loose = self.columns[0] if known else 7
                at = self.columns[column] if column >= 0 else loose + PITCH * free
                free += column < 0
                self.cell(x + at, top, module, cell)
            if known:
                self.text(x + 24, top + 11.5, _label(line, name), "end")
                if line[0] >= _LAST:
                    said = "other" if line[0] > _LAST else "downsampler" if name.startswith("down") else "upsampler"
                    self.text(x + self.columns[0] + PITCH * free + 3, top + 11.5, said)
        return tall

    def cell(self, x: float, y: float, module: str, cell: Tally) -> None:
        """One module."""
        whole = cell.frozen == cell.tensors
        if self.what == "frozen":
            amount = cell.shares[1]
        else:
            low, high = self.span
            amount = 0.0 if cell.score is None else (cell.score - low) / (high - low) if high > low else 1.0
        tall = max(3.0, TALL * amount) if (cell.frozen if self.what == "frozen" else amount) else 0.0
        self.parts.append(f"<g><title>{escape(describe(module, cell))}</title>")
        self.parts.append(f'<rect class="cell" x="{x:g}" y="{y:g}" width="{CELL}" height="{TALL}" rx="2"/>')
        if tall:
            self.parts.append(
                f'<rect class="fill" x="{x:g}" y="{y + TALL - tall:.2f}" width="{CELL}" height="{tall:.2f}" rx="2"/>'
            )
        if whole and self.what == "frozen":
            strokes = "".join(f"M{x + a:g},{y + b:g} l{c},-{c}" for a, b, c in ((1, 7, 6), (1, 14, 12), (7, 14, 6)))
            self.parts.append(f'<path class="hatch" d="{strokes}"/>')
        if whole and self.what == "score":
            self.parts.append(f'<circle class="pin" cx="{x + CELL / 2:g}" cy="{y + 4:g}" r="2.2"/>')
        self.parts.append("</g>")


def _label(line: tuple[int, int], box: str) -> str:
    if line[0] >= _LAST:
        return "" if line[0] > _LAST else "↓" if box.startswith("down") else "↑"
    return f"{line[0]}" if not line[1] else f"{line[0]}.{line[1]}"


def describe(module: str, cell: Tally) -> str:
    """A cell in words."""
    score = "" if cell.score is None else f", mean score {cell.score:.2f}"
    return (
        f"{module}: {cell.frozen} of {cell.tensors} tensors frozen, "
        f"{text.size(cell.frozen_size, '')} of {text.size(cell.size, '')} parameters{score}"
    )
