"""Erase concepts from a text-to-image model: ``erase(model, concepts, "doco")`` gives a weight delta."""

import dataclasses
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import PartialState

from unteach.core.events import SILENT, Events
from unteach.core.run import same
from unteach.data.concepts import Concept, ConceptSet
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.erase import ablate, doco, uce  # each registers its method
from unteach.erase.check import Check, Finding, warn
from unteach.erase.job import Job
from unteach.erase.kept import few
from unteach.erase.method import Method, make, methods
from unteach.erase.pairs import readable
from unteach.errors import ConfigError

__all__ = [
    "Check",
    "Concept",
    "ConceptSet",
    "Finding",
    "Job",
    "Method",
    "ablate",
    "doco",
    "erase",
    "make",
    "methods",
    "uce",
]

log = logging.getLogger(__name__)


def erase(
    model: Model | Pipeline,
    concepts: Concept | Mapping[str, Any] | Iterable[Concept | Mapping[str, Any]],
    method: Method | str = "doco",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    events: Events = SILENT,
    save_every: int = 25,
    check: bool = True,
    **settings: Any,
) -> WeightDelta:
    """Erase concepts and return what must be added to the weights; the model itself is unchanged on return.

    At the end the model's own outputs are looked at (:class:`Check`): ``delta.check`` says what was found, and anything
    but "erased, the rest kept" is logged as a warning.

    Args:
        model: what :func:`unteach.diffusion.load` gave, or a diffusers pipeline, whose parts are then frozen.
        concepts: one or several, as :class:`Concept` or as mappings of its fields.
        method: a method's or preset's name, or a configured :class:`Method`.
        seed: equal seeds give equal deltas.
        out: folder for the stage files; running the same call again goes on where it stopped, and returns the
            finished delta if there is one.
        events: told of the stages and their steps; an exception from it stops the run.
        save_every: training steps between two checkpoints.
        check: look at the result. Without it nobody knows whether it worked.
        settings: settings of a method given by name.

    Raises:
        ConfigError: unknown method or settings, concepts with mistakes; lists them all.
        DataError: the model cannot tell the target from the anchor in any prompt (:mod:`unteach.erase.pairs`).
        ModelError: the method cannot edit this denoiser, or its weights are wrapped (a loaded LoRA, fused projections).
        CheckpointError: ``out`` holds another run, or is damaged.
        NumericsError: training diverged; the last good checkpoint is kept.
    """
    if isinstance(method, str):
        method = make(method, **settings)
    elif settings:
        raise ConfigError("settings go with a method's name, not with a configured method", found=", ".join(settings))
    model = Model.of(model, edit=True)
    model.digest(fresh=True)
    job = Job(
        model=model,
        concepts=readable(model, ConceptSet.of(concepts)).concepts,
        seed=seed,
        out=None if out is None else Path(out),
        events=events,
        save_every=save_every,
    )
    path = None if job.out is None else job.out / "delta.safetensors"
    record, kept = job.record(method.to_dict()), None
    if path is not None and path.exists():
        kept = _finished(path, record)
        if kept.check is not None or not check:
            return kept
    pairs, stay = job.pairs(method.contexts), method.retained(job)
    for line in few(len(job.concepts), len(pairs), len(stay)):
        log.warning("%s", line)
    # Whatever mode the caller is in, methods that train need gradients.
    with torch.inference_mode(False), torch.enable_grad():
        delta = method.run(job) if kept is None else kept
        own = len(job.concepts.pairs())
        meta = {**delta.meta, "prompts": {"pairs": own, "contexts": len(pairs) - own, "kept": len(stay)}}
        if check:
            asked = [*stay, *(prompt for pair in pairs for prompt in (pair.anchor, pair.target))]
            found = Check.of(model, job.concepts, seed, avoid=asked).measure(delta)
            meta["check"] = found.to_dict()
            warn(found)
        delta = dataclasses.replace(delta, meta=meta)
    if path is not None and PartialState().is_main_process:
        delta.save(path)
    return delta


def _finished(path: Path, record: dict[str, Any]) -> WeightDelta:
    delta = WeightDelta.load(path)
    same(path, delta.meta, record, keys=tuple(record))
    return delta


class _Package(ModuleType):
    """This package, called as ``unteach.erase(...)``: the function of the same name."""

    def __call__(self, *args: Any, **settings: Any) -> WeightDelta:
        return erase(*args, **settings)


sys.modules[__name__].__class__ = _Package
