"""Runs of continual learning as typed, versioned records, and what several seeds of several arms say together.

A :class:`LearningRun` is one method with one plug-in and one seed. Its metrics were computed when it was written,
so that nothing but this file is needed to read it. An *arm* is a (method, plug-in) pair; :class:`LearningResults`
gives means with 95 % t-intervals over seeds, and differences of two arms over the seeds that both have.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

from unteach.errors import DataError
from unteach.records.base import Record
from unteach.records.stats import Mean, Paired, holm, paired_t, t_mean

__all__ = [
    "ALONE",
    "Arm",
    "Group",
    "Key",
    "LearningResults",
    "LearningRun",
    "Mean",
    "Paired",
    "Seconds",
    "holm",
    "lower_is_better",
]

ALONE = "none"
"""The plug-in of a method by itself: the host arm."""
KINDS = ("class_il", "class_il_all_heads", "task_il")
LOWER = frozenset(
    {"forgetting", "forgetting_incl_last", "intransigence", "calibration_error", "final_calibration_error"}
)
COSTS = ("passes", "seconds", "peak_memory")
"""Costs that can be asked for like metrics; less is better."""

EARLIER = {
    "lr": "learning_rate",
    "memory_batch": "memory_batch_size",
    "eval_batch": "eval_batch_size",
    "buffer": "buffer_size",
}
"""Names of settings in runs of 0.1 to the present ones."""

Cells = tuple[tuple[float | None, ...], ...]
Values = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Key:
    """Which run it is.

    Attributes:
        stream: name of the stream.
        scenario: "class", "task", "domain", "online" or "general".
        method: label of the method; two settings of one method need two labels.
        plugin: label of the plug-in; "none" for the method alone ("" and "host" are read as that).
        seed: root of all random draws; runs of equal seeds are paired.
        network: name of the network.
        training: settings of training.
        method_settings: settings of the method.
        plugin_settings: settings of the plug-in.
    """

    stream: str
    scenario: str
    method: str
    seed: int
    network: str
    plugin: str = ALONE
    training: dict[str, Any] = field(default_factory=dict)
    method_settings: dict[str, Any] = field(default_factory=dict)
    plugin_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plugin in ("", "host"):
            object.__setattr__(self, "plugin", ALONE)
        for name in ("training", "method_settings"):
            object.__setattr__(self, name, _present(getattr(self, name)))

    @property
    def arm(self) -> "Arm":
        """Method and plug-in."""
        return Arm(self.method, self.plugin)

    @property
    def group(self) -> "Group":
        """What runs must share to be compared."""
        return Group(self.stream, self.scenario, self.network)


def _present(settings: Any) -> Any:
    """Settings, those of the parts of a combination too, under their present names."""
    if isinstance(settings, dict):
        return {EARLIER.get(key, key): _present(value) for key, value in settings.items()}
    return [_present(value) for value in settings] if isinstance(settings, list) else settings


class Arm(NamedTuple):
    """A method with a plug-in."""

    method: str
    plugin: str = ALONE

    def __str__(self) -> str:
        return self.method if self.plugin == ALONE else f"{self.method} + {self.plugin}"


class Group(NamedTuple):
    """What runs must share to be compared."""

    stream: str
    scenario: str
    network: str

    def __str__(self) -> str:
        return f"{self.stream} ({self.scenario}-incremental, {self.network})"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time of each task; None where a task was not trained by itself."""

    train: Values = ()
    evaluate: Values = ()


@dataclass(frozen=True, kw_only=True)
class LearningRun(Record):
    """One run through a stream of T tasks.

    Numbers that are not finite (NaN of a diverged run) become None.

    Attributes:
        key: see :class:`Key`.
        matrices: kind ("class_il", "task_il", "class_il_all_heads") to T x T: accuracy on the column's task after
            training the row's, None where not measured.
        task_names: T names.
        test_sizes: T numbers of test samples.
        metrics: name to value, filled with ``continual.metrics.summary``; None = not defined.
        untrained: kind to T accuracies of the untrained network.
        ece: calibration error after each task (T).
        nll: negative log-likelihood after each task, nats (T).
        seconds: see :class:`Seconds`.
        passes: forward-backward passes of training, counted in batches.
        peak_memory: bytes; None = not known.
        diagnostics: one record a task, of what the plug-in saw.
        warnings: in words.
        environment: versions and platform.
        command: the exact command that makes this run.
    """

    FORMAT, FILE, ERROR = "unteach-learning-run", "run.json", DataError

    key: Key
    matrices: dict[str, Cells]
    task_names: tuple[str, ...]
    test_sizes: tuple[int, ...]
    metrics: dict[str, float | None]
    untrained: dict[str, Values] = field(default_factory=dict)
    ece: Values = ()
    nll: Values = ()
    seconds: Seconds = field(default_factory=Seconds)
    passes: int = 0
    peak_memory: int | None = None
    diagnostics: tuple[dict[str, float | None], ...] = ()
    warnings: tuple[str, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        tasks, where = len(self.task_names), f"run '{self.key.arm}', seed {self.key.seed}"
        shapes = {
            "test_sizes": len(self.test_sizes),
            **{f"untrained {kind}": len(values) for kind, values in self.untrained.items()},
            **{name: len(v) for name, v in (("ece", self.ece), ("nll", self.nll)) if v},
            **{f"matrix {kind}, rows": len(cells) for kind, cells in self.matrices.items()},
            **{f"matrix {kind}, row {r + 1}": len(row) for kind, m in self.matrices.items() for r, row in enumerate(m)},
        }
        wrong = [f"{name}: {length}" for name, length in shapes.items() if length != tasks]
        if not tasks or wrong:
            raise DataError(f"{where}: every part must have one entry a task, {tasks}", found="; ".join(wrong) or None)
        set_to = object.__setattr__
        set_to(self, "matrices", {kind: tuple(map(_finite, cells)) for kind, cells in self.matrices.items()})
        set_to(self, "untrained", {kind: _finite(values) for kind, values in self.untrained.items()})
        cells = [a for m in self.matrices.values() for row in m for a in row]
        shares = [a for a in (*cells, *(a for b in self.untrained.values() for a in b)) if a is not None]
        if any(not -1e-6 <= a <= 1 + 1e-6 for a in shares):
            raise DataError(f"{where}: accuracies are shares in [0, 1]", found=f"{min(shares)} to {max(shares)}")
        for name in ("ece", "nll"):
            set_to(self, name, _finite(getattr(self, name)))
        set_to(self, "metrics", dict(zip(self.metrics, _finite(self.metrics.values()), strict=True)))
        set_to(self, "diagnostics", tuple(dict(zip(d, _finite(d.values()), strict=True)) for d in self.diagnostics))

    def value(self, metric: str) -> float | None:
        """A metric, or a cost: "passes", "seconds" (of training, all tasks), "peak_memory" (bytes).

        Raises:
            DataError: this run knows no such metric.
        """
        if metric == "passes":
            return float(self.passes)
        if metric == "peak_memory":
            return None if self.peak_memory is None else float(self.peak_memory)
        if metric == "seconds":
            known = [s for s in self.seconds.train if s is not None]
            return math.fsum(known) if known else None
        if metric not in self.metrics:
            raise DataError(
                f"run '{self.key.arm}', seed {self.key.seed}, has no metric '{metric}'",
                found=", ".join(sorted(self.metrics)) or "none",
            )
        return self.metrics[metric]

    def curve(self, kind: str) -> Values:
        """Mean accuracy on the tasks seen so far, after each task (T)."""
        rows = [row[: t + 1] for t, row in enumerate(self.matrices.get(kind, ()))]
        return tuple(None if any(a is None for a in row) else fmean(a for a in row if a is not None) for row in rows)

    @classmethod
    def from_json(cls, data: object, *, where: str = "the run") -> Self:
        """From plain data, also of release 0.1; errors as in :meth:`Record.from_json`."""
        return super().from_json(cls.headed(data, "matrices"), where=where)


class LearningResults:
    """A set of runs.

    Raises:
        DataError: no runs, two of one arm and seed, two settings under the label of one arm, or tasks that differ.
    """

    def __init__(self, runs: Iterable[LearningRun]) -> None:
        self.runs = tuple(runs)
        if not self.runs:
            raise DataError("there are no runs", fix="give at least one run")
        known: dict[tuple[Group, Arm], LearningRun] = {}
        for (group, arm, seed), count in Counter((r.key.group, r.key.arm, r.key.seed) for r in self.runs).items():
            if count > 1:
                raise DataError(
                    f"there are {count} runs of '{arm}' with seed {seed} on {group}", fix="keep one of them"
                )
        tasks = {group: next(r.task_names for r in self.runs if r.key.group == group) for group in self.groups}
        for run in self.runs:
            if run.task_names != tasks[run.key.group]:
                raise DataError(
                    f"runs on {run.key.group} have different tasks",
                    found=f"{tasks[run.key.group]} and {run.task_names}",
                    fix="give different streams different names",
                )
            first = known.setdefault((run.key.group, run.key.arm), run)
            for name in ("training", "method_settings", "plugin_settings"):
                if getattr(first.key, name) != getattr(run.key, name):
                    raise DataError(
                        f"runs of '{run.key.arm}' differ in their {name.replace('_', ' ')}",
                        found=f"seed {first.key.seed}: {getattr(first.key, name)}, seed {run.key.seed}: "
                        f"{getattr(run.key, name)}",
                        fix="give arms with different settings different labels",
                    )

    @classmethod
    def load(cls, folder: Path | str) -> "LearningResults":
        """Every ``run.json`` in a folder and the folders in it; a file is taken as one run.

        Raises:
            DataError: nothing there, or a file is malformed.
        """
        folder = Path(folder)
        paths = [folder] if folder.is_file() else sorted(folder.rglob(LearningRun.FILE))
        if not paths:
            raise DataError(
                f"there is no {LearningRun.FILE} in {folder} or below", fix="check the path, or make runs first"
            )
        return cls(LearningRun.load(path) for path in paths)

    @property
    def groups(self) -> list[Group]:
        """The (stream, scenario, network) that occur; numbers are compared within one only."""
        return list(dict.fromkeys(run.key.group for run in self.runs))

    def of(self, group: Group) -> "LearningResults":
        """The runs of one group."""
        return LearningResults(run for run in self.runs if run.key.group == group)

    def arms(self) -> list[Arm]:
        """Arms, methods in the order of their first run, each alone first and then with its plug-ins."""
        methods = list(dict.fromkeys(run.key.method for run in self.runs))
        found = dict.fromkeys(run.key.arm for run in self.runs)
        return sorted(found, key=lambda arm: (methods.index(arm.method), arm.plugin != ALONE))

    def by_seed(self, arm: tuple[str, str]) -> dict[int, LearningRun]:
        """Runs of an arm by seed.

        Raises:
            DataError: there is no such arm, or the runs are of several groups.
        """
        found = self._by_arm.get(Arm(*arm))
        if found is None:
            raise DataError(f"there is no arm '{Arm(*arm)}'", found=", ".join(map(str, self.arms())))
        return found

    @cached_property
    def _by_arm(self) -> dict[Arm, dict[int, LearningRun]]:
        if len(self.groups) > 1:
            raise DataError(
                "runs of different streams or networks cannot be compared",
                found="; ".join(map(str, self.groups)),
                fix="take one group: results.of(group)",
            )
        found: dict[Arm, dict[int, LearningRun]] = {arm: {} for arm in self.arms()}
        for run in sorted(self.runs, key=lambda run: run.key.seed):
            found[run.key.arm][run.key.seed] = run
        return found

    def values(self, arm: tuple[str, str], metric: str) -> dict[int, float]:
        """A metric by seed, without seeds where it is not defined."""
        found = {seed: run.value(metric) for seed, run in self.by_seed(arm).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def table(self, metric: str) -> dict[Arm, Mean | None]:
        """Mean over seeds of each arm; None where no seed has the metric."""
        values = {arm: list(self.values(arm, metric).values()) for arm in self.arms()}
        return {arm: t_mean(found) if found else None for arm, found in values.items()}

    def paired(self, arm: tuple[str, str], control: tuple[str, str], metric: str) -> Paired | None:
        """Difference arm - control over common seeds; None when they have none in common."""
        mine, other = self.values(arm, metric), self.values(control, metric)
        return paired_t([(mine[s], other[s]) for s in mine if s in other], lower_is_better(metric))


def lower_is_better(metric: str) -> bool:
    """Whether less is better: forgetting, intransigence, calibration error, likelihood loss, and costs."""
    name = metric.rsplit("/", 1)[-1]
    return name in LOWER or name in COSTS or name.endswith("nll")


def _finite(values: Iterable[float | None]) -> Values:
    return tuple(None if value is None or not math.isfinite(value) else float(value) for value in values)
