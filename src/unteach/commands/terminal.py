"""What the commands print: lines, stages, resources, and the verdict table of an evaluation."""

import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from unteach.errors import ConfigError, printable
from unteach.records.erasure import Metric, Results
from unteach.report import view, words

MEASURES = ("UA", "IRA", "CRA")
PASS_PHRASE = "UNTEACH_PASS_PHRASE"
"""Variable of the environment with the pass phrase of a private key."""
STAGE = "» "
"""Begins each line of a log that tells a new stage, so that another process can follow it."""

Say = Callable[[str], None]


def say(text: str = "") -> None:
    """Print a line at once, also into a file; what a terminal would act on is shown as an escape."""
    print(printable(text), flush=True)


def stage(text: str) -> None:
    """Print a line that a following process shows."""
    say(STAGE + text)


def interactive() -> bool:
    """Whether progress bars would be seen."""
    return sys.stderr.isatty()


def pass_phrase(what: str, *, twice: bool = False) -> bytes:
    """A pass phrase from UNTEACH_PASS_PHRASE, else typed at the terminal without being shown.

    Raises:
        ConfigError: it is empty, there is no terminal to ask at, or the second time it was another one.
    """
    given = os.environ.get(PASS_PHRASE)
    if given is None and not sys.stdin.isatty():
        raise ConfigError(f"the pass phrase of {what} cannot be asked for here", fix=f"put it into {PASS_PHRASE}")
    if given is None:
        given = getpass.getpass(f"pass phrase of {what}: ")
        if twice and given != getpass.getpass("once more: "):
            raise ConfigError("the two pass phrases differ", fix="run the same command again")
    if not given:
        raise ConfigError(f"the pass phrase of {what} is empty")
    return os.fsencode(given)


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int | None, *, small: bool = False) -> None:
    """Set torch's processor threads; without a number, one for a ``small`` model (more only wait), else torch's own."""
    if count is not None or small:
        torch.set_num_threads(count or 1)


def steps_teller(tell: Say, total: int | None, parts: int = 4) -> Callable[[int], None] | None:
    """A function to call after each training step: tells every ``parts``-th of the way; None without steps."""
    if total is None:
        return None
    marks = {max(1, total * k // parts) for k in range(1, parts + 1)}

    def told(done: int) -> None:
        if done in marks:
            tell(f"trained {done} of {total} steps")

    return told


def wrote(paths: Sequence[Path]) -> None:
    """The last lines of a command: what it wrote."""
    say("wrote:")
    for path in paths:
        say(f"  {path}")


def verdicts(results: Results, limits: view.Thresholds | None = None) -> str:
    """A table for each concept: UA, IRA and CRA by prompt set and judge, before → after with interval and n."""
    limits = limits or view.Thresholds()
    parts = []
    for concept in results.concepts:
        mine = [m for m in results.metrics if m.concept == concept.target]
        found = view.verdict(results, concept.target, limits)
        head = f"{concept.target} → {concept.anchor} ({concept.kind}): {found.sentence} [{found.label}]"
        parts.append(head + "\n" + _table(mine))
    if results.check is not None:
        parts.append("\n  ".join([f"the check without a judge: {results.check.verdict}", *results.check.lines()]))
    return "\n\n".join(parts)


def drifts(results: Results) -> str:
    """The measures that are of a whole run: how far unrelated pictures moved."""
    rows = [
        (words.term(m.name).label, m.prompts, f"{view.number(m, m.value)} ({view.between(m)}, n {m.n})")
        for m in results.metrics
        if not m.concept and not m.judge
    ]
    return aligned([("measure", "prompts", "value (95 %)"), *rows]) if rows else ""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as left-aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)


def _table(metrics: Sequence[Metric]) -> str:
    judges = list(dict.fromkeys(m.judge for m in metrics if m.judge))
    rows = [("measure", "prompts", *(f"{judge}: before → after (95 %, n)" for judge in judges))]
    for block in view.blocks([m for m in metrics if m.name in MEASURES], judges):
        for row in block.rows:
            cells = [_cell(cell) for cell in row.cells]
            rows.append((f"{block.term.name} ({block.term.label.lower()})", row.prompts, *cells))
    return aligned(rows)


def _cell(cell: view.Cell | None) -> str:
    if cell is None or cell.after is None:
        return "–"
    before = "–" if cell.before is None else view.number(cell.before, cell.before.value)
    return f"{before} → {view.number(cell.after, cell.after.value)} ({view.between(cell.after)}, n {cell.after.n})"


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, indented; what kept it from being read, if it cannot be."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"  (cannot read {path}: {error.strerror})"
    return printable("\n".join(f"  | {line}" for line in text.replace("\r", "\n").splitlines()[-lines:]))
