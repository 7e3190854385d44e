"""``unteach evaluate``: judges on the bundled model; pictures and paired drift on any other pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import arg

from unteach.commands.console import events, say, wrote
from unteach.commands.verb import RESUMES, Machine, Mistakes
from unteach.errors import ConfigError

if TYPE_CHECKING:
    from unteach.core.events import Events
    from unteach.data.concepts import ConceptSet
    from unteach.diffusion.delta import WeightDelta
    from unteach.diffusion.model import Model
    from unteach.evaluate.prompts import Protocol
    from unteach.records.erasure import Results

__all__ = ["Evaluate", "Subject"]


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
    dtype: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the run's, or float32)")] = None
    """float32, bfloat16 or float16: of every part of the model."""
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
        """Evaluate and print the verdict."""
        from unteach.canvas import folder_of, is_canvas
        from unteach.canvas.judges import judges
        from unteach.core.device import use_threads
        from unteach.core.text import duration
        from unteach.diffusion.model import load
        from unteach.report.terminal import drifts, verdicts

        subject = self.resolve()
        canvas = is_canvas(subject.model)
        prompts = [] if canvas else self._prompts(subject)
        use_threads(self.threads, small=canvas)
        model = load(folder_of(subject.model), dtype=subject.dtype, device=subject.device)
        if canvas:
            targets = ", ".join(f"'{concept.target}'" for concept in subject.concepts)
            say(f"evaluating {targets} on {subject.model}: judges {', '.join(judges())}")
        else:
            say(f"comparing pictures of {subject.model}: no judge knows what it draws, so drift and grids only")
        results = self.measure(subject, model, command, events(), prompts)
        paths = [subject.out / "results.json"]
        if subject.erased is not None and self.scale == 1.0:
            paths += [refresh_card(subject.erased, subject.delta, results)]
        if canvas:
            say(verdicts(results) + "\n")
        say(drifts(results))
        say(f"{results.cost.images} pictures, {duration(results.cost.seconds)}")
        wrote(paths)
        say(f"make a page of it: unteach report {subject.out} --out report.html")
        return 0

    def measure(
        self,
        subject: Subject,
        model: Model,
        command: str,
        events: Events,
        prompts: list[str] | None = None,
        protocol: Protocol | None = None,
    ) -> Results:
        """The canvas suite with every bundled judge; of another pipeline the drift of ``prompts``."""
        from unteach.canvas import is_canvas
        from unteach.canvas.judges import judges
        from unteach.core import places
        from unteach.core.run import seconds_spent
        from unteach.evaluate.compare import compare
        from unteach.evaluate.suite import evaluate_canvas

        how: dict[str, Any] = {
            "seeds": self.seeds,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "batch_size": self.batch_size,
            "scale": self.scale,
            "out": subject.out,
            "command": command,
            "method_seconds": None if subject.erased is None else seconds_spent(subject.erased),
            "events": events,
        }
        with places.alone(subject.out):
            if not is_canvas(subject.model):
                return compare(model, subject.delta, subject.concepts, prompts or [], **how)
            found = judges()
            notes = {name: judge.describe() for name, judge in found.items()}
            concepts = list(subject.concepts)
            return evaluate_canvas(
                model, subject.delta, concepts, found, preset=protocol or self.preset, notes=notes, **how
            )

    def resolve(self) -> Subject:
        """What the options name; all mistakes are reported together.

        Raises:
            UnteachError: one mistake, or a ConfigError that lists them.
        """
        from unteach.canvas import CANVAS, folder_of, is_canvas
        from unteach.core.device import device_of, dtype_of
        from unteach.diffusion.loading import inspect
        from unteach.evaluate.prompts import World, protocol

        found = Mistakes()
        config: dict[str, Any] = {}
        if self.erased is not None:
            config = found.catch(self._config) or {}
        elif self.delta is None:
            found.say("nothing to evaluate was named: add --run DIR, or --delta FILE")
        model = self.model or str(config.get("model", CANVAS))
        found.catch(lambda: inspect(folder_of(model)))
        delta = found.catch(self._delta)
        concepts = found.catch(lambda: self._concepts(delta)) if delta is not None else None
        if concepts is not None and is_canvas(model):
            found.catch(lambda: [World.emoji().locate(concept) for concept in concepts])
        device = found.catch(lambda: device_of(self.device or str(config.get("device", "auto"))))
        dtype = found.catch(lambda: dtype_of(self.dtype or str(config.get("dtype", "float32"))))
        found.catch(lambda: protocol(self.preset))
        given = {
            "threads": self.threads,
            "num-inference-steps": self.num_inference_steps,
            "batch-size": self.batch_size,
        }
        found.least({f"--{name}": value for name, value in given.items()}, 1)
        out = self.out or (self.erased / "evaluation" if self.erased is not None else None)
        if out is None:
            found.say("no folder for the results was given: add --out DIR")
        found.stop()
        if delta is None or concepts is None or device is None or dtype is None or out is None:
            raise ConfigError("the evaluation is not complete", fix="see unteach evaluate --help")
        return Subject(
            model=model, delta=delta, concepts=concepts, out=out, device=device, dtype=dtype, erased=self.erased
        )

    def _config(self) -> dict[str, Any]:
        from unteach.core import state

        path = (self.erased or Path()) / "config.json"
        if not path.exists():
            raise ConfigError(
                f"'{self.erased}' is not the folder of an erasure: it has no config.json",
                fix="give the --out folder of `unteach erase`, or --model, --delta and --out",
            )
        return state.read_table(path)

    def _delta(self) -> WeightDelta | None:
        from unteach.diffusion.delta import WeightDelta

        path = self.delta
        if path is None and self.erased is not None:
            path = self.erased / "delta.safetensors"
            if not path.exists() and (self.erased / "config.json").exists():
                raise ConfigError(f"'{self.erased}' is not finished", fix="run its `unteach erase` again: it goes on")
        return None if path is None else WeightDelta.load(path)

    def _concepts(self, delta: WeightDelta) -> ConceptSet:
        from unteach.data.concepts import ConceptSet

        if self.concepts is not None:
            return ConceptSet.load(self.concepts)
        records = delta.meta.get("concepts")
        if not isinstance(records, list) or not records:
            raise ConfigError("the delta does not say what it was to erase", fix="add --concepts FILE")
        return ConceptSet.from_dicts(records, where="the delta's concepts")

    def _prompts(self, subject: Subject) -> list[str]:
        """The prompts to keep on a pipeline that no judge knows."""
        from unteach.canvas import CANVAS
        from unteach.data import tables

        if self.prompts is not None:
            found, unused = tables.prompts(self.prompts)
            if unused:
                some = ", ".join(unused[:12])
                say(f"{self.prompts}: {len(found)} prompts, from the column 'prompt'; not used: {some}")
            return found
        kept = list(dict.fromkeys(prompt for concept in subject.concepts for prompt in concept.retain))
        if not kept:
            raise ConfigError(
                f"presets and judges are for the bundled model ('{CANVAS}') only; of other pipelines the drift of "
                "prompts to keep is measured, and there are none",
                found=f"model '{subject.model}', concepts without retain prompts",
                fix="add --prompts FILE, one prompt a line (or a CSV file with a column 'prompt')",
            )
        return kept


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated.

    Attributes:
        model: "canvas" or a folder, as given.
        delta: the change of weights.
        concepts: what it was to erase.
        out: folder of the results.
        device: a torch device.
        dtype: the model's number format.
        erased: folder of the run that made the delta, if it is known.
    """

    model: str
    delta: WeightDelta
    concepts: ConceptSet
    out: Path
    device: str
    dtype: Any
    erased: Path | None


def refresh_card(erased: Path, delta: WeightDelta, results: Results) -> Path:
    """Write the model card of a run anew, with what was measured."""
    from unteach.core import state
    from unteach.report import model_card

    return state.write_bytes(erased / "README.md", model_card(delta.meta, [results]).encode())
