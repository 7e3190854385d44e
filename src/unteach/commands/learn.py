"""``unteach learn``: several methods × plug-ins × seeds on streams, in one command that resumes."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from unteach.commands.console import say, wrote
from unteach.commands.options import Learn
from unteach.continual import grid
from unteach.continual.grid import Grid, Job, Run
from unteach.continual.metrics import matrix_of, summary
from unteach.core import jobs as many
from unteach.core import places, reading, state
from unteach.errors import ConfigError
from unteach.records import environment
from unteach.records.learning import ALONE, KINDS, Key, LearningResults, LearningRun, Mean, Seconds
from unteach.report.learning import render_learning

__all__ = ["load_plan", "run"]

METRIC = "class_il/final_average_accuracy"


def load_plan(path: Path | None, options: Learn) -> Grid:
    """The grid that a config file and the command line ask for.

    Raises:
        ConfigError: see :func:`unteach.continual.grid.plan`.
    """
    loaded: Any = {} if path is None else reading.read_yaml(path, error=ConfigError)
    if not isinstance(loaded, dict):
        raise ConfigError(f"the config {path} must be a table of settings", found=type(loaded).__name__)
    record = {str(key): value for key, value in loaded.items()}
    for key in ("stream", "network", "methods", "plugins", "seeds"):
        value = getattr(options, key)
        if value:
            record[key] = list(value) if isinstance(value, tuple) else value
    if options.epochs is not None and isinstance(record.get("training") or {}, dict):
        record["training"] = {**(record.get("training") or {}), "epochs": options.epochs}
    return grid.plan(record)


def run(options: Learn, command: str) -> int:
    """Run what is left of the grid and write the page; returns the exit code."""
    plan, out = load_plan(options.config, options), options.out
    left = [job for job in plan.jobs if not grid.finished(job, out)]
    grid.check(left)
    with places.alone(out):
        try:
            _do_all(plan, left, options, command)
        except BaseException:
            places.sweep(out)  # what workers were writing when they were ended
            raise
        return _page(plan, out)


def do(job: Job, out: Path, command: str, threads: int) -> None:
    """One run of the grid: train, measure, write its record; a finished one is left alone.

    Raises:
        CheckpointError: the folder holds a run of other settings.
    """
    torch.set_num_threads(threads)
    if not grid.finished(job, out):
        record, folder = _record(grid.train(job, out), command), job.folder(out)
        state.write_json(folder / grid.JOB, {**vars(job), "fingerprint": job.fingerprint()})
        record.save(folder / grid.RECORD)
    grid.finish(job, out)


def _record(run: Run, command: str) -> LearningRun:
    job, outcome = run.job, run.outcome
    stream, (method, plugin, training) = job.load_stream(), job.parts()
    by_task = {} if outcome is None else {row.task: row for row in outcome.rows}
    untrained = {} if outcome is None else vars(outcome.untrained)
    places = [by_task.get(task) for task in range(len(stream.tasks))]
    sizes = tuple(len(task.test_y) for task in stream.tasks)
    matrices = {kind: matrix_of({t: getattr(r, kind) for t, r in by_task.items()}, len(sizes)) for kind in KINDS}
    before = {kind: untrained[kind] for kind in ("class_il_all_heads", "task_il") if kind in untrained}
    ece, nll = ([None if row is None else getattr(row, what) for row in places] for what in ("ece", "nll"))
    took = [{} if row is None else row.seconds for row in places]
    warnings = () if outcome is None else outcome.warnings
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
        test_sizes=sizes,
        task_names=tuple(task.name for task in stream.tasks),
        ece=tuple(ece),
        nll=tuple(nll),
        seconds=Seconds(**{what: tuple(one.get(what) for one in took) for what in ("train", "evaluate")}),
        passes=0 if outcome is None else outcome.passes,
        diagnostics=tuple({} if row is None else dict(row.diagnostics) for row in places),
        warnings=(*warnings, f"diverged: {run.failed}") if run.failed else warnings,
        metrics=summary(matrices, before, sizes, ece=ece, nll=nll),
        environment=dataclasses.asdict(environment.collect()),
        command=command,
    )


def _do_all(plan: Grid, left: list[Job], options: Learn, command: str) -> None:
    """Do what is left of the grid, telling how far it is."""
    out, arms = options.out, len({job.label for job in plan.jobs})
    say(f"{len(plan.jobs)} runs ({arms} arms), {len(left)} left; writing to {out}")
    begin = time.perf_counter()
    calls = [(job, out, command, options.threads or 1) for job in plan.jobs]
    with closing(many.each(do, calls, options.workers, "serial" if options.workers == 1 else "processes")) as jobs:
        for done, (index, _) in enumerate(jobs, 1):
            job = plan.jobs[index]
            if job in left and (options.verbose or done % 10 == 0 or done == len(plan.jobs)):
                took = time.perf_counter() - begin
                rest = took / max(1, done - (len(plan.jobs) - len(left))) * (len(plan.jobs) - done)
                say(f"  {done}/{len(plan.jobs)} {job.label}, seed {job.seed}; about {rest / 60:.0f} min left")


def _page(plan: Grid, out: Path) -> int:
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
