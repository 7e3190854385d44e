"""A grid of runs on one stream, methods × plug-ins × seeds: checked as a whole, each run in a folder of its own."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from unteach.continual import networks, streams
from unteach.continual.engine import Outcome, Trainer
from unteach.continual.learner import Training
from unteach.continual.methods import AnyMethod, make
from unteach.continual.metrics import summary
from unteach.continual.plugins import Plugin, plugins
from unteach.continual.streams import Scenario, Stream
from unteach.core import state
from unteach.core.registry import near
from unteach.errors import CheckpointError, ConfigError, NumericsError, UnteachError
from unteach.records import environment
from unteach.records.learning import ALONE, KINDS, Key, LearningRun, Seconds

__all__ = ["KEYS", "Grid", "Job", "check", "do", "finished", "plan"]

LISTS, TABLES = ("methods", "plugins", "seeds"), ("training", "stream_options", "network_options")
KEYS = frozenset({"stream", "scenario", "network", "title", *LISTS, *TABLES})
"""What a grid may say."""
JOB, STATE = "job.json", "state.safetensors"
"""Beside the record in a run's folder: what it is a run of; its checkpoint, until it is finished."""

_streams: dict[str, Stream] = {}


@dataclass(frozen=True)
class Job:
    """One run of the grid, as plain data that another process can be given.

    Attributes:
        method: "method" with its name, and settings.
        plugin: "plug-in" with its name, and settings; None is the method alone.
        label: name of the arm: the method's label, and "__" and the plug-in's where there is one.
    """

    stream: str
    stream_options: Mapping[str, Any]
    scenario: str | None
    network: str
    network_options: Mapping[str, Any]
    training: Mapping[str, Any]
    method: Mapping[str, Any]
    plugin: Mapping[str, Any] | None
    seed: int
    label: str

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        name = self.label.replace(" ", "").replace("/", "-")
        return out / "runs" / name / str(self.seed)

    def same(self, other: "Job") -> bool:
        """Whether both are one run, whatever their settings were called when they were written down."""
        settings = ("training", "method", "plugin")
        one, two = ({k: v for k, v in vars(job).items() if k not in settings} for job in (self, other))
        return state.fingerprint(one) == state.fingerprint(two) and self.parts() == other.parts()

    def load_stream(self) -> Stream:
        """The stream; each is read once in a process."""
        key = state.fingerprint([self.stream, self.stream_options, self.scenario])
        if key not in _streams:
            _streams[key] = streams.load(self.stream, scenario=self.scenario, **self.stream_options)  # type: ignore[arg-type]
        return _streams[key]

    def parts(self) -> tuple[AnyMethod, Plugin | None, Training]:
        """Method, plug-in and training.

        Raises:
            ConfigError: unknown names or settings.
        """
        method, plugin = dict(self.method), dict(self.plugin or {})
        made = make(method.pop("method", None), **method)
        plugged = plugins.make(plugin.pop("plug-in", None), **plugin) if self.plugin is not None else None
        return made, plugged, Training.build(self.training)

    def trainer(self) -> Trainer:
        """The run, ready to begin.

        Raises:
            UnteachError: what the engine refuses (:class:`~unteach.continual.engine.Trainer`).
        """
        method, plugin, training = self.parts()
        return Trainer(
            self.load_stream(),
            method,
            network=self.network,
            options=self.network_options,
            plugin=plugin,
            training=training,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Grid:
    """The runs, and the title of their page."""

    jobs: tuple[Job, ...]
    title: str = ""


def plan(record: Mapping[str, Any]) -> Grid:
    """The grid that a table asks for; all that can be checked without the stream's data is checked.

    Raises:
        ConfigError: unknown keys, methods, plug-ins or settings, or two runs of one name: all at once where possible.
    """
    if unknown := sorted(set(record) - KEYS):
        raise ConfigError.many([f"unknown key '{key}' ({near(key, KEYS)})" for key in unknown], where="the grid")
    if not record.get("stream"):
        raise ConfigError("no stream was named", fix=f"--stream one of {', '.join(streams.streams.names())}")
    if wrong := list(_misshapen(record)):
        raise ConfigError.many(wrong, where="the grid of runs")
    if not record.get("methods"):
        raise ConfigError("no methods were named", fix="--methods er der++ ...; see: unteach list learners")
    jobs, problems = [], []
    try:
        _check_stream(record)  # once, not once an arm
    except UnteachError as error:
        problems.append(str(error))
    for method in record["methods"]:
        for plugin in record.get("plugins") or ["none"]:
            try:
                jobs += list(_jobs(record, method, plugin))
            except UnteachError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError.many(list(dict.fromkeys(problems)), where="the grid of runs")
    places = Counter(job.folder(Path()) for job in jobs)
    if double := {job.label for job in jobs if places[job.folder(Path())] > 1}:
        raise ConfigError(
            "two runs would have the same name", found=", ".join(sorted(double)), fix="give one of them a 'label'"
        )
    return Grid(tuple(jobs), str(record.get("title") or ""))


def check(jobs: Iterable[Job]) -> None:
    """Refuse what the engine refuses, for every arm, before anything is trained.

    Raises:
        ConfigError: everything that does not fit together, at once.
        DataError: the stream's data are missing, or wrong.
    """
    problems = []
    for job in {job.label: job for job in jobs}.values():
        job.load_stream()
        try:
            job.trainer()
        except UnteachError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError.many(list(dict.fromkeys(problems)), where="the grid of runs")


def finished(job: Job, out: Path) -> bool:
    """Whether the job's record is there.

    Raises:
        CheckpointError: its folder holds a run of other settings.
    """
    folder = job.folder(out)
    if not (folder / LearningRun.FILE).exists():
        return False
    kept = state.read_table(folder / JOB)
    try:
        same = Job(**{key: kept[key] for key in vars(job)}).same(job)
    except (KeyError, ConfigError):
        same = False
    if not same:
        fix = "use another --out, or the settings of before"
        raise CheckpointError(f"{folder} holds a run of other settings", fix=fix)
    return True


def do(job: Job, out: Path, command: str, threads: int = 1) -> None:
    """One run of the grid: train, measure, write its record; a finished one is left alone.

    Args:
        job: the run.
        out: folder of the grid; an interrupted run in it goes on where it was.
        command: the line that was typed, for the record.
        threads: processor threads.

    Raises:
        CheckpointError: its folder holds a run of other settings.
    """
    torch.set_num_threads(threads)
    if not finished(job, out):
        outcome, warnings = None, list[str]()
        try:
            outcome = job.trainer().run(job.folder(out))
            warnings += outcome.warnings
        except NumericsError as error:
            warnings.append(f"diverged: {error}")
        record = _record(job, outcome, warnings, command)
        state.write_json(job.folder(out) / JOB, vars(job))
        record.save(job.folder(out) / LearningRun.FILE)
    (job.folder(out) / STATE).unlink(missing_ok=True)  # what is finished needs no checkpoint


def _record(job: Job, outcome: Outcome | None, warnings: Sequence[str], command: str) -> LearningRun:
    """The record of a run; without an outcome it diverged, and nothing was measured."""
    stream, (method, plugin, training) = job.load_stream(), job.parts()
    by_task = {} if outcome is None else {row.task: row for row in outcome.rows}
    rows = [by_task.get(task) for task in range(len(stream.tasks))]
    sizes = tuple(len(task.test_y) for task in stream.tasks)
    matrices = {
        kind: tuple(tuple(getattr(row, kind)) if row else (None,) * len(sizes) for row in rows) for kind in KINDS
    }
    untrained = {} if outcome is None else {kind: tuple(getattr(outcome.untrained, kind)) for kind in KINDS[1:]}
    ece, nll = (tuple(None if row is None else getattr(row, what) for row in rows) for what in ("ece", "nll"))
    train, test = (tuple(None if row is None else row.seconds[what] for row in rows) for what in ("train", "evaluate"))
    label, _, plug_label = job.label.partition("__")
    key = Key(
        stream=stream.name,
        scenario=stream.scenario,
        method=label,
        plugin=plug_label or ALONE,
        seed=job.seed,
        network=job.network,
        training=training.to_dict(),
        method_settings=method.to_dict(),
        plugin_settings={} if plugin is None else plugin.to_dict(),
    )
    return LearningRun(
        key=key,
        matrices=matrices,
        untrained=untrained,
        test_sizes=sizes,
        task_names=tuple(task.name for task in stream.tasks),
        ece=ece,
        nll=nll,
        seconds=Seconds(train=train, evaluate=test),
        passes=0 if outcome is None else outcome.passes,
        diagnostics=tuple({} if row is None else dict(row.diagnostics) for row in rows),
        warnings=tuple(warnings),
        metrics=summary(matrices, untrained, sizes, ece=ece, nll=nll),
        environment=dataclasses.asdict(environment.collect()),
        command=command,
    )


def _misshapen(record: Mapping[str, Any]) -> Iterator[str]:
    """What is not a list, a table, a name or a whole number where it should be one."""
    for key in LISTS:
        items = record.get(key)
        if items is None:
            continue
        if not isinstance(items, list | tuple):
            yield f"'{key}' must be a list, found {items!r}"
        elif key == "seeds":
            yield from (f"seeds are whole numbers, found {x!r}" for x in items if type(x) is not int)
        else:
            yield from (f"'{key}' holds names or tables, found {x!r}" for x in items if not isinstance(x, str | dict))
    for key in TABLES:
        if not isinstance(record.get(key) or {}, dict):
            yield f"'{key}' must be a table of settings, found {record[key]!r}"


def _jobs(record: Mapping[str, Any], method: Any, plugin: Any) -> Iterator[Job]:
    """The runs of one arm, checked."""
    method = {"method": method} if isinstance(method, str) else dict(method)
    plugin = {"plug-in": plugin} if isinstance(plugin, str) else dict(plugin)
    training = {**(record.get("training") or {}), **(method.pop("training", None) or {})}
    label = str(method.pop("label", method.get("method")))
    plug_label = str(plugin.pop("label", plugin.get("plug-in")))
    alone = plugin.get("plug-in") in ("none", None)
    if any("__" in name for name in (label, plug_label)):
        raise ConfigError("a label must not hold '__'", found=f"{label}, {plug_label}")
    for place, seed in enumerate(record.get("seeds") or [0]):
        job = Job(
            str(record["stream"]),
            dict(record.get("stream_options") or {}),
            record.get("scenario"),
            str(record.get("network") or "small-conv"),
            dict(record.get("network_options") or {}),
            training,
            method,
            None if alone else plugin,
            seed,
            label if alone else f"{label}__{plug_label}",
        )
        if not place and job.parts()[0].form == "outside" and not alone:
            return  # a method that never steps has nothing for a plug-in
        yield job


def _check_stream(record: Mapping[str, Any]) -> None:
    """The names of stream, options, scenario and network; whether the data is there is seen when it is read."""
    name, network = str(record["stream"]), str(record.get("network") or "small-conv")
    options = record.get("stream_options") or {}
    problems = [f"the stream '{name}': {problem}" for problem in streams.misfits(name, options)]
    scenario = record.get("scenario")
    if scenario is not None and scenario not in get_args(Scenario):
        problems.append(f"no scenario is called '{scenario}' ({near(str(scenario), get_args(Scenario))})")
    if network not in networks.networks:
        problems.append(f"no network is called '{network}' ({near(network, networks.networks)})")
    if problems:
        raise ConfigError.many(problems, where="the stream and the network")
