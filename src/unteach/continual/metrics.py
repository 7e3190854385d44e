"""Metrics of continual learning, as pure functions of an accuracy matrix (continual-field §5).

``R[t][i]`` is the accuracy on task i after training task t: shares in [0, 1], T x T, None or NaN where nothing was
measured; nested lists, arrays and tensors are taken alike. The same name means different formulas in different
libraries, so every name here says which one it is; docs/metrics.md lists who computes what. A metric is None where
it is not defined: one task, or an entry it needs was not measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from unteach.errors import DataError


class _Listed(Protocol):
    def tolist(self) -> Any: ...


Row = Sequence[float | None] | _Listed
Matrix = Sequence[Row] | _Listed
Direction = Literal["higher", "lower"]

BINS = 15
"""Bins of the calibration error."""


def final_average_accuracy(matrix: Matrix) -> float | None:
    """ACC, FAA: (1/T) sum_i R[T][i] (GEM 2017)."""
    rows = _square(matrix)
    return _mean(rows[-1])


def average_incremental_accuracy_pooled(matrix: Matrix, sizes: Sequence[int]) -> float | None:
    """AIA of iCaRL (2017): (1/T) sum_t A_t, with A_t the accuracy over the pooled test sets of tasks 1..t.

    Args:
        matrix: T x T.
        sizes: number of test samples of each task.
    """
    rows = _square(matrix)
    sizes = _sizes(sizes, len(rows))
    pooled: list[float | None] = []
    for t, row in enumerate(rows):
        hits = _sum(None if a is None else a * n for a, n in zip(row[: t + 1], sizes, strict=False))
        pooled.append(None if hits is None else hits / sum(sizes[: t + 1]))
    return _mean(pooled)


def average_incremental_accuracy_tasks(matrix: Matrix) -> float | None:
    """AIA over tasks: (1/T) sum_t (1/t) sum_{i<=t} R[t][i]; the pooled one only if all test sets are equally large."""
    return _mean([_mean(row[: t + 1]) for t, row in enumerate(_square(matrix))])


def average_anytime_accuracy(points: Matrix, seen: Sequence[int]) -> float | None:
    """AAA (Caccia 2022): mean over evaluation points of the mean accuracy on the tasks seen by then.

    Evaluated at the ends of tasks alone it is :func:`average_incremental_accuracy_tasks`.

    Args:
        points: K x T accuracies at K evaluation points, those within a task included.
        seen: at each point, how many tasks had begun (1..T); these are the first entries of its row.
    """
    rows = _rows(points)
    if len(rows) != len(seen) or any(not 1 <= s <= len(row) for s, row in zip(seen, rows, strict=False)):
        raise DataError(
            "each evaluation point needs the number of tasks seen by then, between 1 and its number of accuracies",
            found=f"{len(rows)} points, seen {list(seen)}",
        )
    return _mean([_mean(row[:s]) for s, row in zip(seen, rows, strict=True)])


def backward_transfer(matrix: Matrix) -> float | None:
    """BWT (GEM 2017): (1/(T-1)) sum_{i<T} (R[T][i] - R[i][i]); the GEC paper calls it stability."""
    rows = _square(matrix)
    return _mean([_minus(rows[-1][i], rows[i][i]) for i in range(len(rows) - 1)])


def backward_transfer_triangular(matrix: Matrix) -> float | None:
    """BWT over all later rows (Diaz-Rodriguez 2018): (2/(T(T-1))) sum_{t>=2} sum_{i<t} (R[t][i] - R[i][i])."""
    rows = _square(matrix)
    return _mean([_minus(rows[t][i], rows[i][i]) for t in range(len(rows)) for i in range(t)])


def positive_backward_transfer(matrix: Matrix) -> float | None:
    """max(BWT, 0) of the triangular BWT (Diaz-Rodriguez 2018)."""
    value = backward_transfer_triangular(matrix)
    return None if value is None else max(value, 0.0)


def remembering(matrix: Matrix) -> float | None:
    """1 - abs(min(BWT, 0)) of the triangular BWT (Diaz-Rodriguez 2018)."""
    value = backward_transfer_triangular(matrix)
    return None if value is None else 1 - abs(min(value, 0.0))


def forward_transfer(matrix: Matrix, untrained: Row) -> float | None:
    """FWT (GEM 2017): (1/(T-1)) sum_{i>=2} (R[i-1][i] - b[i]).

    Of use only where classes that were not seen yet may be answered: Task-IL, Domain-IL, or the whole head.

    Args:
        matrix: T x T, with the entries above the diagonal.
        untrained: b, accuracy of the untrained network on each task (T); b[1] is not used.
    """
    rows = _square(matrix)
    start = _vector(untrained, len(rows), "accuracies of the untrained network")
    return _mean([_minus(rows[i - 1][i], start[i]) for i in range(1, len(rows))])


def forgetting(matrix: Matrix) -> float | None:
    """Forgetting (Chaudhry 2018): (1/(T-1)) sum_{i<T} (max_{i<=t<T} R[t][i] - R[T][i]).

    The last row is not in the maximum, so a task that got better in the end makes it negative.
    """
    return _forgetting(matrix, last=False)


def forgetting_incl_last(matrix: Matrix) -> float | None:
    """Forgetting with the last row in the maximum (Mammoth, PyCIL): never negative, never below :func:`forgetting`."""
    return _forgetting(matrix, last=True)


def intransigence(matrix: Matrix, joint: Row) -> float | None:
    """Intransigence (Chaudhry 2018), its mean over tasks: (1/T) sum_t (R*[t] - R[t][t]).

    Args:
        matrix: T x T.
        joint: R*[t], accuracy on task t of a network trained jointly on tasks 1..t (T).
    """
    rows = _square(matrix)
    reference = _vector(joint, len(rows), "accuracies of the joint reference")
    return _mean([_minus(reference[t], rows[t][t]) for t in range(len(rows))])


def learning_accuracy(matrix: Matrix) -> float | None:
    """LA, plasticity (Riemer 2019): (1/T) sum_i R[i][i]. ACC = LA + ((T-1)/T) BWT."""
    rows = _square(matrix)
    return _mean([rows[i][i] for i in range(len(rows))])


def calibration_error(confidence: Row, correct: Row, bins: int = BINS) -> float:
    """Expected calibration error (Guo 2017): sum_b (n_b/N) |accuracy_b - mean confidence_b|.

    Bins are of equal width: bin b = 0..B-1 holds confidences in (b/B, (b+1)/B], and 0 falls into the first.

    Args:
        confidence: (N,) probability of the answer, in [0, 1].
        correct: (N,) whether the answer was right.
        bins: B.

    Raises:
        DataError: no sample, unequal lengths, a confidence outside [0, 1].
    """
    conf = torch.as_tensor(confidence, dtype=torch.float64).detach().cpu().flatten()
    hit = torch.as_tensor(correct, dtype=torch.float64).detach().cpu().flatten()
    if conf.numel() == 0 or conf.shape != hit.shape or bins < 1:
        raise DataError(
            "a calibration error needs at least one sample, an answer for each confidence, and at least one bin",
            found=f"{conf.numel()} confidences, {hit.numel()} answers, {bins} bins",
        )
    if not bool(((conf >= 0) & (conf <= 1 + 1e-9)).all()):
        raise DataError("confidences are probabilities in [0, 1]", found=f"{float(conf.min())} to {float(conf.max())}")
    place = ((conf * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, hit - conf)
    return float(gap.abs().sum() / conf.numel())


class Metric(NamedTuple):
    """A metric and what to know of it; ``needs`` names what it takes beside, or in place of, the matrix."""

    function: Callable[..., float | None]
    direction: Direction
    formula: str
    source: str
    needs: Literal["", "sizes", "untrained", "joint", "points", "samples"] = ""


METRICS: dict[str, Metric] = {
    "final_average_accuracy": Metric(final_average_accuracy, "higher", "(1/T) Σ_i R[T][i]", "GEM 2017"),
    "average_incremental_accuracy_pooled": Metric(
        average_incremental_accuracy_pooled,
        "higher",
        "(1/T) Σ_t (Σ_{i≤t} n_i R[t][i] / Σ_{i≤t} n_i)",
        "iCaRL 2017",
        "sizes",
    ),
    "average_incremental_accuracy_tasks": Metric(
        average_incremental_accuracy_tasks, "higher", "(1/T) Σ_t (1/t) Σ_{i≤t} R[t][i]", "common practice"
    ),
    "average_anytime_accuracy": Metric(
        average_anytime_accuracy, "higher", "(1/K) Σ_k (1/s_k) Σ_{i≤s_k} R[k][i]", "Caccia 2022", "points"
    ),
    "backward_transfer": Metric(backward_transfer, "higher", "(1/(T−1)) Σ_{i<T} (R[T][i] − R[i][i])", "GEM 2017"),
    "backward_transfer_triangular": Metric(
        backward_transfer_triangular,
        "higher",
        "(2/(T(T−1))) Σ_{t≥2} Σ_{i<t} (R[t][i] − R[i][i])",
        "Diaz-Rodriguez 2018",
    ),
    "positive_backward_transfer": Metric(
        positive_backward_transfer, "higher", "max(triangular BWT, 0)", "Diaz-Rodriguez 2018"
    ),
    "remembering": Metric(remembering, "higher", "1 − |min(triangular BWT, 0)|", "Diaz-Rodriguez 2018"),
    "forward_transfer": Metric(
        forward_transfer, "higher", "(1/(T−1)) Σ_{i≥2} (R[i−1][i] − b[i])", "GEM 2017", "untrained"
    ),
    "forgetting": Metric(forgetting, "lower", "(1/(T−1)) Σ_{i<T} (max_{i≤t<T} R[t][i] − R[T][i])", "Chaudhry 2018"),
    "forgetting_incl_last": Metric(
        forgetting_incl_last,
        "lower",
        "(1/(T−1)) Σ_{i<T} (max_{i≤t≤T} R[t][i] − R[T][i])",
        "as Mammoth and PyCIL compute it",
    ),
    "intransigence": Metric(intransigence, "lower", "(1/T) Σ_t (R*[t] − R[t][t])", "Chaudhry 2018", "joint"),
    "learning_accuracy": Metric(learning_accuracy, "higher", "(1/T) Σ_i R[i][i]", "Riemer 2019"),
    "calibration_error": Metric(
        calibration_error,
        "lower",
        "Σ_b (n_b/N) |accuracy_b − confidence_b|, 15 equal-width bins",
        "Guo 2017",
        "samples",
    ),
}
"""Every metric by name: function, which direction is better, formula, source, and what it needs beside R."""


def summary(
    matrices: Mapping[str, Matrix],
    untrained: Mapping[str, Row] | None = None,
    sizes: Sequence[int] | None = None,
    *,
    joint: Mapping[str, Row] | None = None,
    ece: Row | None = None,
    nll: Row | None = None,
) -> dict[str, float | None]:
    """Every metric of every matrix, as ``"class_il/final_average_accuracy"``; None where one is not defined.

    Args:
        matrices: kind ("class_il", "task_il", ...) to R.
        untrained: kind to b; without it there is no forward transfer of that kind.
        sizes: test samples of each task; without them there is no pooled incremental accuracy.
        joint: kind to R*; without it there is no intransigence of that kind.
        ece: calibration error after each task; the last one becomes ``"final_calibration_error"``.
        nll: negative log-likelihood after each task, nats; the last one becomes ``"final_nll"``.
    """
    found: dict[str, float | None] = {}
    for kind, matrix in matrices.items():
        beside = {"sizes": sizes, "untrained": (untrained or {}).get(kind), "joint": (joint or {}).get(kind)}
        for name, metric in METRICS.items():
            if metric.needs in ("points", "samples"):
                continue
            if not metric.needs:
                found[f"{kind}/{name}"] = metric.function(matrix)
            else:
                more = beside[metric.needs]
                found[f"{kind}/{name}"] = None if more is None else metric.function(matrix, more)
    for name, series in (("final_calibration_error", ece), ("final_nll", nll)):
        if series is not None:
            values = [_finite(x) for x in _listed(series)]
            found[name] = values[-1] if values else None
    return found


def _forgetting(matrix: Matrix, *, last: bool) -> float | None:
    rows = _square(matrix)
    final, end = len(rows) - 1, len(rows) if last else len(rows) - 1
    return _mean([_minus(_max([rows[t][i] for t in range(i, end)]), rows[final][i]) for i in range(final)])


def _square(matrix: Matrix) -> list[list[float | None]]:
    rows = _rows(matrix)
    if not rows or any(len(row) != len(rows) for row in rows):
        raise DataError(
            "an accuracy matrix has one row and one column a task",
            found=f"rows of {[len(row) for row in rows]}",
            fix="fill what was not measured with None",
        )
    return rows


def _rows(matrix: Matrix) -> list[list[float | None]]:
    return [[_share(value) for value in _listed(row)] for row in _listed(matrix)]


def _vector(values: Row, tasks: int, what: str) -> list[float | None]:
    listed = [_share(value) for value in _listed(values)]
    if len(listed) != tasks:
        raise DataError(f"the {what} must be one for each of {tasks} tasks", found=f"{len(listed)}")
    return listed


def _listed(values: Any) -> list[Any]:
    if isinstance(values, Tensor):
        values = values.detach()
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _share(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    if not -1e-6 <= value <= 1 + 1e-6:
        raise DataError("accuracies are shares in [0, 1]", found=value, fix="divide per cents by 100")
    return float(value)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _sizes(sizes: Sequence[int], tasks: int) -> list[int]:
    listed = [int(n) for n in sizes]
    if len(listed) != tasks or any(n < 1 for n in listed):
        raise DataError(f"test sizes must be positive, one for each of {tasks} tasks", found=listed)
    return listed


def _sum(values: Any) -> float | None:
    listed = list(values)
    return None if any(value is None for value in listed) else math.fsum(listed)


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None or not values else total / len(values)


def _max(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if values and len(known) == len(values) else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
