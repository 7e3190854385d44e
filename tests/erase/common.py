"""Shared by the tests of erasing: a concept the toys can spell, and settings that make any method quick."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unteach.diffusion import Model, WeightDelta, sample
from unteach.erase import Concept, ConceptSet, Job, Method, methods
from unteach.erase.anchors import draw
from unteach.erase.train import Run, Student, Trained

CONCEPT = Concept(
    target="twemoji",
    anchor="openmoji",
    kind="style",
    prompts=("a {} dog", "{} cat"),
    retain=("a noto dog", "a red car", "a mono cat"),
)
QUICK: dict[str, Any] = {
    "steps": 4,
    "warm_up": 1,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "d_learning_rate": 1e-3,
    "d_width": 8,
    "images": 4,
    "retain_images": 4,
    "num_inference_steps": 2,
    "kept_words": 6,
    "contexts": 3,
}


PAPER: dict[str, Any] = {
    "kept_words": 0,
    "contexts": 0,
    "retain_target": "noise",
    "teacher": "current",
    "retain_weight": 0.0,
    "pair_weight": 0.0,
    "balance": False,
}
"""The papers' choices, where the defaults differ from them; tests of single equations start from these."""


def quick(name: str, **settings: Any) -> Method:
    """The method at toy cost: those of QUICK that it has, and ``settings``."""
    fields = {field.name for field in dataclasses.fields(methods[name])}
    return methods[name].build({key: value for key, value in QUICK.items() if key in fields} | settings)


def plain(name: str, **settings: Any) -> Method:
    """As :func:`quick`, with the papers' choices."""
    fields = {field.name for field in dataclasses.fields(methods[name])}
    return quick(name, **{key: value for key, value in PAPER.items() if key in fields} | settings)


def trained_names() -> list[str]:
    return [name for name in methods if issubclass(methods[name], Trained)]


def weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.denoiser.state_dict().items()}


def picture(model: Model, prompt: str = "a twemoji dog") -> Tensor:
    return sample(model, [prompt], [7], num_inference_steps=3, output="latent")


def same(a: WeightDelta, b: WeightDelta) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)


def start(method: Trained, model: Model, student: Student, out: Path | None = None) -> Run:
    """What a training run has at hand, for tests that look at one step from inside."""
    job = Job(model=model, concepts=ConceptSet.of(CONCEPT), seed=3, out=out)
    data = draw(
        job,
        images=method.images,
        retain_images=method.retain_images,
        num_inference_steps=method.num_inference_steps,
        guidance_scale=method.guidance_scale,
        batch_size=16,
        keep=method.retained(job),
    )
    optimizer = torch.optim.AdamW(method.groups(student), weight_decay=method.weight_decay)
    return Run(method, model, student, data, optimizer, job.seed)
