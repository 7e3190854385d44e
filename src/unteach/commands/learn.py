"""``unteach learn``: several methods × plug-ins × seeds on streams, in one command that resumes."""

import dataclasses
import functools
import inspect
import json
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from unteach.commands.options import Learn
from unteach.commands.terminal import say, wrote
from unteach.continual import networks, streams
from unteach.continual.engine import Outcome, learn
from unteach.continual.learner import Training
from unteach.continual.method import AnyMethod, make
from unteach.continual.metrics import matrix_of, summary
from unteach.continual.plugin import Plugin, make_plugin
from unteach.continual.stream import Scenario, Stream, with_scenario
from unteach.core import places, processes, reading, state
from unteach.core.registry import near
from unteach.errors import CheckpointError, ConfigError, NumericsError, UnteachError
from unteach.records import environment
from unteach.records.learning import ALONE, KINDS, Key, LearningResults, LearningRun, Mean, Seconds
from unteach.report.learning import render_learning

__all__ = ["Job", "Plan", "load_plan", "run"]

STATE = "state.safetensors"
METRIC = "class_il/final_average_accuracy"
_SECONDS = ("train", "evaluate")
_KEYS = {
    "stream",
    "stream_options",
    "scenario",
    "network",
    "network_options",
    "training",
    "methods",
    "plugins",
    "seeds",
    "title",
}


@dataclass(frozen=True)
class Job:
    """One run of the grid, as plain data that another process can be given."""

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
        return state.fingerprint({key: value for key, value in vars(self).items()})


@dataclass(frozen=True)
class Plan:
    """A grid of runs."""

    jobs: tuple[Job, ...]
    title: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


def load_plan(path: Path | None, options: Learn) -> Plan:
    """The grid that a config file and the command line ask for; everything in it is checked before anything runs.

    Raises:
        ConfigError: unknown keys, methods, plug-ins or settings, and combinations that cannot be: all at once
            where possible.
    """
    record: dict[str, Any] = {}
    if path is not None:
        loaded = reading.read_yaml(path, error=ConfigError)
        if not isinstance(loaded, dict):
            raise ConfigError(f"the config {path} must be a table of settings", found=type(loaded).__name__)
        if unknown := sorted(set(map(str, loaded)) - _KEYS):
            raise ConfigError.many([f"unknown key '{key}' ({near(key, _KEYS)})" for key in unknown], where=str(path))
        record = {str(key): value for key, value in loaded.items()}
    given = {
        "stream": options.stream,
        "network": options.network,
        "methods": list(options.methods) if options.methods else None,
        "plugins": list(options.plugins) if options.plugins else None,
        "seeds": list(options.seeds) if options.seeds else None,
    }
    record |= {key: value for key, value in given.items() if value is not None}
    if not record.get("stream"):
        raise ConfigError("no stream was named", fix=f"--stream one of {', '.join(streams.streams.names())}")
    if wrong := list(_misshapen(record)):
        raise ConfigError.many(wrong, where="the grid of runs")
    if not record.get("methods"):
        raise ConfigError("no methods were named", fix="--methods er der++ ...; see: unteach list learners")
    training = dict(record.get("training") or {})
    if options.epochs is not None:
        training["epochs"] = options.epochs
    jobs, problems = [], []
    try:
        _check_stream(record)  # once, not once an arm
    except UnteachError as error:
        problems.append(str(error))
    for method in record["methods"]:
        for plugin in record.get("plugins") or ["none"]:
            try:
                jobs += list(_jobs(record, training, method, plugin))
            except UnteachError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError.many(list(dict.fromkeys(problems)), where="the grid of runs")
    places = Counter(job.folder(Path()) for job in jobs)
    double = {job.label for job in jobs if places[job.folder(Path())] > 1}
    if double:
        raise ConfigError(
            "two runs would have the same name", found=", ".join(sorted(double)), fix="give one of them a 'label'"
        )
    return Plan(tuple(jobs), str(record.get("title") or ""))


def _misshapen(record: Mapping[str, Any]) -> Iterator[str]:
    """What is not a list, a table, a name or a whole number where it should be one."""
    for key in ("methods", "plugins", "seeds"):
        items = record.get(key)
        if items is None:
            continue
        if not isinstance(items, list | tuple):
            yield f"'{key}' must be a list, found {items!r}"
        elif key == "seeds":
            yield from (f"seeds are whole numbers, found {x!r}" for x in items if type(x) is not int)
        else:
            yield from (f"'{key}' holds names or tables, found {x!r}" for x in items if not isinstance(x, str | dict))
    for key in ("training", "stream_options", "network_options"):
        if not isinstance(record.get(key) or {}, dict):
            yield f"'{key}' must be a table of settings, found {record[key]!r}"


def _jobs(record: Mapping[str, Any], training: Mapping[str, Any], method: Any, plugin: Any) -> Iterator[Job]:
    """The runs of one arm, checked."""
    method = {"method": method} if isinstance(method, str) else dict(method)
    plugin = {"plug-in": plugin} if isinstance(plugin, str) else dict(plugin)
    own_training = {**training, **dict(method.pop("training", None) or {})}
    label = str(method.pop("label", method.get("method")))
    plug_label = str(plugin.pop("label", plugin.get("plug-in")))
    made = _method(method)
    named = None if plugin.get("plug-in") in ("none", None) else plugin
    if named is not None:
        _plugin(named)
    Training.build(own_training)
    if named is not None and made.form == "outside":
        return
    seeds = record.get("seeds") or [0]
    if any("__" in name for name in (label, plug_label)):
        raise ConfigError("a label must not hold '__'", found=f"{label}, {plug_label}")
    for seed in seeds:
        yield Job(
            str(record["stream"]),
            dict(record.get("stream_options") or {}),
            record.get("scenario"),
            str(record.get("network") or "small-conv"),
            dict(record.get("network_options") or {}),
            own_training,
            method,
            named,
            seed,
            label if named is None else f"{label}__{plug_label}",
        )


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


def _method(record: Mapping[str, Any]) -> AnyMethod:
    settings = dict(record)
    return make(settings.pop("method", None), **settings)


def _plugin(record: Mapping[str, Any]) -> Plugin:
    settings = dict(record)
    return make_plugin(settings.pop("plug-in", None), **settings)


@functools.cache
def _stream(name: str, options: str, scenario: str | None) -> Stream:
    found = streams.load(name, **json.loads(options))
    return found if scenario is None else with_scenario(found, scenario)  # type: ignore[arg-type]


def do(job: Job, out: Path, command: str, threads: int) -> Path:
    """One run of the grid: train, measure, write its record; a finished one is left alone.

    Raises:
        CheckpointError: the folder holds a run of other settings.
    """
    torch.set_num_threads(threads)
    folder = job.folder(out)
    path = folder / "run.json"
    if path.exists():
        if state.read_table(folder / "job.json").get("fingerprint") != job.fingerprint():
            raise CheckpointError(
                f"{folder} holds a run of other settings",
                fix="use another --out, or the settings of before",
            )
        (folder / STATE).unlink(missing_ok=True)  # killed after the record was written
        return path
    stream = _stream(job.stream, state.canonical(job.stream_options), job.scenario)
    method, plugin = _method(job.method), None if job.plugin is None else _plugin(job.plugin)
    training = Training.build(job.training)
    failed = ""
    outcome: Outcome | None = None
    try:
        outcome = learn(
            stream,
            method,
            network=job.network,
            options=job.network_options,
            plugin=plugin,
            training=training,
            seed=job.seed,
            out=folder,
        )
    except NumericsError as error:
        failed = str(error)
    record = _record(job, stream, method, plugin, training, outcome, failed, command)
    state.write_json(folder / "job.json", {**vars(job), "fingerprint": job.fingerprint()})
    record.save(path)
    (folder / STATE).unlink(missing_ok=True)
    return path


def _record(
    job: Job,
    stream: Stream,
    method: AnyMethod,
    plugin: Plugin | None,
    training: Training,
    outcome: Outcome | None,
    failed: str,
    command: str,
) -> LearningRun:
    rows: list[dict[str, Any]] = [] if outcome is None else outcome.record["rows"]
    untrained = {} if outcome is None else outcome.record["untrained"]
    places = range(len(stream.tasks))
    sizes = [len(task.test_y) for task in stream.tasks]
    matrices = {kind: matrix_of(rows, kind, len(places)) for kind in KINDS}
    before = {kind: untrained[kind] for kind in ("class_il_all_heads", "task_il") if kind in untrained}
    by_task = {row["task"]: row for row in rows}
    ece, nll = ([by_task[t][what] if t in by_task else None for t in places] for what in ("ece", "nll"))
    took = {key: [by_task[t]["seconds"][key] if t in by_task else None for t in places] for key in _SECONDS}
    labels = job.label.split("__")
    key = Key(
        stream=stream.name,
        scenario=stream.scenario,
        method=labels[0],
        plugin=labels[1] if len(labels) > 1 else ALONE,
        seed=job.seed,
        network=job.network,
        training=training.to_dict(),
        method_settings=method.to_dict(),
        plugin_settings={} if plugin is None else plugin.to_dict(),
    )
    return LearningRun(
        key=key,
        matrices={kind: tuple(map(tuple, cells)) for kind, cells in matrices.items()},
        untrained={kind: tuple(values) for kind, values in before.items()},
        test_sizes=tuple(sizes),
        task_names=tuple(task.name for task in stream.tasks),
        ece=tuple(ece),
        nll=tuple(nll),
        seconds=Seconds(train=tuple(took["train"]), evaluate=tuple(took["evaluate"])),
        passes=0 if outcome is None else outcome.record["passes"],
        diagnostics=tuple(by_task[t]["diagnostics"] if t in by_task else {} for t in places),
        warnings=(
            *([] if outcome is None else outcome.record["warnings"]),
            *([f"diverged: {failed}"] if failed else []),
        ),
        metrics=summary(matrices, before, sizes, ece=ece, nll=nll),
        environment=dataclasses.asdict(environment.collect()),
        command=command,
    )


def run(options: Learn, command: str) -> int:
    """Run what is left of the grid and write the page; returns the exit code."""
    plan = load_plan(options.config, options)
    out = options.out
    with places.alone(out):
        try:
            _do_all(plan, options, command)
        except BaseException:
            places.sweep(out)  # what workers were writing when they were ended
            raise
        return _page(plan, out)


def _do_all(plan: Plan, options: Learn, command: str) -> None:
    """Do what is left of the grid, telling how far it is."""
    out = options.out
    left = [job for job in plan.jobs if not (job.folder(out) / "run.json").exists()]
    arms = len({job.label for job in plan.jobs})
    say(f"{len(plan.jobs)} runs ({arms} arms), {len(left)} left; writing to {out}")
    begin = time.perf_counter()
    with closing(_all(plan.jobs, out, command, options.workers, options.threads or 1)) as jobs:
        for done, job in enumerate(jobs, 1):
            if job in left and (options.verbose or done % 10 == 0 or done == len(plan.jobs)):
                took = time.perf_counter() - begin
                rest = took / max(1, done - (len(plan.jobs) - len(left))) * (len(plan.jobs) - done)
                say(f"  {done}/{len(plan.jobs)} {job.label}, seed {job.seed}; about {rest / 60:.0f} min left")


def _page(plan: Plan, out: Path) -> int:
    """Write the page of all runs, and print its table."""
    results = LearningResults.load(out / "runs")
    page = render_learning(results, out / "report.html", title=plan.title)
    for line in _lines(results):
        say(line)
    wrote([out / "runs", page])
    return 0


def _mean(mean: Mean) -> str:
    interval = "" if mean.low is None or mean.high is None else f"{mean.low:.1%} to {mean.high:.1%}, "
    return f"{mean.mean:6.1%}  ({interval}n {mean.n})"


def _lines(results: LearningResults) -> Iterator[str]:
    """A short table: final average accuracy of each arm."""
    for group in results.groups:
        table = results.of(group).table(METRIC)
        yield f"{group}: {METRIC}"
        for arm, mean in table.items():
            shown = "not measured" if mean is None else _mean(mean)
            yield f"  {arm!s:<44} {shown}"


def _all(jobs: Sequence[Job], out: Path, command: str, workers: int, threads: int) -> Generator[Job, None, None]:
    """Do the jobs, in one process or several; each as it is finished."""
    if workers == 1:
        for job in jobs:
            do(job, out, command, threads)
            yield job
        return
    with closing(processes.each(do, [(job, out, command, threads) for job in jobs], workers)) as done:
        for index, _ in done:
            yield jobs[index]
