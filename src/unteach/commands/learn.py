"""``unteach learn``: several methods × plug-ins × seeds on streams, in one command that resumes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import arg

from unteach.commands.console import say, wrote
from unteach.commands.verb import RESUMES, Verb
from unteach.core import reading
from unteach.errors import ConfigError

if TYPE_CHECKING:
    from unteach.continual.grid import Grid, Job
    from unteach.records.learning import LearningResults, Mean

__all__ = ["Learn"]

METRIC = "class_il/final_average_accuracy"


@dataclass(frozen=True, kw_only=True)
class Learn(Verb):
    """Train classifiers on streams of tasks: methods × plug-ins × seeds; writes a run.json each and report.html.

    The same command run again goes on where it stopped. `unteach list learners` shows the methods, `unteach list
    plugins` the plug-ins, `unteach list streams` the streams.
    """

    stopped: ClassVar[str] = RESUMES
    config: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="")] = None
    """The grid as a file; options given beside it count more."""
    stream: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """A stream."""
    methods: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")] = None
    """Methods, presets or combinations such as "der++ + online-ewc"."""
    plugins: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = None
    """Plug-ins, each tried on every method; "none" is the host alone."""
    seeds: Annotated[tuple[int, ...] | None, arg(metavar="N ...", help_behavior_hint="(default: 0)")] = None
    """Seeds."""
    network: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: small-conv)")] = None
    """A network."""
    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 5)")] = None
    """Passes over each task."""
    workers: Annotated[int, arg(metavar="N")] = 1
    """Runs at a time, each in a process of its own."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Processor threads of a run."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/learn")
    """Folder of everything that it writes."""
    verbose: bool = False
    """A line for every run."""

    def plan(self) -> "Grid":
        """The grid that the file and the command line ask for.

        Raises:
            ConfigError: see :func:`unteach.continual.grid.plan`.
        """
        from unteach.continual import grid

        loaded: Any = {} if self.config is None else reading.read_yaml(self.config, error=ConfigError)
        if not isinstance(loaded, dict):
            raise ConfigError(f"the config {self.config} must be a table of settings", found=type(loaded).__name__)
        record = {str(key): value for key, value in loaded.items()}
        for key in ("stream", "network", "methods", "plugins", "seeds"):
            value = getattr(self, key)
            if value:
                record[key] = list(value) if isinstance(value, tuple) else value
        if self.epochs is not None and isinstance(record.get("training") or {}, dict):
            record["training"] = {**(record.get("training") or {}), "epochs": self.epochs}
        return grid.plan(record)

    def run(self, command: str) -> int:
        """Run what is left of the grid and write the page."""
        from unteach.continual import grid
        from unteach.core import places
        from unteach.records.learning import LearningResults
        from unteach.report.page import page

        plan = self.plan()
        left = [job for job in plan.jobs if not grid.finished(job, self.out)]
        grid.check(left)
        with places.alone(self.out):
            try:
                self._do_all(plan, left, command)
            except BaseException:
                places.sweep(self.out)  # what workers were writing when they were ended
                raise
            results = LearningResults.load(self.out / "runs")
            made = page(results.runs, self.out / "report.html", title=plan.title)
            for line in _lines(results):
                say(line)
            wrote([self.out / "runs", made])
        return 0

    def _do_all(self, plan: "Grid", left: Sequence["Job"], command: str) -> None:
        """Do what is left of the grid, telling how far it is."""
        from unteach.continual import grid
        from unteach.core import jobs

        total, arms = len(plan.jobs), len({job.label for job in plan.jobs})
        say(f"{total} runs ({arms} arms), {len(left)} left; writing to {self.out}")
        begin = time.perf_counter()
        calls = [(job, self.out, command, self.threads or 1) for job in plan.jobs]
        engine: jobs.Engine = "serial" if self.workers == 1 else "processes"
        with closing(jobs.each(grid.do, calls, self.workers, engine)) as each:
            for done, (index, _) in enumerate(each, 1):
                job = plan.jobs[index]
                if job in left and (self.verbose or done % 10 == 0 or done == total):
                    took = time.perf_counter() - begin
                    rest = took / max(1, done - (total - len(left))) * (total - done)
                    say(f"  {done}/{total} {job.label}, seed {job.seed}; about {rest / 60:.0f} min left")


def _mean(mean: "Mean") -> str:
    interval = "" if mean.low is None or mean.high is None else f"{mean.low:.1%} to {mean.high:.1%}, "
    return f"{mean.mean:6.1%}  ({interval}n {mean.n})"


def _lines(results: "LearningResults") -> Iterator[str]:
    """A short table: final average accuracy of each arm."""
    for group in results.groups:
        table = results.of(group).table(METRIC)
        yield f"{group}: {METRIC}"
        for arm, mean in table.items():
            shown = "not measured" if mean is None else _mean(mean)
            yield f"  {arm!s:<44} {shown}"
