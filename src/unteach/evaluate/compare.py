"""An evaluation without judges, for any pipeline: paired drift of prompts to keep, and pictures before and after."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.core.run import same
from unteach.core.seeds import integer
from unteach.data.concepts import ConceptSet
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.diffusion.sample import sample
from unteach.evaluate.grids import png
from unteach.evaluate.image_cache import ImageStore, Item
from unteach.evaluate.metrics.tables import drift_metrics
from unteach.records import environment
from unteach.records.erasure import ConceptRecord, Cost, Grid, Results

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
        scale: of the delta.
        out: folder of results.json and pictures.
        command: for the record.
        method_seconds: for the record.
        events: told of the pictures that are drawn.

    Raises:
        CheckpointError: ``out`` holds another evaluation, or cannot be written.
    """
    begin = time.perf_counter()
    sampling = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "model": model.digest(fresh=True),
        "family": model.family,
    }
    change = {"digest": state.digest(delta.tensors), "scale": scale}
    targets = {concept.target: [pair.target for pair in concept.pairs()[:SHOWN]] for concept in concepts}
    record = {
        "sampling": sampling,
        "delta": change,
        "delta_meta": delta.meta,
        "concepts": concepts.to_dicts(),
        "prompts": list(prompts),
        "seeds": list(seeds),
    }
    config = json.loads(state.canonical(record))
    path = out / "results.json"
    if path.exists():
        old = Results.load(path)
        same(path, old.config, config, what="evaluation")
        return old
    kept = _items(prompts, seeds)
    shown = {target: _items(texts, seeds[:1]) for target, texts in targets.items()}
    items = list(dict.fromkeys([*kept, *(item for each in shown.values() for item in each)]))

    def draw(texts: list[str], noise: list[int]) -> Tensor:
        return sample(
            model,
            texts,
            noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
        )

    stores = [ImageStore(out / when, {**sampling, "delta": d}) for when, d in (("before", None), ("after", change))]
    before = stores[0].fetch(items, draw, chunk=batch_size, events=events, label="before")
    with delta.apply(model, scale=scale):
        after = stores[1].fetch(items, draw, chunk=batch_size, events=events, label="after")
    old_kept, new_kept = (store.fetch(kept, draw) for store in stores)
    pictures = {item: (before[i], after[i]) for i, item in enumerate(items)}
    results = Results(
        command=command,
        method=str(delta.meta.get("method", "")),
        protocol="drift",
        config=config,
        concepts=tuple(ConceptRecord(target=c.target, anchor=c.anchor, kind=c.kind) for c in concepts),
        seeds=tuple(seeds),
        environment=environment.collect(),
        metrics=tuple(drift_metrics(old_kept, new_kept, {}, "prompts to keep")),
        check=delta.check if scale == 1 else None,
        grids=tuple(_grids(shown, kept, pictures, out)),
        cost=Cost(
            seconds=time.perf_counter() - begin,
            images=2 * len(items),
            method_seconds=method_seconds,
            parameters_moved=delta.size,
            parameters_total=sum(parameter.numel() for parameter in model.denoiser.parameters()),
            delta_bytes=sum(tensor.numel() * tensor.element_size() for tensor in delta.tensors.values()),
            peak_rss_bytes=environment.peak_rss() or None,
        ),
    )
    results.save(path)
    return results


def _items(prompts: Sequence[str], seeds: Sequence[int]) -> list[Item]:
    return [(prompt, integer(seed, "evaluate", prompt)) for prompt in prompts for seed in seeds]


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
