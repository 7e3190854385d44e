"""One self-contained HTML page from results: no scripts, no external requests, pictures inlined."""

import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unteach.core import state, text
from unteach.errors import DataError
from unteach.records.erasure import Grid, Results
from unteach.report import view, words
from unteach.report.images import read_png

SMALL = 64
"""Pictures up to this many pixels wide are enlarged with hard pixels."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One inlined picture: its data URI, its text alternative, and whether it is enlarged with hard
    pixels."""

    uri: str
    alt: str
    small: bool


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A grid as columns of pictures."""

    grid: Grid
    columns: tuple[tuple[str, str, tuple[Picture | None, ...]], ...]


def render(
    results: Sequence[Results | Path | str],
    out: Path | str,
    *,
    title: str = "",
    limits: view.Thresholds | None = None,
) -> Path:
    """Write a report of one or more runs.

    Args:
        results: runs, or paths of results files (or of folders that hold a ``results.json``).
        out: HTML file to write; a folder gets a ``report.html``.
        title: headline of the page; default made from the concepts.
        limits: when verdicts are green or amber.

    Returns:
        Path of the page.

    Raises:
        DataError: no results; a file is missing, newer or malformed; a picture is missing or no PNG.
        CheckpointError: the page cannot be written.
    """
    runs = [_load(item) for item in results]
    if not runs:
        raise DataError("a report needs at least one results file")
    limits = limits or view.Thresholds()
    environment = Environment(
        loader=PackageLoader("unteach.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=view.percent,
        between=view.between,
        points=view.points,
        duration=text.duration,
        size=text.size,
        p=view.probability,
    )
    environment.globals.update(number=view.number)
    page = environment.get_template("report.html.j2").render(
        title=title or _title(runs),
        runs=[_run(index, run, limits) for index, run in enumerate(runs)],
        limits=limits,
        terms=[term for term in words.TERMS if any(m.name == term.name for r in runs for m in r.metrics)],
        explained=_explained(runs),
    )
    path = Path(out)
    if path.is_dir() or not path.suffix:
        path = path / "report.html"
    return state.write_bytes(path, page.encode())


def _load(item: Results | Path | str) -> Results:
    if isinstance(item, Results):
        return item
    path = Path(item)
    return Results.load(path / "results.json" if path.is_dir() else path)


def _title(runs: Sequence[Results]) -> str:
    given = [run.title for run in runs if run.title]
    if given:
        return "; ".join(dict.fromkeys(given))
    targets = list(dict.fromkeys(concept.target for run in runs for concept in run.concepts))
    return f"Taken out: {', '.join(targets)}" if targets else "Results"


def _explained(runs: Sequence[Results]) -> dict[str, str]:
    """Notes of the runs and one line for each method that has none."""
    found: dict[str, str] = {}
    for run in runs:
        found.update(run.notes)
        if run.method in words.METHODS and run.method not in found:
            found[run.method] = words.METHODS[run.method]
    return found


def _run(index: int, run: Results, limits: view.Thresholds) -> dict[str, Any]:
    judges = list(dict.fromkeys(m.judge for m in run.metrics if m.judge))
    general = [m for m in run.metrics if not m.concept]
    strips = [_strip(grid, run.root) for grid in run.grids]
    single = len(run.concepts) == 1
    return {
        "id": f"run{index}",
        "results": run,
        "judges": judges,
        "general": view.blocks([m for m in general if m.judge], judges),
        "unjudged": view.blocks([m for m in general if not m.judge], [""]),
        "strips": [] if single else [s for s in strips if not s.grid.concept],
        "config": json.dumps(run.config, indent=2, ensure_ascii=False, sort_keys=True),
        "concepts": [
            {
                "id": f"run{index}-concept{position}",
                "verdict": view.verdict(run, concept.target, limits),
                "blocks": view.blocks([m for m in run.metrics if m.concept == concept.target], judges),
                "strips": [s for s in strips if s.grid.concept == concept.target]
                + ([s for s in strips if not s.grid.concept] if single else []),
                "heats": [view.heat(t) for t in run.tables if t.concept == concept.target and t.kind == "kept"],
                "instead": [
                    (t, view.instead(t)) for t in run.tables if t.concept == concept.target and t.kind == "seen"
                ],
            }
            for position, concept in enumerate(run.concepts)
        ],
    }


def _strip(grid: Grid, root: Path | None) -> Strip:
    columns = []
    for c, label in enumerate(grid.columns):
        caption = grid.captions[c] if grid.captions else label
        pictures = tuple(
            _picture(root, grid, grid.images[r][c], f"{row}: {caption}") for r, row in enumerate(grid.rows)
        )
        columns.append((label, caption, pictures))
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
