"""What an evaluation measured (``results.json``).

Pictures are PNG files beside the JSON file, named by relative paths, so a folder of results can be moved.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from unteach.core.convert import Checked
from unteach.core.finding import Finding
from unteach.errors import DataError
from unteach.records.base import Record
from unteach.records.environment import Environment

Status = Literal["complete", "partial", "failed"]
Better = Literal["higher", "lower"]
When = Literal["before", "after", "change"]
Unit = Literal["share", "intensity", "dB", "number"]
Cells = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Metric(Checked):
    """One number with its 95 % interval and sample size.

    Attributes:
        name: "UA", "IRA", "CRA", ... (see ``evaluate.metrics.presence`` for the definitions).
        value: in ``unit``.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of images (or pairs) behind it.
        judge: name of the judge; "" when no judge was needed.
        prompts: name of the prompt set: "unlearning set", "held-out templates", "other names", ...
        concept: target of the concept; "" when the metric is of the whole run.
        better: which direction is better for the one who erases.
        when: which model: "before", "after", or the paired "change" (after - before).
        unit: "share" is shown in per cent.
        p: p-value of a paired test, for a change.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    judge: str = ""
    prompts: str = ""
    concept: str = ""
    better: Better = "higher"
    when: When = "after"
    unit: Unit = "share"
    p: float | None = None

    def __post_init__(self) -> None:
        numbers = [self.value, self.low, self.high, *([] if self.p is None else [self.p])]
        if not all(math.isfinite(x) for x in numbers) or self.low > self.high or self.n < 1:
            raise DataError(
                f"metric '{self.name}' needs finite numbers, low <= high and n >= 1",
                found=f"value {self.value}, interval {self.low} to {self.high}, p {self.p}, n {self.n}",
            )


@dataclass(frozen=True, kw_only=True)
class Table(Checked):
    """A matrix of shares before and after.

    Attributes:
        kind: "kept" = share of images of (row, column) that are as asked; "seen" = of the prompts that ask
            for the row, the share on which the judge saw the column.
        row_axis: what rows are, for a reader ("style").
        column_axis: what columns are ("object").
        rows: row labels.
        columns: column labels.
        before: rows x columns, None where nothing was measured.
        after: rows x columns, None where nothing was measured.
        n: rows x columns, images behind each cell.
        judge: name of the judge.
        prompts: name of the prompt set, or "all prompts".
        concept: target of the concept.
        erased_rows: labels of rows that were to be erased.
        erased_columns: labels of columns that were to be erased.
    """

    kind: Literal["kept", "seen"]
    row_axis: str
    column_axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    before: Cells
    after: Cells
    n: tuple[tuple[int, ...], ...]
    judge: str = ""
    prompts: str = ""
    concept: str = ""
    erased_rows: tuple[str, ...] = ()
    erased_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, cells in (("before", self.before), ("after", self.after), ("n", self.n)):
            what = f"table '{self.kind}' of '{self.concept}': {name}"
            _shape(what, cells, len(self.rows), len(self.columns))


@dataclass(frozen=True, kw_only=True)
class Grid(Checked):
    """Pictures in rows and columns, as PNG files.

    Attributes:
        name: title for a reader.
        role: "target" = pictures that asked for the concept; "retained" = the rest.
        rows: row labels, e.g. ("before", "after").
        columns: short column labels.
        images: rows x columns of paths relative to the results file (forward slashes), "" = no picture.
        captions: the full prompt of each column, or empty.
        seeds: the noise seed of each column, or empty.
        prompts: name of the prompt set.
        concept: target of the concept; "" for pictures of the rest.
    """

    name: str
    role: Literal["target", "retained"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    captions: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    prompts: str = ""
    concept: str = ""

    def __post_init__(self) -> None:
        _shape(f"grid '{self.name}': images", self.images, len(self.rows), len(self.columns))
        for name, values in (("captions", self.captions), ("seeds", self.seeds)):
            if values and len(values) != len(self.columns):
                raise DataError(f"grid '{self.name}' has {len(self.columns)} columns", found=f"{len(values)} {name}")
        for path in (path for row in self.images for path in row if path):
            parts = PurePosixPath(path)
            if parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path:
                raise DataError(f"grid '{self.name}' names a picture outside the folder of its results", found=path)


@dataclass(frozen=True, kw_only=True)
class ConceptRecord:
    """A concept that was taken out: what, towards what, and of which kind."""

    target: str
    anchor: str
    kind: str = "object"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took. None = not known.

    Attributes:
        seconds: wall time of this evaluation.
        images: pictures judged.
        method_seconds: wall time of making the delta.
        method_steps: optimizer steps of making the delta.
        parameters_moved: numbers in the delta.
        parameters_total: numbers in the denoiser.
        delta_bytes: size of the delta's tensors.
        peak_rss_bytes: peak resident memory of the evaluating process.
    """

    seconds: float = 0.0
    images: int = 0
    method_seconds: float | None = None
    method_steps: int | None = None
    parameters_moved: int | None = None
    parameters_total: int | None = None
    delta_bytes: int | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Results(Record):
    """One run: what was done, where, at which cost, and what came out.

    Attributes:
        kind: "evaluation", "attack", "guard" or "continual".
        status: "complete", "partial" (stopped, resumable) or "failed".
        title: headline for a reader; "" = made from the concepts.
        command: the exact command that makes this result.
        method: name of the method ("doco"), "" when unknown.
        protocol: name of the evaluation protocol ("demo", "grid").
        config: everything that decides the numbers.
        concepts: what was taken out, in order.
        seeds: evaluation seeds.
        notes: name to one-line explanation, shown as given (methods, judges, caveats).
        environment: see :class:`Environment`.
        cost: see :class:`Cost`.
        metrics: see :class:`Metric`.
        tables: see :class:`Table`.
        grids: see :class:`Grid`.
        check: what the check at the end of the erasure found, without a judge; None where none was made.
        root: folder that grid paths are relative to; set by ``save`` and ``load``, never written.
    """

    FORMAT, FILE, ERROR, UNWRITTEN = "unteach-results", "results.json", DataError, ("root",)

    kind: str = "evaluation"
    status: Status = "complete"
    title: str = ""
    command: str = ""
    method: str = ""
    protocol: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    concepts: tuple[ConceptRecord, ...] = ()
    seeds: tuple[int, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    cost: Cost = field(default_factory=Cost)
    metrics: tuple[Metric, ...] = ()
    tables: tuple[Table, ...] = ()
    grids: tuple[Grid, ...] = ()
    check: Finding | None = None
    root: Path | None = field(default=None, compare=False, repr=False)

    def find(self, name: str, **where: str) -> list[Metric]:
        """Metrics of one name, narrowed by fields: ``results.find("UA", when="after", judge="cnn")``."""
        return [
            metric
            for metric in self.metrics
            if metric.name == name and all(getattr(metric, key) == value for key, value in where.items())
        ]

    @classmethod
    def from_json(cls, data: object, *, where: str = "the results") -> Self:
        """From plain data, also of release 0.1; errors as in :meth:`Record.from_json`."""
        return super().from_json(cls.headed(data), where=where)

    def save(self, path: Path | str) -> Path:
        """Write atomically; grid paths are from now on relative to this file's folder. Returns the path."""
        path = super().save(path)
        object.__setattr__(self, "root", path.parent)
        return path

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what :meth:`save` wrote."""
        results, path = super().load(path), Path(path)
        object.__setattr__(results, "root", path if path.is_dir() else path.parent)
        return results


def _shape(what: str, cells: Iterable[Iterable[object]], rows: int, columns: int) -> None:
    sizes = [len(list(row)) for row in cells]
    if len(sizes) != rows or any(size != columns for size in sizes):
        raise DataError(f"{what} must have {rows} rows of {columns} columns", found=f"rows of {sizes}")
