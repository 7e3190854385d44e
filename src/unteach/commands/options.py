"""The options of ``unteach learn``. Importing this loads neither torch nor diffusers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from unteach.commands.verb import RESUMES, Verb

__all__ = ["Learn"]


@dataclass(frozen=True, kw_only=True)
class Learn(Verb):
    """Train classifiers on streams of tasks: methods × plug-ins × seeds; writes results.json and report.html.

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

    def run(self, command: str) -> int:
        """Learn."""
        from unteach.commands import learn

        return learn.run(self, command)
