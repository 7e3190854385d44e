"""What a run measured, as typed and versioned records that go to JSON and back.

``Results.save`` writes one JSON file atomically; ``Results.load`` refuses unknown keys, wrong types and files
of a newer version, naming every mistake at once. Pictures are PNG files beside the JSON file, named by
relative paths, so a folder of results can be moved. The report reads nothing but these records.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.dispatch import StructureHook
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from unteach.core import state
from unteach.core.finding import Finding
from unteach.errors import CheckpointError, DataError

SCHEMA = 1
"""Version of the file format; raised when a field changes meaning or goes away."""

Status = Literal["complete", "partial", "failed"]
Better = Literal["higher", "lower"]
When = Literal["before", "after", "change"]
Unit = Literal["share", "intensity", "dB", "number"]
Cells = tuple[tuple[float | None, ...], ...]
C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Metric:
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
        when: of the model "before", "after", or the paired "change" (after - before).
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
class Table:
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
class Grid:
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
class Environment:
    """Versions, platform and source revision ("" and None when unknown)."""

    python: str = ""
    torch: str = ""
    diffusers: str = ""
    unteach: str = ""
    platform: str = ""
    cores: int = 1
    threads: int = 1
    revision: str = ""
    dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took. None = not known.

    Attributes:
        seconds: wall time of this evaluation.
        images: pictures judged.
        method_seconds: wall time of making the delta.
        method_steps: optimiser steps of making the delta.
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


@dataclass(kw_only=True)
class Results:
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
        schema: version of the format.
        root: folder that grid paths are relative to; set by ``save`` and ``load``, never written.
    """

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
    schema: int = SCHEMA
    root: Path | None = field(default=None, compare=False, repr=False)

    def find(self, name: str, **where: str) -> list[Metric]:
        """Metrics of one name, narrowed by fields: ``results.find("UA", when="after", judge="cnn")``."""
        return [
            metric
            for metric in self.metrics
            if metric.name == name and all(getattr(metric, key) == value for key, value in where.items())
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        data: dict[str, Any] = _converter.unstructure(self)
        return data

    @classmethod
    def from_json(cls, data: object, *, where: str = "results", root: Path | None = None) -> "Results":
        """From plain JSON data.

        Raises:
            DataError: newer version, unknown keys, wrong types or shapes (all mistakes are listed).
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise DataError(f"{where}: not a results file of Unteach", fix="check the path")
        schema = data["schema"]
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise DataError(f"{where}: the schema version must be a positive integer", found=schema)
        if schema > SCHEMA:
            raise DataError(
                f"{where}: written by a newer version of Unteach",
                found=f"schema {schema}; this version reads up to {SCHEMA}",
                fix="upgrade: pip install --upgrade unteach",
            )
        try:
            results = _converter.structure(data, cls)
        except Exception as error:  # cattrs raises exception groups of many kinds
            mistakes = cattrs.transform_error(error, path="results", format_exception=_explain)
            raise DataError(f"{where}: {len(mistakes)} mistake(s): " + "; ".join(mistakes)) from error
        results.root = root
        return results

    def save(self, path: Path | str) -> Path:
        """Write atomically; grid paths are from now on relative to this file's folder. Returns the path.

        Raises:
            CheckpointError: the file cannot be written.
        """
        self.root = Path(path).parent
        return state.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "Results":
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, not JSON, newer, or malformed.
        """
        try:
            data = state.read_json(path)
        except CheckpointError as error:
            raise DataError(error.problem, found=error.found, fix=error.fix or "check the path") from error
        return cls.from_json(data, where=str(path), root=Path(path).parent)


def _shape(what: str, cells: Iterable[Iterable[object]], rows: int, columns: int) -> None:
    sizes = [len(list(row)) for row in cells]
    if len(sizes) != rows or any(size != columns for size in sizes):
        raise DataError(f"{what} must have {rows} rows of {columns} columns", found=f"rows of {sizes}")


def _explain(error: BaseException, kind: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return "unknown key(s) " + ", ".join(sorted(f"'{key}'" for key in error.extra_fields))
    if isinstance(error, KeyError):
        return f"missing key {error}"
    return str(error)


def _strict(kind: type[C], *accepts: type) -> Any:
    def structure(value: object, _: type[C]) -> Any:
        if not isinstance(value, accepts) or (isinstance(value, bool) and bool not in accepts):
            raise DataError(f"must be {kind.__name__}", found=f"{value!r} ({type(value).__name__})")
        return kind(value)  # type: ignore[call-arg]

    return structure


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _tuples(kind: Any, converter: cattrs.BaseConverter) -> StructureHook:
    structure = homogenous_tuple_structure_factory(kind, converter)

    def listed(value: object, _: Any) -> Any:  # a string is iterable too, and must not pass for a list
        if not isinstance(value, list | tuple):
            raise DataError("must be a list", found=f"{value!r} ({type(value).__name__})")
        return structure(value, kind)

    return listed


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, accepts in ((str, (str,)), (bool, (bool,)), (int, (int,)), (float, (float, int))):
        converter.register_structure_hook(kind, _strict(kind, *accepts))
    converter.register_structure_hook_factory(_is_tuple, _tuples)
    omitted = override(omit=True)
    converter.register_structure_hook(
        Results,
        make_dict_structure_fn(Results, converter, _cattrs_forbid_extra_keys=True, root=omitted),
    )
    converter.register_unstructure_hook(Results, make_dict_unstructure_fn(Results, converter, root=omitted))
    return converter


_converter = _make_converter()
