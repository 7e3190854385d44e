"""The one page: records sorted into parts by what they are, in one HTML file without scripts or requests."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unteach.core import state, text
from unteach.errors import DataError
from unteach.records.learning import lower_is_better
from unteach.report import erased, erasure, format, guard, learning, terms
from unteach.report.section import Kind, Section, Thresholds

KINDS: tuple[Kind, ...] = (*erasure.KINDS, *erased.KINDS, *guard.KINDS, *learning.KINDS)
"""In the order of pages."""
NAME = "report.html"


def page(items: Iterable[Any], out: Path | str, *, title: str = "", limits: Thresholds | None = None) -> Path:
    """Write a page of records of any kinds.

    Args:
        items: records, or paths of their files or of folders that hold some, see :func:`find`.
        out: HTML file to write; a folder gets a ``report.html``.
        title: headline of the page; made from the records when not given.
        limits: when verdicts of erasures are green or amber.

    Returns:
        Path of the page.

    Raises:
        DataError: no records; a file is missing, newer or malformed; a picture is missing or no PNG.
        CheckpointError: a mask or an attack cannot be read or does not belong to the other; the page cannot be written.
    """
    records = [record for item in items for record in (find(item) if isinstance(item, str | Path) else [item])]
    if not records:
        raise DataError("a report needs at least one results file", fix=f"it is made from {readable()}")
    makers: dict[Callable[..., Section], list[Any]] = {kind.section: [] for kind in KINDS}
    for record in records:
        makers[next(kind.section for kind in KINDS if isinstance(record, kind.record))].append(record)
    sections = [make(found, limits or Thresholds()) for make, found in makers.items() if found]
    shown = _environment().get_template("page.html.j2")
    html = shown.render(
        title=title or "; ".join(section.title for section in sections),
        sections=sections,
        styles=dict.fromkeys(style for section in sections for style in section.STYLES),
        pictures=any(section.PICTURES for section in sections),
    )
    path = Path(out)
    return state.write_bytes(path / NAME if path.is_dir() or not path.suffix else path, html.encode())


def find(path: Path | str) -> list[Any]:
    """The records in a file, or in a folder and the folders in it.

    Raises:
        DataError: there is nothing that a page can show; or a file cannot be used.
        CheckpointError: the file of a delta, a mask or an attack cannot be used.
    """
    path, nothing = Path(path), f"{path} holds nothing that a page can show"
    if path.is_dir():
        if records := list(_inside(path)):
            return records
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        raise DataError(nothing, found=there or "no file", fix=f"name {readable()}")
    named = [kind for kind in KINDS if kind.file == path.name]
    kinds = named or [kind for kind in KINDS if Path(kind.file).suffix == path.suffix]
    if not kinds and path.exists():
        raise DataError(nothing, fix=f"name {readable()}")
    return [(kinds or KINDS)[0].record.load(path)]


def readable() -> str:
    """What a page can be made from."""
    return "; ".join(f"{kind.what} ({kind.file})" for kind in KINDS)


def _inside(folder: Path) -> Iterator[Any]:
    for kind in KINDS:
        if (folder / kind.file).is_file() and not (kind.within and (folder / kind.within).is_file()):
            yield kind.record.load(folder / kind.file)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _inside(entry)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unteach.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=format.percent,
        between=format.between,
        p=format.probability,
        loss=format.loss,
        mean=format.mean,
        signed=format.signed,
        json=format.plain,
        duration=text.duration,
        size=text.size,
        upper_first=lambda word: word[:1].upper() + word[1:],
    )
    environment.tests.update(less_is_better=lower_is_better)
    environment.globals.update(number=format.number, value=format.value, interval=format.interval, term=terms.term)
    return environment
