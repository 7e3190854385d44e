"""The verdict of an evaluation as tables in a terminal."""

from collections.abc import Sequence

from unteach.core.text import aligned
from unteach.records.erasure import Metric, Results
from unteach.report import erasure, terms
from unteach.report.format import between, number
from unteach.report.section import Thresholds

__all__ = ["drifts", "verdicts"]

MEASURES = ("UA", "IRA", "CRA")


def verdicts(results: Results, limits: Thresholds | None = None) -> str:
    """A table for each concept: UA, IRA and CRA by prompt set and judge, before → after with interval and n."""
    limits = limits or Thresholds()
    parts = []
    for concept in results.concepts:
        mine = [m for m in results.metrics if m.concept == concept.target]
        found = erasure.verdict(results, concept.target, limits)
        head = f"{concept.target} → {concept.anchor} ({concept.kind}): {found.sentence} [{found.label}]"
        parts.append(head + "\n" + _table(mine))
    if results.check is not None:
        parts.append("\n  ".join([f"the check without a judge: {results.check.verdict}", *results.check.lines()]))
    return "\n\n".join(parts)


def drifts(results: Results) -> str:
    """The measures that are of a whole run: how far unrelated pictures moved."""
    rows = [
        (terms.term(m.name).label, m.prompts, f"{number(m, m.value)} ({between(m)}, n {m.n})")
        for m in results.metrics
        if not m.concept and not m.judge
    ]
    return aligned([("measure", "prompts", "value (95 %)"), *rows]) if rows else ""


def _table(metrics: Sequence[Metric]) -> str:
    judges = list(dict.fromkeys(m.judge for m in metrics if m.judge))
    rows = [("measure", "prompts", *(f"{judge}: before → after (95 %, n)" for judge in judges))]
    for block in erasure.blocks([m for m in metrics if m.name in MEASURES], judges):
        for row in block.rows:
            cells = [_cell(cell) for cell in row.cells]
            rows.append((f"{block.term.name} ({block.term.label.lower()})", row.prompts, *cells))
    return aligned(rows)


def _cell(cell: erasure.Cell | None) -> str:
    if cell is None or cell.after is None:
        return "–"
    before = "–" if cell.before is None else number(cell.before, cell.before.value)
    return f"{before} → {number(cell.after, cell.after.value)} ({between(cell.after)}, n {cell.after.n})"
