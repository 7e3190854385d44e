"""Small drawings for a page: lines and points as inline SVG, coloured by CSS classes, without scripts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 30


@dataclass(frozen=True, kw_only=True)
class Line:
    """Values over x = 1..n, or over given places; ``css`` names the colour; a None breaks the line."""

    label: str
    css: str
    values: tuple[float | None, ...]
    named: bool = True


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point with what it says when pointed at; ``note`` is written beside it."""

    label: str
    css: str
    x: float
    y: float
    note: str = ""


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover ``low`` to ``high``, at most ``most`` steps apart."""
    span = max(high - low, 1e-9)
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * k for k in (1, 2, 2.5, 5, 10, 20) if span / (size * k) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 10) for k in range(first, max(last, first + 1) + 1)]


def lines(
    series: Sequence[Line],
    *,
    title: str,
    x_label: str,
    scale: Sequence[float] = (),
    width: int = 340,
    height: int = 190,
    names: int = 0,
    at: Sequence[float] = (),
) -> Markup:
    """A chart of lines.

    Args:
        series: drawn in this order, so the last one lies on top.
        title: for a screen reader.
        x_label: what 1..n, or ``at``, counts.
        scale: ticks of the y axis; made from the values when not given.
        width: in units of the drawing, which is scaled to its place.
        height: the same.
        names: room on the right for the names of the lines that are ``named``; 0 = none are written.
        at: rising places of the values on the x axis; 1..n when not given.
    """
    known = [v for line in series for v in line.values if v is not None]
    count = max((len(line.values) for line in series), default=0)
    if not known or not count:
        return Markup("")
    scale = scale or ticks(min(known), max(known))
    places = [float(x) for x in at] or [float(t) for t in range(1, count + 1)]
    frame = _Frame(width, height, (places[0], max(places[-1], places[0] + 1)), (scale[0], scale[-1]), RIGHT + names)
    every = max(1, math.ceil(count / 10))
    shown = _apart(places, frame) if at else [t for t in places if (t - 1) % every == 0]
    parts = [frame.axes(scale, shown, x_label)]
    for line in series:
        for run in _unbroken(line.values):
            points = [(frame.x(places[i]), frame.y(v)) for i, v in run]
            if len(points) == 1:
                parts.append(f'<circle class="dot {line.css}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3">')
                parts.append(f"<title>{escape(line.label)}</title></circle>")
                continue
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="{line.css}" points="{path}"><title>{escape(line.label)}</title></polyline>')
    if names:
        parts += _names(frame, [line for line in series if line.named], places)
    return _svg(frame, title, parts)


def scatter(
    points: Sequence[Point], *, title: str, x_label: str, y_label: str, width: int = 1100, height: int = 320
) -> Markup:
    """A chart of points on linear axes."""
    if not points:
        return Markup("")
    across = ticks(min(p.x for p in points), max(p.x for p in points), 8)
    up = ticks(min(p.y for p in points), max(p.y for p in points))
    frame = _Frame(width, height, (across[0], across[-1]), (up[0], up[-1]))
    parts = [frame.axes(up, across, x_label, y_label)]
    for point in points:
        x, y = frame.x(point.x), frame.y(point.y)
        parts.append(f'<circle class="dot {point.css}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">')
        parts.append(f"<title>{escape(point.label)}</title></circle>")
        if point.note:
            anchor, step = ("end", -9) if x > width * 0.75 else ("start", 9)
            parts.append(f'<text x="{x + step:.1f}" y="{y - 4:.1f}" text-anchor="{anchor}">{escape(point.note)}</text>')
    return _svg(frame, title, parts)


@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    across: tuple[float, float]
    up: tuple[float, float]
    right: int = RIGHT

    def x(self, value: float) -> float:
        return LEFT + (value - self.across[0]) / (self.across[1] - self.across[0]) * (self.width - LEFT - self.right)

    def y(self, value: float) -> float:
        bottom = self.height - BOTTOM
        return bottom - (value - self.up[0]) / (self.up[1] - self.up[0]) * (bottom - TOP)

    def axes(self, up: Iterable[float], across: Iterable[float], x_label: str, y_label: str = "") -> str:
        parts, bottom = [], self.height - BOTTOM
        for tick in up:
            y = self.y(tick)
            css = "zero" if tick == 0 else "rule"
            parts.append(f'<line class="{css}" x1="{LEFT}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>')
        for tick in across:
            parts.append(f'<text x="{self.x(tick):.1f}" y="{bottom + 13}" text-anchor="middle">{_number(tick)}</text>')
        middle = (LEFT + self.width - self.right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{self.height - 4}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            parts.append(f'<text x="{LEFT + 4}" y="{TOP + 10}">{escape(y_label)}</text>')
        return "".join(parts)


def _svg(frame: _Frame, title: str, parts: Sequence[str]) -> Markup:
    # every part is a number, a class of ours or escaped text
    head = f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _apart(places: Sequence[float], frame: _Frame, room: float = 24) -> list[float]:
    """Those places that have room for their number, from both ends inwards."""
    kept = [places[0]]
    for place in places[1:-1]:
        if frame.x(place) - frame.x(kept[-1]) >= room and frame.x(places[-1]) - frame.x(place) >= room:
            kept.append(place)
    return [*kept, places[-1]] if len(places) > 1 else kept


def _names(frame: _Frame, series: Sequence[Line], places: Sequence[float]) -> list[str]:
    """Names at the ends of the lines, moved apart where they would overlap."""
    ends = [(line, runs[-1][-1]) for line in series if (runs := _unbroken(line.values))]
    parts, lowest = [], -math.inf
    for line, (i, value) in sorted(ends, key=lambda end: -end[1][1]):
        lowest = max(frame.y(value) + 3.5, lowest + 12)
        x = frame.x(places[i]) + 6
        parts.append(f'<text class="name {line.css}" x="{x:.1f}" y="{lowest:.1f}">{escape(line.label)}</text>')
    return parts


def _unbroken(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for i, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((i, value))
    return [run for run in runs if run]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "−")
