"""An evaluation without judges, for any pipeline: paired drift of prompts to keep, and pictures before and after."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.data.concepts import ConceptSet
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.evaluate.grids import png
from unteach.evaluate.image_cache import Item
from unteach.evaluate.metrics.tables import drift_metrics
from unteach.evaluate.paired import RESULTS, Paired, cost_of, finished, noise_of
from unteach.records import environment
from unteach.records.erasure import ConceptRecord, Grid, Results

__all__ = ["compare"]

SHOWN = 8
"""Most pictures of a grid."""


def compare(
    model: Model,
    delta: WeightDelta,
    concepts: ConceptSet,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int,
    scale: float,
    out: Path,
    command: str = "",
    method_seconds: float | None = None,
    events: Events = SILENT,
) -> Results:
    """Draw the prompts to keep and some of each target, with and without the delta, same noise; write ``out``.

    The same call goes on where it stopped; a finished one is read back.

    Args:
        model: the unchanged model; unchanged again on return.
        delta: the change.
        concepts: what it was to erase: its first prompts are shown, not measured.
        prompts: prompts to keep: they are measured.
        seeds: evaluation seeds.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        batch_size: pictures at a time.
        scale: factor on the delta.
        out: folder of results.json and pictures.
        command: for the record.
        method_seconds: for the record.
        events: told of the pictures that are drawn.

    Raises:
        CheckpointError: ``out`` holds another evaluation, or cannot be written.
    """
    begin = time.perf_counter()
    paired = Paired(
        model=model,
        delta=delta,
        scale=scale,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
    )
    targets = {concept.target: [pair.target for pair in concept.pairs()[:SHOWN]] for concept in concepts}
    config = paired.config(concepts=concepts.to_dicts(), prompts=list(prompts), seeds=list(seeds))
    known = finished(out / RESULTS, config)
    if known is not None:
        return known
    kept = _items(prompts, seeds)
    shown = {target: _items(texts, seeds[:1]) for target, texts in targets.items()}
    items = list(dict.fromkeys([*kept, *(item for each in shown.values() for item in each)]))

    before, after = paired.draw(items, config, out, events=events)
    place = [items.index(item) for item in kept]
    pictures = {item: (before[i], after[i]) for i, item in enumerate(items)}
    results = Results(
        command=command,
        method=str(delta.meta.get("method", "")),
        protocol="drift",
        config=config,
        concepts=tuple(ConceptRecord(target=c.target, anchor=c.anchor, kind=c.kind) for c in concepts),
        seeds=tuple(seeds),
        environment=environment.collect(),
        metrics=tuple(drift_metrics(before[place], after[place], {}, "prompts to keep")),
        check=delta.check if scale == 1 else None,
        grids=tuple(_grids(shown, kept, pictures, out)),
        cost=cost_of(paired, time.perf_counter() - begin, 2 * len(items), method_seconds),
    )
    results.save(out / RESULTS)
    return results


def _items(prompts: Sequence[str], seeds: Sequence[int]) -> list[Item]:
    return [(prompt, noise_of(seed, prompt)) for prompt in prompts for seed in seeds]


def _grids(
    shown: dict[str, list[Item]], kept: Sequence[Item], pictures: dict[Item, tuple[Tensor, Tensor]], out: Path
) -> Iterator[Grid]:
    for target, items in [*shown.items(), ("", list(kept[:SHOWN]))]:
        rows: list[tuple[str, ...]] = []
        for place, when in enumerate(("before", "after")):
            paths = [f"images/{state.fingerprint(list(item))[:16]}-{when}.png" for item in items]
            for path, item in zip(paths, items, strict=True):
                state.write_bytes(out / path, png(pictures[item][place]))
            rows.append(tuple(paths))
        yield Grid(
            name=f"{target or 'the rest'}: {'its own prompts' if target else 'prompts to keep'}",
            role="target" if target else "retained",
            rows=("before", "after"),
            columns=tuple(prompt for prompt, _ in items),
            images=tuple(rows),
            captions=tuple(prompt for prompt, _ in items),
            seeds=tuple(seed for _, seed in items),
            prompts="its own prompts" if target else "prompts to keep",
            concept=target,
        )
