"""The options of every command, as frozen dataclasses for tyro. Importing this loads neither torch nor diffusers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, UseAppendAction, arg

Subject = Literal[
    "overview",
    "methods",
    "presets",
    "models",
    "styles",
    "objects",
    "families",
    "learners",
    "plugins",
    "streams",
    "networks",
    "masks",
    "domains",
]


RESUMES = "stopped; the same command goes on where it was"


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """What all commands share."""

    stopped: ClassVar[str] = "stopped; nothing was kept"
    """What is said when it was interrupted."""
    debug: bool = False
    """Show where in the code an error came from (also: UNTEACH_DEBUG=1)."""

    @abstractmethod
    def run(self, command: str) -> int:
        """Do it; ``command`` is the line that was typed, for the records. Returns the exit code."""


@dataclass(frozen=True, kw_only=True)
class Machine(Options):
    """Where and how it is computed."""

    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: auto)")] = None
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: float32)")] = None
    """float32, bfloat16 or float16: of every part of the model."""
    threads: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 1 on the bundled model, else torch's choice)")
    ] = None
    """Processor threads."""


@dataclass(frozen=True, kw_only=True)
class Erase(Machine):
    """Erase concepts from a model: writes delta.safetensors, the change of weights.

    The same command run again goes on where it stopped. `unteach list methods --verbose` shows each method's
    settings, `unteach list styles` and `unteach list objects` what the bundled model can draw. It ends with a check of
    the model's own outputs: exit code 0 when it finds "erased, the rest kept", 4 when it finds anything else.
    """

    stopped: ClassVar[str] = RESUMES
    model: Annotated[str | None, arg(metavar="canvas|FOLDER", help_behavior_hint="(default: canvas)")] = None
    """The bundled model, or a local diffusers folder (Stable Diffusion 1.x, 2.x or SDXL, safetensors)."""
    target: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """What to erase."""
    anchor: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(canvas: chosen by target)")] = None
    """What to draw in its place."""
    kind: Annotated[str | None, arg(metavar="style|object", help_behavior_hint="(default: object)")] = None
    """What the target is."""
    names: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")] = None
    """Other names of the target: never trained on, judged afterwards."""
    prompts: Annotated[tuple[str, ...] | None, arg(metavar="TEXT ...", help_behavior_hint="(default: by kind)")] = None
    """Templates with {} where the name goes, such as "a {} dog"."""
    captions: Annotated[tuple[str, ...] | None, arg(metavar="TEXT ...", help_behavior_hint="")] = None
    """Instead of prompts: plain captions that contain the anchor."""
    retain: Annotated[tuple[str, ...] | None, arg(metavar="TEXT ...", help_behavior_hint="(default: the anchor's)")] = (
        None
    )
    """Prompts whose pictures must stay."""
    concepts: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Instead of target and so on: several concepts, from a .yaml or .csv file."""
    method: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: doco, on canvas doco-canvas)")] = (
        None
    )
    """A method or a preset."""
    settings: Annotated[
        tuple[tuple[str, ...], ...],
        UseAppendAction,
        arg(name="set", metavar="KEY=VALUE ...", help_behavior_hint="(repeatable)"),
    ] = ()
    """Settings of the method, such as steps=200 lr=1e-4."""
    config: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="")] = None
    """Any of these options from a file (keys as here, settings as a mapping); the command line wins."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """Root of every random draw."""
    save_every: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 25)")] = None
    """Training steps between two checkpoints."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required, but for --dry-run)")] = None
    """Folder of the result and of what resuming needs."""
    dry_run: bool = False
    """Check everything, show what would be done and estimate what it costs; write nothing."""

    def run(self, command: str) -> int:
        """Erase."""
        from unteach.commands import erase

        return erase.run(self)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Machine):
    """Measure what an erasure took away and what it left, on the same prompts and noise before and after.

    On the bundled model two judges look at every picture. On other pipelines it shows pictures and measures how
    far those of --prompts (or of the concepts' own retain prompts) moved.
    """

    stopped: ClassVar[str] = RESUMES
    erased: Annotated[Path | None, arg(name="run", metavar="DIR", help_behavior_hint="")] = None
    """The --out folder of `unteach erase`: brings model, delta and concepts."""
    model: Annotated[str | None, arg(metavar="canvas|FOLDER", help_behavior_hint="(default: the run's, or canvas)")] = (
        None
    )
    """The unchanged model."""
    delta: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the run's)")] = None
    """The change of weights to evaluate."""
    concepts: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: the delta's)")] = None
    """The concepts it was to erase (.yaml or .csv)."""
    preset: Annotated[str, arg(metavar="demo|grid")] = "demo"
    """demo asks a sample of what there is, grid asks for every object in every style."""
    prompts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the concepts' retain)")] = None
    """Other pipelines than the bundled one: prompts to keep, one a line, or the column prompt of a .csv file."""
    seeds: Annotated[tuple[int, ...], arg(metavar="N ...")] = (188,)
    """Evaluation seeds: each prompt is drawn once a seed."""
    scale: Annotated[float, arg(metavar="X")] = 1.0
    """Factor on the delta."""
    num_inference_steps: Annotated[int, arg(metavar="N")] = 20
    """Sampling steps."""
    guidance_scale: Annotated[float, arg(metavar="X")] = 3.0
    """Classifier-free guidance."""
    batch_size: Annotated[int, arg(metavar="N")] = 32
    """Pictures drawn at a time."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: evaluation in the run's folder)")] = (
        None
    )
    """Folder of results.json and the pictures."""

    def run(self, command: str) -> int:
        """Evaluate."""
        from unteach.commands import evaluate

        return evaluate.run(self, command)


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """Make one self-contained HTML page from the results of one or more evaluations; loads no model."""

    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="RESULTS ...")]
    """Files results.json, or folders that hold one."""
    out: Annotated[Path, arg(metavar="FILE.html")] = Path("report.html")
    """The page."""
    title: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: made from the concepts)")] = ""
    """Headline of the page."""

    def run(self, command: str) -> int:
        """Report."""
        from unteach.commands import report

        return report.run(self)


@dataclass(frozen=True, kw_only=True)
class Learn(Options):
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


@dataclass(frozen=True, kw_only=True)
class List(Options):
    """Say what there is: methods, presets, models, families, and what the bundled model can draw."""

    what: Positional[Subject] = "overview"
    """overview is methods and presets."""
    verbose: bool = False
    """Methods: with their settings and defaults."""

    def run(self, command: str) -> int:
        """List."""
        from unteach.commands import listing

        return listing.run(self)


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """Erase a style and an object from the bundled model, judge both, and write one page; minutes on two cores.

    The same command run again goes on where it stopped.
    """

    stopped: ClassVar[str] = RESUMES
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Folder of everything that it writes."""
    quick: bool = False
    """A small one, to see that everything works; its numbers mean little."""
    only: Annotated[str | None, arg(metavar="TARGET", help_behavior_hint="(default: all)")] = None
    """Do one concept, in this process and without the page (what the demo calls itself with)."""

    def run(self, command: str) -> int:
        """Demonstrate."""
        from unteach.commands import demo

        return demo.run(self, command)
