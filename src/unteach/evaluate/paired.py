"""Pictures of a model before and after a delta, from the same prompts and noise, kept so that a run goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.core.run import same
from unteach.core.seeds import integer
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.diffusion.sample import sample
from unteach.evaluate.image_cache import ImageStore, Item
from unteach.records import environment
from unteach.records.erasure import Cost, Results

__all__ = ["RESULTS", "Paired", "cost_of", "finished", "noise_of"]

RESULTS = "results.json"
"""File name of the results inside an evaluation's folder."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How pictures are drawn.

    Attributes:
        model: the unchanged model; unchanged again after :meth:`draw`.
        delta: the change; None compares the model with itself.
        scale: factor on the delta.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        batch_size: pictures at a time.
    """

    model: Model
    delta: WeightDelta | None
    scale: float = 1.0
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    batch_size: int = 32

    def config(self, **more: Any) -> dict[str, Any]:
        """Everything that decides the pictures but prompts and seeds, with what else decides the results."""
        sampling = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "model": self.model.digest(fresh=True),
            "family": self.model.family,
        }
        change = None if self.delta is None else {"digest": state.digest(self.delta.tensors), "scale": self.scale}
        record = {
            "sampling": sampling,
            "delta": change,
            "delta_meta": {} if self.delta is None else self.delta.meta,
            **more,
        }
        plain: dict[str, Any] = json.loads(state.canonical(record))
        return plain

    def draw(
        self,
        items: Sequence[Item],
        config: Mapping[str, Any],
        out: Path | None,
        *,
        before: Path | None = None,
        events: Events = SILENT,
    ) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, H, W) uint8 before and after; those that are there already are not drawn again.

        Args:
            items: (prompt, noise seed) pairs.
            config: what :meth:`config` gave.
            out: folder of both; None keeps nothing.
            before: another folder for those of the unchanged model, shared between evaluations.
            events: told of the pictures that are drawn.

        Raises:
            CheckpointError: a file of pictures is damaged.
        """

        def drawn(prompts: list[str], noise: list[int]) -> Tensor:
            return sample(
                self.model,
                prompts,
                noise,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                batch_size=self.batch_size,
            )

        cache = before or (None if out is None else out / "before")
        store = ImageStore(cache, {**config["sampling"], "delta": None})
        old = store.fetch(items, drawn, chunk=self.batch_size, events=events, label="before")
        if self.delta is None:
            return old, old
        store = ImageStore(None if out is None else out / "after", {**config["sampling"], "delta": config["delta"]})
        with self.delta.apply(self.model, scale=self.scale):
            return old, store.fetch(items, drawn, chunk=self.batch_size, events=events, label="after")


def noise_of(seed: int, prompt: str) -> int:
    """The noise seed of a prompt under an evaluation seed: equal prompts have equal noise in all evaluations."""
    return integer(seed, "evaluate", prompt)


def finished(path: Path, config: Mapping[str, Any]) -> Results | None:
    """The whole results that a file holds; None when there are none yet.

    Raises:
        CheckpointError: they are of another configuration.
    """
    if not path.exists():
        return None
    results = Results.load(path)
    same(path, results.config, config, what="evaluation")
    return results if results.status == "complete" else None


def cost_of(paired: Paired, seconds: float, images: int, method_seconds: float | None) -> Cost:
    """What an evaluation cost, and what its delta is."""
    delta = paired.delta
    config = {} if delta is None else delta.meta.get("config", {})
    steps = config.get("steps") if isinstance(config, dict) else None
    tensors = [] if delta is None else list(delta.tensors.values())
    return Cost(
        seconds=seconds,
        images=images,
        method_seconds=method_seconds,
        method_steps=steps if isinstance(steps, int) else None,
        parameters_moved=sum(tensor.numel() for tensor in tensors),
        parameters_total=sum(parameter.numel() for parameter in paired.model.denoiser.parameters()),
        delta_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        peak_rss_bytes=environment.peak_rss() or None,
    )
