"""A grid of runs on one stream, methods × plug-ins × seeds: checked as a whole, each run in a folder of its own."""

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from unteach.continual import networks, streams
from unteach.continual.engine import Outcome, Trainer
from unteach.continual.learner import Training
from unteach.continual.methods import AnyMethod, make
from unteach.continual.plugins import Plugin, plugins
from unteach.continual.streams import Scenario, Stream
from unteach.core import state
from unteach.core.registry import near
from unteach.errors import CheckpointError, ConfigError, NumericsError, UnteachError

__all__ = ["KEYS", "Grid", "Job", "Run", "check", "finish", "finished", "plan", "train"]

LISTS, TABLES = ("methods", "plugins", "seeds"), ("training", "stream_options", "network_options")
KEYS = frozenset({"stream", "scenario", "network", "title", *LISTS, *TABLES})
"""What a grid may say."""
RECORD, JOB, STATE = "run.json", "job.json", "state.safetensors"
"""In a run's folder: its record, once it is finished; what it is a run of; its checkpoint, until it is finished."""

_streams: dict[str, Stream] = {}


@dataclass(frozen=True)
class Job:
    """One run of the grid, as plain data that another process can be given.

    Attributes:
        method: "method" with its name, and settings.
        plugin: "plug-in" with its name, and settings; None is the method alone.
        label: of the arm: the method's label, and "__" and the plug-in's where there is one.
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

    def fingerprint(self) -> str:
        """Of everything that it depends on."""
        return state.fingerprint(dict(vars(self)))

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


@dataclass(frozen=True, eq=False)
class Run:
    """What a job gave.

    Attributes:
        outcome: None where it diverged.
        failed: how it diverged, or "".
    """

    job: Job
    outcome: Outcome | None
    failed: str = ""


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
    if not (folder / RECORD).exists():
        return False
    if state.read_table(folder / JOB).get("fingerprint") != job.fingerprint():
        raise CheckpointError(
            f"{folder} holds a run of other settings", fix="use another --out, or the settings of before"
        )
    return True


def train(job: Job, out: Path) -> Run:
    """Train and measure one run of the grid; an interrupted one goes on where it was.

    Raises:
        CheckpointError: its folder holds a run of other settings.
    """
    try:
        return Run(job, job.trainer().run(job.folder(out)))
    except NumericsError as error:
        return Run(job, None, str(error))


def finish(job: Job, out: Path) -> None:
    """A finished run needs no checkpoint."""
    (job.folder(out) / STATE).unlink(missing_ok=True)


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
    known = inspect.signature(streams.streams[name]).parameters
    options = record.get("stream_options") or {}
    problems = [
        f"the stream '{name}' has no option '{key}' ({near(str(key), known)})" for key in options if key not in known
    ]
    scenario = record.get("scenario")
    if scenario is not None and scenario not in get_args(Scenario):
        problems.append(f"no scenario is called '{scenario}' ({near(str(scenario), get_args(Scenario))})")
    if network not in networks.networks:
        problems.append(f"no network is called '{network}' ({near(network, networks.networks)})")
    if problems:
        raise ConfigError.many(problems, where="the stream and the network")
