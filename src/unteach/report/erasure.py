"""The part of a page about evaluated erasures: verdicts, rows of intervals, heat maps, pictures."""

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from unteach.errors import DataError
from unteach.records.erasure import Grid, Metric, Results, Table
from unteach.report import terms
from unteach.report.format import percent, points
from unteach.report.images import read_png
from unteach.report.section import Kind, Section, Thresholds

Tone = Literal["good", "fair", "bad", "none"]
TONES: tuple[Tone, ...] = ("none", "good", "fair", "bad")
SMALL = 64
"""Pictures up to this many pixels wide are enlarged with hard pixels."""


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

    term: terms.Term
    better: str
    rows: tuple[Row, ...]


def blocks(metrics: Iterable[Metric], judges: Sequence[str]) -> list[Block]:
    """Measures in the order of reports, each with a row a prompt set and a cell a judge."""
    metrics = list(metrics)
    found = []
    for name in sorted({m.name for m in metrics}, key=lambda name: (terms.order(name), name)):
        mine = [m for m in metrics if m.name == name]
        rows = []
        for prompts in dict.fromkeys(m.prompts for m in mine):
            cells = [_cell([m for m in mine if m.prompts == prompts and m.judge == j]) for j in judges]
            if any(cell is not None for cell in cells):
                rows.append(Row(prompts=prompts, cells=tuple(cells)))
        if rows:
            found.append(Block(term=terms.term(name), better=mine[0].better, rows=tuple(rows)))
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


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One inlined picture: its data URI, its text alternative, and whether it is enlarged with hard pixels."""

    uri: str
    alt: str
    small: bool


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A grid as columns of pictures, each with its label and caption."""

    grid: Grid
    columns: tuple[tuple[str, str, tuple[Picture | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class ConceptView:
    """What is shown of one concept; ``instead`` pairs a table with its bars before and after."""

    id: str
    verdict: Verdict
    blocks: list[Block]
    strips: list[Strip]
    heats: list[Heat]
    instead: list[tuple[Table, tuple[list[Slice], list[Slice]]]]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What is shown of one evaluation; ``general`` and ``unjudged`` are of no single concept."""

    results: Results
    judges: list[str]
    general: list[Block]
    unjudged: list[Block]
    strips: list[Strip]
    concepts: list[ConceptView]


@dataclass(frozen=True, kw_only=True)
class ErasureSection(Section):
    """Evaluations; ``explained`` has a line for every method and judge that brings one."""

    TEMPLATE: ClassVar[str] = "erasure.html.j2"
    PICTURES: ClassVar[bool] = True
    runs: list[RunView]
    limits: Thresholds
    terms: list[terms.Term]
    explained: dict[str, str]


def section(runs: Sequence[Results], limits: Thresholds) -> ErasureSection:
    """The part of the page.

    Raises:
        DataError: a picture is missing or no PNG.
    """
    explained: dict[str, str] = {}
    for run in runs:
        explained.update(run.notes)
        if run.method in terms.METHODS:
            explained.setdefault(run.method, terms.METHODS[run.method])
    return ErasureSection(
        title=_title(runs),
        lead="Each picture was drawn twice from the same prompt and the same noise: by the unchanged model, and by the "
        "model with the delta.",
        runs=[_run(f"run{index}", run, limits) for index, run in enumerate(runs)],
        limits=limits,
        terms=[term for term in terms.ERASURE if any(m.name == term.name for run in runs for m in run.metrics)],
        explained=explained,
    )


def _title(runs: Sequence[Results]) -> str:
    if given := dict.fromkeys(run.title for run in runs if run.title):
        return "; ".join(given)
    targets = dict.fromkeys(concept.target for run in runs for concept in run.concepts)
    return f"Taken out: {', '.join(targets)}" if targets else "Results"


def _run(name: str, run: Results, limits: Thresholds) -> RunView:
    judges = list(dict.fromkeys(m.judge for m in run.metrics if m.judge))
    general = [m for m in run.metrics if not m.concept]
    strips = [_strip(grid, run.root) for grid in run.grids]
    of_all = [s for s in strips if not s.grid.concept]
    concepts = []
    for position, concept in enumerate(run.concepts):
        tables = [t for t in run.tables if t.concept == concept.target]
        own = [s for s in strips if s.grid.concept == concept.target]
        view = ConceptView(
            id=f"{name}-concept{position}",
            verdict=verdict(run, concept.target, limits),
            blocks=blocks([m for m in run.metrics if m.concept == concept.target], judges),
            strips=own + of_all if len(run.concepts) == 1 else own,
            heats=[heat(t) for t in tables if t.kind == "kept"],
            instead=[(t, instead(t)) for t in tables if t.kind == "seen"],
        )
        concepts.append(view)
    return RunView(
        results=run,
        judges=judges,
        general=blocks([m for m in general if m.judge], judges),
        unjudged=blocks([m for m in general if not m.judge], [""]),
        strips=[] if len(run.concepts) == 1 else of_all,
        concepts=concepts,
    )


def _strip(grid: Grid, root: Path | None) -> Strip:
    columns = []
    for c, label in enumerate(grid.columns):
        caption = grid.captions[c] if grid.captions else label
        column = [_picture(root, grid, grid.images[r][c], f"{row}: {caption}") for r, row in enumerate(grid.rows)]
        columns.append((label, caption, tuple(column)))
    return Strip(grid=grid, columns=tuple(columns))


def _picture(root: Path | None, grid: Grid, path: str, alt: str) -> Picture | None:
    if not path:
        return None
    data = read_png(root, path, what=f"grid '{grid.name}'")
    width = struct.unpack(">I", data[16:20])[0] if len(data) >= 24 else 0
    if not width:
        raise DataError(f"grid '{grid.name}': the picture {path} is damaged", fix="evaluate again")
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return Picture(uri=uri, alt=alt, small=width <= SMALL)


KINDS = (Kind(record=Results, what="evaluations", file=Results.FILE, section=section),)
