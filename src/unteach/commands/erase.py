"""``unteach erase``: plan, say what will be done, do it, write the delta and its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import arg

from unteach.commands.console import events, say, wrote
from unteach.commands.verb import RESUMES, Configured, Machine, Mistakes, Settings
from unteach.errors import ConfigError

if TYPE_CHECKING:
    from unteach.core.events import Events
    from unteach.data.concepts import ConceptSet
    from unteach.diffusion.delta import WeightDelta
    from unteach.diffusion.model import Model
    from unteach.erase import Method

__all__ = ["NOT_AS_ASKED", "Erase", "Plan"]

NOT_AS_ASKED = 4
"""Exit code when the delta was written, and the check found something else than "erased, the rest kept"."""
STAGES = ("anchors.part", "anchors.safetensors", "state.safetensors", "delta.safetensors")
DECISIVE = ("method", "settings", "concepts", "seed", "dtype")
"""What must be equal for a run to go on; the model is compared by its weights."""
LISTS = ("names", "prompts", "captions", "retain")
ONE_CONCEPT = ("target", "anchor", "kind", *LISTS)


@dataclass(frozen=True, kw_only=True)
class Erase(Machine, Configured):
    """Erase concepts from a model: writes delta.safetensors, the change of weights.

    The same command run again goes on where it stopped. `unteach list methods --verbose` shows each method's
    settings, `unteach list styles` and `unteach list objects` what the bundled model can draw. It ends with a check of
    the model's own outputs: exit code 0 when it finds "erased, the rest kept", 4 when it finds anything else.
    """

    stopped: ClassVar[str] = RESUMES
    FILE: ClassVar[Mapping[str, Any]] = {**Configured.FILE, "concepts": str | list[Any], "out": str}
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
    settings: Settings = ()
    """Settings of the method, such as steps=200 learning_rate=1e-4."""
    dtype: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: float32)")] = None
    """float32, bfloat16 or float16: of every part of the model."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """Root of every random draw."""
    save_every: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 25)")] = None
    """Training steps between two checkpoints."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required, but for --dry-run)")] = None
    """Folder of the result and of what resuming needs."""
    dry_run: bool = False
    """Check everything, show what would be done and estimate what it costs; write nothing."""

    def run(self, command: str) -> int:
        """Erase, or with ``--dry-run`` say what would be done."""
        from unteach.core.text import duration, size
        from unteach.erase.pairs import readable

        plan = self.resolve()
        known = plan.out is not None and plan.run().known
        model = plan.load()
        if self.dry_run:
            _dry(plan, model, known)
            return 0
        if plan.out is None:
            raise ConfigError("no folder for the result was given", fix="add --out DIR")
        read = readable(model, plan.concepts)
        targets = ", ".join(f"{c.target} → {c.anchor} ({c.kind})" for c in plan.concepts)
        say(f"erasing {targets} from {plan.model} with {plan.method.name}")
        for line in (*_dropped(plan), *read.left_out):
            say(line)
        say(f"{len(read.concepts.pairs())} prompt pairs, {_beside(plan, model, read.concepts)}")
        if (plan.out / "delta.safetensors").exists():
            say(f"{plan.out} holds the finished result")
        elif known:
            say(f"{plan.out} holds this run, begun: going on")
        delta = plan.execute(model, events())
        say(f"{len(delta.tensors)} tensors changed, {size(delta.size, '')} parameters in them, norm {delta.norm():.4g}")
        if (spent := plan.run().seconds) is not None:
            say(f"it took {duration(spent)}")
        if (found := delta.check) is not None:
            say(f"did it work? {found.verdict}")
            for line in found.lines():
                say(f"  {line}")
        wrote([plan.out / name for name in ("delta.safetensors", "README.md", "config.json")])
        return 0 if found is not None and found.good else NOT_AS_ASKED

    def resolve(self) -> Plan:
        """Merge and check everything that can be checked without loading the model.

        Raises:
            UnteachError: the one mistake, or a ConfigError that lists all of them.
        """
        from unteach.canvas import CANVAS, folder_of
        from unteach.core.device import device_of, dtype_of
        from unteach.diffusion.loading import inspect
        from unteach.erase import make

        found = Mistakes()
        values = self._merged(found)
        model, dtype = values.get("model", CANVAS), values.get("dtype", "float32")
        name = values.get("method", "doco-canvas" if model == CANVAS else "doco")
        found.catch(lambda: inspect(folder_of(model)))
        device = found.catch(lambda: device_of(values.get("device", "auto")))
        found.catch(lambda: dtype_of(dtype))
        found.least({"seed": values.get("seed")}, 0)
        found.least({key: values.get(key) for key in ("threads", "save_every")}, 1)
        concepts = found.catch(lambda: _concepts(values, model))
        method = found.catch(lambda: make(name, **values["settings"]))
        if "out" not in values and not self.dry_run:
            found.say("no folder for the result was given: add --out DIR")
        found.stop()
        assert device is not None and concepts is not None and method is not None  # else it has stopped
        return Plan(
            model=model,
            concepts=concepts,
            method=method,
            seed=values.get("seed", 0),
            device=device,
            dtype=dtype,
            threads=values.get("threads"),
            save_every=values.get("save_every", 25),
            out=Path(values["out"]) if "out" in values else None,
        )

    def _merged(self, found: Mistakes) -> dict[str, Any]:
        """The file's values with the command line's laid over them."""
        file, line = self.file(found), self.line()
        for values, where in ((file, f"{self.config}: "), (line, "")):
            both = [key for key in ONE_CONCEPT if key in values]
            if "concepts" in values and both:
                found.say(f"{where}'concepts' already says everything about the concepts; take out {', '.join(both)}")
        if "concepts" in line or "target" in line:
            # Another target has other names, prompts and so on; what is named beside it stays.
            more = ("concepts",) if "target" in line else ()
            file = {key: value for key, value in file.items() if key not in (*ONE_CONCEPT, *more)}
        elif "concepts" in file and any(key in line for key in ONE_CONCEPT):
            found.say(f"{self.config}: lists 'concepts', so say what to erase there, or with --target as well")
        return {**file, **line, "settings": self.merged_settings(file, found)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One erasure, resolved and checked.

    Attributes:
        model: "canvas" or a folder, as given.
        concepts: what to erase, complete with prompts.
        method: the configured method.
        seed: root of every random draw.
        device: a torch device.
        dtype: name of a torch dtype.
        threads: processor threads; None is torch's own choice.
        save_every: steps between two checkpoints.
        out: folder of the run; None for a dry run only.
    """

    model: str
    concepts: ConceptSet
    method: Method
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    save_every: int = 25
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``--config`` reads back to an equal plan (without ``out``)."""
        settings = self.method.to_dict()
        found = {
            "model": self.model,
            "concepts": self.concepts.to_dicts(),
            "method": settings.pop("method"),
            "settings": settings,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "save_every": self.save_every,
        }
        return found if self.threads is None else {**found, "threads": self.threads}

    def run(self) -> Any:
        """The folder of this plan.

        Raises:
            CheckpointError: it holds another run; nothing is changed.
        """
        from unteach.core.run import Run

        return Run(self.out or Path(), self.to_dict(), keys=DECISIVE, stages=STAGES)

    def load(self) -> Model:
        """The model."""
        from unteach.canvas import folder_of, is_canvas
        from unteach.core.device import dtype_of, use_threads
        from unteach.diffusion.model import load

        use_threads(self.threads, small=is_canvas(self.model))
        return load(folder_of(self.model), dtype=dtype_of(self.dtype), device=self.device)

    def execute(self, model: Model, events: Events) -> WeightDelta:
        """Erase into ``out`` and write config.json, delta.safetensors, cost.json and README.md there.

        Raises:
            CheckpointError: the folder holds another run, another process works in it, or it cannot be written; what
                is there stays as it is.
        """
        from unteach.core import state
        from unteach.erase import erase
        from unteach.report import model_card

        run = self.run()
        with run.working():
            delta = erase(
                model,
                self.concepts,
                self.method,
                seed=self.seed,
                out=run.folder,
                events=events,
                save_every=self.save_every,
            )
            events.close()
            if not (run.folder / "README.md").exists():
                state.write_bytes(run.folder / "README.md", model_card(delta.meta).encode())
        return delta


def _concepts(values: Mapping[str, Any], model: str) -> ConceptSet:
    from unteach.canvas import CANVAS
    from unteach.canvas import concepts as canvas
    from unteach.data.concepts import ConceptSet

    given = values.get("concepts")
    if given is None and not any(key in values for key in ONE_CONCEPT):
        raise ConfigError("nothing to erase was named: add --target and --anchor, or --concepts FILE")
    if isinstance(given, str):
        read = ConceptSet.load(given).to_dicts()
        records: list[Any] = [{key: value for key, value in one.items() if value} for one in read]
    else:
        one = {key: list(v) if isinstance(v := values[key], tuple) else v for key in ONE_CONCEPT if key in values}
        records = given or [one]
    made = ConceptSet.from_dicts(canvas.complete(records) if model == CANVAS else records)
    made.pairs()
    return made


def _dropped(plan: Plan) -> list[str]:
    """One line for each concept of which some captions give no pair."""
    lines = []
    for concept in plan.concepts:
        dropped = {reason: count for reason, count in concept.dropped().items() if count}
        if dropped:
            listed = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
            lines.append(f"'{concept.target}': of {len(concept.captions)} captions dropped: {listed}")
    return lines


def _beside(plan: Plan, model: Model, concepts: ConceptSet) -> str:
    """What the method adds to the pairs that are given, and how many prompts it really keeps."""
    from unteach.erase import Job

    job = Job(model=model, concepts=concepts, seed=plan.seed)
    more = len(job.pairs(plan.method.contexts)) - len(concepts.pairs())
    around = f"{more} more with random words around the name, " if more else ""
    return f"{around}{len(plan.method.retained(job))} prompts to keep"


def _dry(plan: Plan, model: Model, known: bool) -> None:
    from unteach.core import masks, reading
    from unteach.core.text import duration, size
    from unteach.erase.estimate import estimate
    from unteach.erase.pairs import readable

    shown: dict[str, Any] = plan.to_dict() | ({} if plan.out is None else {"out": str(plan.out)})
    say(reading.to_yaml(shown) + "\n")
    say(masks.table(model.denoiser, dict.fromkeys(plan.method.selected(model), "would move")) + "\n")
    offered = sum(len(c.captions) for c in plan.concepts)
    read = readable(model, plan.concepts)
    noops = sum(sum(c.dropped().values()) for c in plan.concepts) + read.captions
    pairs = f"{len(read.concepts.pairs())} prompt pairs"
    say(f"{pairs}; {noops} of {offered} captions are no-ops and left out" if offered else f"{pairs}; 0 no-ops")
    for line in (*_dropped(plan), *read.left_out):
        say(f"  {line}")
    say(_beside(plan, model, read.concepts))
    cost = estimate(model, plan.method, read.concepts)
    parts = (("drawing", cost.drawing), ("training", cost.training), ("checking the result", cost.checking))
    listed = ", ".join(f"{duration(seconds)} {name}" for name, seconds in parts)
    say(f"estimate: {duration(cost.seconds)} ({listed}), {size(cost.memory)} of memory")
    say(f"  only an estimate: {cost.how}")
    if known:
        say(f"{plan.out} holds this run already: it would go on")
    say("dry run: nothing was written")
