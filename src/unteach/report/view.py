"""From Results to what a page shows: verdicts, rows of intervals, heat maps. Pure functions, plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from unteach.records.erasure import Metric, Results, Table
from unteach.report import words

Tone = Literal["good", "fair", "bad", "none"]
TONES: tuple[Tone, ...] = ("none", "good", "fair", "bad")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a verdict is green or amber; below that it is red.

    Attributes:
        gone: (green, amber) least share of the concept's prompts on which it is gone.
        lost: (green, amber) most that the rest may have lost against the unchanged model, as a share of
            prompts.
    """

    gone: tuple[float, float] = (0.95, 0.80)
    lost: tuple[float, float] = (0.05, 0.15)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A concept's headline: the worst judge and prompt set decide, for "gone" and for "kept" separately."""

    concept: str
    anchor: str
    kind: str
    tone: Tone
    gone: Metric | None
    gone_tone: Tone
    kept: Metric | None
    kept_before: Metric | None
    kept_tone: Tone
    judges: int
    sets: int

    @property
    def sentence(self) -> str:
        """E.g. "gone on 98 % of prompts, the rest kept at 93 %"."""
        gone = "not measured" if self.gone is None else f"gone on {percent(self.gone.value)} of prompts"
        kept = "the rest not measured" if self.kept is None else f"the rest kept at {percent(self.kept.value)}"
        return f"{gone}, {kept}"

    @property
    def label(self) -> str:
        """The tone in words, for readers who do not see colours."""
        if self.tone == "none":
            return "not measured"
        if self.tone == "good":
            return "erased, rest kept"
        if TONES.index(self.gone_tone) >= TONES.index(self.kept_tone):
            return "not quite gone" if self.gone_tone == "fair" else "not gone"
        return "some of the rest lost" if self.kept_tone == "fair" else "much of the rest lost"


def verdict(results: Results, concept: str, limits: Thresholds) -> Verdict:
    """The headline of one concept."""
    record = next(c for c in results.concepts if c.target == concept)
    gone = min(results.find("UA", concept=concept, when="after"), key=lambda m: (m.value, m.low), default=None)
    kept_pairs = [
        (before, after)
        for after in results.find("kept", concept=concept, when="after")
        for before in results.find("kept", concept=concept, when="before", judge=after.judge, prompts=after.prompts)
    ]
    kept_before, kept = max(
        kept_pairs, key=lambda pair: (pair[0].value - pair[1].value, -pair[1].value), default=(None, None)
    )
    gone_tone: Tone = "none"
    if gone is not None:
        gone_tone = "good" if gone.value >= limits.gone[0] else "fair" if gone.value >= limits.gone[1] else "bad"
    kept_tone: Tone = "none"
    if kept is not None and kept_before is not None:
        lost = kept_before.value - kept.value
        kept_tone = "good" if lost <= limits.lost[0] else "fair" if lost <= limits.lost[1] else "bad"
    measured = [m for m in results.metrics if m.concept == concept]
    return Verdict(
        concept=concept,
        anchor=record.anchor,
        kind=record.kind,
        tone=max((gone_tone, kept_tone), key=TONES.index),
        gone=gone,
        gone_tone=gone_tone,
        kept=kept,
        kept_before=kept_before,
        kept_tone=kept_tone,
        judges=len({m.judge for m in measured}),
        sets=len({m.prompts for m in measured}),
    )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One judge's numbers on one measure and prompt set."""

    before: Metric | None
    after: Metric | None
    change: Metric | None

    @property
    def shown(self) -> Metric | None:
        """What the cell is about: the model after, or a paired measure."""
        return self.after or self.change


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt set of a measure, with a cell for each judge."""

    prompts: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One measure: its term and its rows."""

    term: words.Term
    better: str
    rows: tuple[Row, ...]


def blocks(metrics: Iterable[Metric], judges: Sequence[str]) -> list[Block]:
    """Measures in the order of reports, each with a row a prompt set and a cell a judge."""
    metrics = list(metrics)
    found = []
    for name in sorted({m.name for m in metrics}, key=lambda name: (words.order(name), name)):
        mine = [m for m in metrics if m.name == name]
        rows = []
        for prompts in dict.fromkeys(m.prompts for m in mine):
            cells = [_cell([m for m in mine if m.prompts == prompts and m.judge == j]) for j in judges]
            if any(cell is not None for cell in cells):
                rows.append(Row(prompts=prompts, cells=tuple(cells)))
        if rows:
            found.append(Block(term=words.term(name), better=mine[0].better, rows=tuple(rows)))
    return found


def _cell(metrics: Sequence[Metric]) -> Cell | None:
    if not metrics:
        return None
    when = {m.when: m for m in metrics}
    return Cell(before=when.get("before"), after=when.get("after"), change=when.get("change"))


@dataclass(frozen=True, kw_only=True)
class Square:
    """One cell of a heat map.

    Attributes:
        kind: "lost" (or unchanged), "gained", "erased" (loss that was asked for) or "empty".
        amount: 0 to 1, how strong the colour is.
        text: what it says, for pointer and screen reader.
    """

    kind: Literal["lost", "gained", "erased", "empty"]
    amount: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A heat map of what was lost: rows of squares, with the mean loss of each row."""

    table: Table
    rows: tuple[tuple[str, bool, tuple[Square, ...], str], ...]
    columns: tuple[tuple[str, bool], ...]


def heat(table: Table) -> Heat:
    """Loss (before - after) of each cell of a "kept" table."""
    rows = []
    for r, row in enumerate(table.rows):
        squares, losses = [], []
        for c, column in enumerate(table.columns):
            before, after, n = table.before[r][c], table.after[r][c], table.n[r][c]
            if before is None or after is None:
                squares.append(Square(kind="empty", amount=0.0, text=f"{column}, {row}: not asked"))
                continue
            lost = before - after
            losses.append(lost)
            erased = row in table.erased_rows or column in table.erased_columns
            kind: Literal["lost", "gained", "erased"] = "erased" if erased else "gained" if lost < 0 else "lost"
            text = f"{column}, {row}: as asked {percent(before)} before, {percent(after)} after (n {n})"
            squares.append(Square(kind=kind, amount=min(1.0, abs(lost)), text=text))
        mean = points(-sum(losses) / len(losses)) if losses else "–"
        rows.append((row, row in table.erased_rows, tuple(squares), mean))
    return Heat(
        table=table,
        rows=tuple(rows),
        columns=tuple((column, column in table.erased_columns) for column in table.columns),
    )


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of a bar: what was seen, how often, and whether it is the erased concept or nothing known."""

    label: str
    share: float
    kind: Literal["target", "other", "none", "more"]


def instead(table: Table, row: int = 0, most: int = 3) -> tuple[list[Slice], list[Slice]]:
    """What was seen on the concept's prompts (before, after): the most frequent first, the others added
    up."""
    both = []
    for cells in (table.before[row], table.after[row]):
        seen = [(label, value) for label, value in zip(table.columns, cells, strict=True) if value]
        slices: list[Slice] = []
        more = 0.0
        for label, value in sorted(seen, key=lambda pair: (-pair[1], pair[0])):
            if label in table.erased_columns:
                slices.append(Slice(label=label, share=value, kind="target"))
            elif label == table.columns[-1]:
                slices.append(Slice(label=label, share=value, kind="none"))
            elif sum(s.kind == "other" for s in slices) < most:
                slices.append(Slice(label=label, share=value, kind="other"))
            else:
                more += value
        both.append([*slices, Slice(label="others", share=more, kind="more")] if more else slices)
    return both[0], both[1]


def percent(value: float) -> str:
    """A share in per cent; never rounded up to 100 % or down to 0 % when it is neither."""
    if 0 < value < 0.01:
        return "< 1 %" if value < 0.005 else "1 %"
    if 0.99 < value < 1:
        return "> 99 %" if value > 0.995 else "99 %"
    return f"{round(100 * value)} %"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * value)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else '±'}{abs(rounded)} pt"


def number(metric: Metric, value: float) -> str:
    """A value in the metric's unit."""
    if metric.unit == "share":
        return points(value) if metric.when == "change" and metric.p is not None else percent(value)
    if metric.unit == "dB":
        return f"{value:.1f} dB"
    return f"{value:.3f}" if metric.unit == "intensity" else f"{value:.4g}"


def between(metric: Metric) -> str:
    """The interval in the metric's unit: "91–99 %"."""
    if metric.unit == "share" and metric.low >= 0:
        return f"{round(100 * metric.low)}–{round(100 * metric.high)} %"
    return f"{number(metric, metric.low)} to {number(metric, metric.high)}"


def probability(p: float) -> str:
    """A p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
