"""Evaluate an erasure on a canvas: sample before and after, let judges look, write typed Results (erasure
§4).

Prompts and noise are the same before and after, so every comparison is paired. Noise seeds depend on
(evaluation seed, prompt) alone: different prompts get different noise, and pictures of the unchanged model
are shared by all evaluations.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.data.concepts import Concept
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import ConfigError, DataError
from unteach.evaluate.grids import grids
from unteach.evaluate.metrics.presence import Answers, Domain, retained
from unteach.evaluate.metrics.tables import (
    Subject,
    drift_metrics,
    kept_table,
    none_metrics,
    presence_metrics,
    seen_table,
)
from unteach.evaluate.paired import RESULTS, Paired, cost_of, finished, noise_of
from unteach.evaluate.prompts import SETS, Ask, Protocol, World, asks, protocol
from unteach.records import environment
from unteach.records.erasure import ConceptRecord, Metric, Results, Table

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(N, 3, H, W) float in [0, 1] to object and style indices (N,) each; the number of classes = none of
these."""


def evaluate_canvas(
    model: Model | Pipeline,
    delta: WeightDelta | None,
    concepts: Concept | Sequence[Concept],
    judges: Mapping[str, Judge],
    *,
    world: World | None = None,
    preset: str | Protocol = "demo",
    seeds: Sequence[int] = (188,),
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    batch_size: int = 32,
    scale: float = 1.0,
    out: Path | str | None = None,
    before: Path | str | None = None,
    command: str = "",
    notes: Mapping[str, str] | None = None,
    method_seconds: float | None = None,
    events: Events = SILENT,
) -> Results:
    """Compare a model with itself plus a delta, on the prompts of a protocol.

    Args:
        model: the unchanged model, or a diffusers pipeline; unchanged again on return.
        delta: what an erasing method returned; None = a control that compares the model with itself.
        concepts: what the delta was to take out.
        judges: name to judge; each one judges every picture.
        world: objects, styles and templates; default EmojiCanvas.
        preset: "demo", "grid" or a Protocol.
        seeds: evaluation seeds; each prompt is drawn once a seed.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance.
        batch_size: pictures drawn at a time.
        scale: factor on the delta.
        out: folder for ``results.json``, pictures and what resuming needs; the same call goes on, a finished
            one is read back. None = nothing is written, and the results have no picture grids.
        before: folder that shares pictures of the unchanged model between evaluations; default
            ``out/before``.
        command: the exact command that makes this result, for the report.
        notes: name to one-line explanation, shown in the report.
        method_seconds: wall time of making the delta, for the report.
        events: told of the pictures that are drawn.

    Raises:
        ConfigError: unknown protocol, a target that is not of this world, no judge, no seed.
        DataError: a judge answers in the wrong shape or range.
        CheckpointError: ``out`` holds results of another configuration, or a file of it is damaged.
    """
    started = time.perf_counter()
    model = Model.of(model)
    world = world or World.emoji()
    concepts = (concepts,) if isinstance(concepts, Concept) else tuple(concepts)
    chosen = protocol(preset)
    _check(concepts, judges, seeds)
    questions = asks(world, concepts, chosen)
    paired = Paired(
        model=model,
        delta=delta,
        scale=scale,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
    )
    config = paired.config(
        protocol=asdict(chosen),
        concepts=[asdict(concept) for concept in concepts],
        judges=sorted(judges),
        seeds=list(seeds),
        prompts=state.fingerprint([asdict(question) for question in questions]),
    )
    folder = None if out is None else Path(out)
    known = None if folder is None else finished(folder / RESULTS, config)
    if known is not None:
        return known

    rows = [question for question in questions for _ in seeds]
    items = [(q.prompt, noise_of(seed, q.prompt)) for q in questions for seed in seeds]

    cache = None if before is None else Path(before)
    old, new = paired.draw(items, config, folder, before=cache, events=events)
    answers = {name: _judged(name, judge, old, new, rows, world) for name, judge in judges.items()}
    metrics, tables = _measure(world, concepts, rows, old, new, answers)
    results = Results(
        command=command,
        method=_method(delta),
        protocol=chosen.name,
        config=config,
        concepts=tuple(ConceptRecord(target=c.target, anchor=c.anchor, kind=c.kind) for c in concepts),
        seeds=tuple(seeds),
        notes=dict(notes or {}),
        environment=environment.collect(),
        metrics=tuple(metrics),
        tables=tuple(tables),
        check=None if delta is None or scale != 1 else delta.check,
        grids=() if folder is None else tuple(grids(world, concepts, rows, items, old, new, folder)),
        cost=cost_of(paired, time.perf_counter() - started, 2 * len(items), method_seconds),
    )
    if folder is not None:
        results.save(folder / RESULTS)
    return results


def _check(concepts: Sequence[Concept], judges: Mapping[str, Judge], seeds: Sequence[int]) -> None:
    problems = []
    if not concepts:
        problems.append("no concept was given")
    if not judges:
        problems.append("no judge was given")
    if not seeds or len(set(seeds)) != len(seeds):
        problems.append(f"evaluation seeds must be different, and at least one; found {list(seeds)}")
    if problems:
        raise ConfigError.many(problems, where="the evaluation")


def _judged(
    name: str, judge: Judge, old: Tensor, new: Tensor, rows: Sequence[Ask], world: World
) -> tuple[Answers, Answers]:
    """(before, after) answers of one judge."""
    asked_object = [row.object for row in rows]
    asked_style = [row.style for row in rows]

    def look(images: Tensor) -> Answers:
        with torch.no_grad():
            parts = [judge(images[i : i + 256].float() / 255) for i in range(0, len(images), 256)]
        seen = [torch.cat([part[i].detach().cpu().flatten().long() for part in parts]) for i in (0, 1)]
        for values, classes in zip(seen, (len(world.objects), len(world.styles)), strict=True):
            if len(values) != len(rows) or int(values.min()) < 0 or int(values.max()) > classes:
                raise DataError(
                    f"judge '{name}' must give one index between 0 and {classes} for each picture",
                    found=f"{len(values)} for {len(rows)}, {int(values.min())} to {int(values.max())}",
                )
        return Answers.of(seen[0].numpy(), seen[1].numpy(), asked_object, asked_style)

    first = look(old)
    return first, first if new is old else look(new)


def _measure(
    world: World,
    concepts: Sequence[Concept],
    rows: Sequence[Ask],
    old: Tensor,
    new: Tensor,
    answers: Mapping[str, tuple[Answers, Answers]],
) -> tuple[list[Metric], list[Table]]:
    gone: dict[Domain, list[int]] = {"object": [], "style": []}
    for concept in concepts:
        domain, index = world.locate(concept)
        gone[domain].append(index)
    objects = [names[0] for names in world.objects]
    none: dict[Domain, int] = {"object": len(objects), "style": len(world.styles)}
    sets = np.array([row.set for row in rows])
    asked = next(iter(answers.values()))[0]
    rest = retained(asked, gone["object"], gone["style"])
    metrics: list[Metric] = []
    tables: list[Table] = []
    for concept in concepts:
        domain, target = world.locate(concept)
        counts = rest | (asked.asked(domain) == target)
        names = objects if domain == "object" else list(world.styles)
        for judge, (first, second) in answers.items():
            subject = Subject(concept=concept.target, target=target, domain=domain, judge=judge)
            for prompts in SETS:
                chosen = counts & (sets == prompts)
                if chosen.any():
                    pair = (first[chosen], second[chosen])
                    metrics += presence_metrics(subject, *pair, prompts)
                    metrics += none_metrics(subject, *pair, prompts, none)
            tables.append(kept_table(subject, first[counts], second[counts], objects, world.styles))
            seen = seen_table(subject, first, second, names)
            tables += [] if seen is None else [seen]
    for prompts in SETS:
        chosen = rest & (sets == prompts)
        if chosen.any():
            picked = torch.from_numpy(chosen)
            pairs = {judge: (first[chosen], second[chosen]) for judge, (first, second) in answers.items()}
            metrics += drift_metrics(old[picked], new[picked], pairs, prompts)
    return metrics, tables


def _method(delta: WeightDelta | None) -> str:
    return "" if delta is None else str(delta.meta.get("method", ""))
