"""``unteach evaluate``: judges on the bundled model; pictures and paired drift on any other pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unteach.canvas.judges import judges
from unteach.commands.compare import compare
from unteach.commands.erase import seconds_spent
from unteach.commands.options import Evaluate
from unteach.commands.plan import CANVAS, Mistakes, device_of, dtype_of, folder_of, is_canvas
from unteach.commands.terminal import drifts, interactive, say, use_threads, verdicts, wrote
from unteach.core import places, state
from unteach.data import tables
from unteach.data.concepts import ConceptSet
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.loading import inspect
from unteach.diffusion.model import Model, load
from unteach.errors import ConfigError
from unteach.evaluate.prompts import Protocol, World, protocol
from unteach.evaluate.suite import evaluate_canvas
from unteach.records.erasure import Results
from unteach.report import model_card, view

__all__ = ["Subject", "on_canvas", "refresh_card", "run"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated.

    Attributes:
        model: "canvas" or a folder, as given.
        delta: the change of weights.
        concepts: what it was to erase.
        out: folder of the results.
        device: a torch device.
        dtype: of the model.
        erased: folder of the run that made the delta, if it is known.
    """

    model: str
    delta: WeightDelta
    concepts: ConceptSet
    out: Path
    device: str
    dtype: torch.dtype
    erased: Path | None

    @property
    def seconds(self) -> float | None:
        """What making the delta took."""
        return None if self.erased is None else seconds_spent(self.erased)


def run(options: Evaluate, command: str) -> int:
    """Evaluate and print the verdict."""
    subject = _subject(options)
    use_threads(options.threads, small=is_canvas(subject.model))
    model = load(folder_of(subject.model), dtype=subject.dtype, device=subject.device)
    if is_canvas(subject.model):
        say(f"evaluating {_targets(subject.concepts)} on {subject.model}: judges {', '.join(judges())}")
        results = on_canvas(subject, model, options, command, progress=interactive())
    else:
        prompts = _prompts(options, subject)
        say(f"comparing pictures of {subject.model}: no judge knows what it draws, so drift and grids only")
        drawing = _drawing(subject, options, command, interactive())
        with places.alone(subject.out):
            results = compare(model, subject.delta, subject.concepts, prompts, **drawing)
    paths = [subject.out / "results.json"]
    if subject.erased is not None and options.scale == 1.0:
        paths += [refresh_card(subject.erased, subject.delta, results)]
    if is_canvas(subject.model):
        say(verdicts(results))
        say()
    say(drifts(results))
    say(f"{results.cost.images} pictures, {view.duration(results.cost.seconds)}")
    wrote(paths)
    say(f"make a page of it: unteach report {subject.out} --out report.html")
    return 0


def on_canvas(
    subject: Subject,
    model: Model,
    options: Evaluate,
    command: str,
    *,
    choice: Protocol | None = None,
    progress: bool = False,
) -> Results:
    """The canvas suite with every bundled judge."""
    found = judges()
    with places.alone(subject.out):
        return evaluate_canvas(
            model,
            subject.delta,
            list(subject.concepts),
            found,
            preset=choice or options.preset,
            notes={name: judge.describe() for name, judge in found.items()},
            **_drawing(subject, options, command, progress),
        )


def _drawing(subject: Subject, options: Evaluate, command: str, progress: bool) -> dict[str, Any]:
    """What every kind of evaluation is told of how to draw, where to write and what it reports."""
    return {
        "seeds": options.seeds,
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "batch_size": options.batch_size,
        "scale": options.scale,
        "out": subject.out,
        "command": command,
        "method_seconds": subject.seconds,
        "progress": progress,
    }


def refresh_card(erased: Path, delta: WeightDelta, results: Results) -> Path:
    """Write the model card of a run anew, with what was measured."""
    return state.write_bytes(erased / "README.md", model_card(delta.meta, [results]).encode())


def _subject(options: Evaluate) -> Subject:
    """What the options name; all mistakes are reported together.

    Raises:
        UnteachError: one mistake, or a ConfigError that lists them.
    """
    found = Mistakes()
    config: dict[str, Any] = {}
    if options.erased is not None:
        config = found.catch(lambda: _config(options.erased)) or {}
    elif options.delta is None:
        found.say("nothing to evaluate was named: add --run DIR, or --delta FILE")
    model = options.model or str(config.get("model", CANVAS))
    found.catch(lambda: inspect(folder_of(model)))
    delta = found.catch(lambda: _delta(options))
    concepts = found.catch(lambda: _concepts(options, delta)) if delta is not None else None
    if concepts is not None and is_canvas(model):
        found.catch(lambda: [World.emoji().locate(concept) for concept in concepts])
    device = found.catch(lambda: device_of(options.device or str(config.get("device", "auto"))))
    dtype = found.catch(lambda: dtype_of(options.dtype or str(config.get("dtype", "float32"))))
    found.catch(lambda: protocol(options.preset))
    for name, value in (("threads", options.threads), ("num-inference-steps", options.num_inference_steps)):
        if value is not None and value < 1:
            found.say(f"--{name} must be at least 1, found {value}")
    if options.batch_size < 1:
        found.say(f"--batch-size must be at least 1, found {options.batch_size}")
    out = options.out or (options.erased / "evaluation" if options.erased is not None else None)
    if out is None:
        found.say("no folder for the results was given: add --out DIR")
    found.stop()
    if delta is None or concepts is None or device is None or dtype is None or out is None:
        raise ConfigError("the evaluation is not complete", fix="see unteach evaluate --help")
    return Subject(
        model=model, delta=delta, concepts=concepts, out=out, device=device, dtype=dtype, erased=options.erased
    )


def _config(folder: Path | None) -> dict[str, Any]:
    path = Path(folder or "") / "config.json"
    if not path.exists():
        raise ConfigError(
            f"'{folder}' is not the folder of an erasure: it has no config.json",
            fix="give the --out folder of `unteach erase`, or --model, --delta and --out",
        )
    return state.read_table(path)


def _delta(options: Evaluate) -> WeightDelta | None:
    path = options.delta
    if path is None and options.erased is not None:
        path = options.erased / "delta.safetensors"
        if not path.exists() and (options.erased / "config.json").exists():
            raise ConfigError(f"'{options.erased}' is not finished", fix="run its `unteach erase` again: it goes on")
    return None if path is None else WeightDelta.load(path)


def _concepts(options: Evaluate, delta: WeightDelta) -> ConceptSet:
    if options.concepts is not None:
        return ConceptSet.load(options.concepts)
    records = delta.meta.get("concepts")
    if not isinstance(records, list) or not records:
        raise ConfigError("the delta does not say what it was to erase", fix="add --concepts FILE")
    return ConceptSet.from_dicts(records, where="the delta's concepts")


def _prompts(options: Evaluate, subject: Subject) -> list[str]:
    """The prompts to keep on a pipeline that no judge knows."""
    if options.prompts is not None:
        found, unused = tables.prompts(options.prompts)
        if unused:
            say(
                f"{options.prompts}: {len(found)} prompts, from the column 'prompt'; not used: {', '.join(unused[:12])}"
            )
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


def _targets(concepts: Sequence[Any]) -> str:
    return ", ".join(f"'{concept.target}'" for concept in concepts)
