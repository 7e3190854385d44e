"""What an erasure would cost, estimated by timing one forward and one backward pass on the real model."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unteach.core import seeds
from unteach.data.concepts import ConceptSet
from unteach.diffusion.model import Model
from unteach.erase import Job, Method
from unteach.erase import check as checks
from unteach.erase.train import Trained, training
from unteach.records.environment import peak_rss

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of drawing the training pictures and of training, and the memory that a step takes.

    Attributes:
        drawing: seconds.
        training: seconds; for a closed form, of encoding its prompts.
        checking: seconds that the check at the end takes.
        memory: peak bytes: of the device where torch counts them, else resident memory of this process.
        how: what was timed, in words.
    """

    drawing: float
    training: float
    checking: float
    memory: int
    how: str

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.drawing + self.training + self.checking


def estimate(model: Model, method: Method, concepts: ConceptSet) -> Estimate:
    """Time the passes that a step consists of, at the method's batch size, and multiply.

    The discriminator, the optimizer and checkpoints are not counted, so the truth lies somewhat above. The model
    is as before afterwards.

    Raises:
        ModelError: the method cannot edit this denoiser.
    """
    if isinstance(method, Trained):
        return _trained(model, method, concepts)
    pairs = concepts.pairs()
    model.encode([pairs[0].anchor])
    model.forget_prompts()
    spent = _timed(model, lambda: model.encode([pairs[0].target]))
    count = 2 * len(pairs) + len(method.retained(Job(model=model, concepts=concepts)))
    how = f"{count} prompts × {spent:.3g} s for one (measured); the solving itself is not counted"
    looking = _checking(model, concepts)
    return Estimate(drawing=0.0, training=count * spent, checking=looking, memory=_memory(model), how=how)


def _trained(model: Model, method: Trained, concepts: ConceptSet) -> Estimate:
    pairs, batch = concepts.pairs(), method.batch_size
    x_t = seeds.randn(model.latent_shape, 0, "trial", 0, range(batch)).to(model.device)
    cond = model.encode([pairs[i % len(pairs)].target for i in range(batch)])
    t = model.num_timesteps // 2
    with torch.inference_mode(False), training(model, method.selected(model)) as student:

        def forward() -> object:
            with torch.no_grad():
                return model.predict(x_t, t, cond)

        def both() -> object:
            with torch.enable_grad():
                return student.grads(model.predict(x_t, t, cond).float().square().mean())

        forward()
        once, twice = (min(_timed(model, work) for _ in range(3)) for work in (forward, both))
    teachers = 2 if method.retain_target == "teacher" else 1
    updates = method.updates()
    steps = updates * (2 * twice + teachers * once) + (method.steps - updates) * 2 * once
    guided = 2 if method.guidance_scale > 1 else 1
    pictures = method.images + method.retain_images
    drawing = pictures * method.num_inference_steps * guided * once / batch
    how = f"at batch {batch} one forward pass took {once:.3g} s, one forward and backward pass {twice:.3g} s"
    looking = _checking(model, concepts)
    return Estimate(drawing=drawing, training=steps, checking=looking, memory=_memory(model), how=how)


def _checking(model: Model, concepts: ConceptSet) -> float:
    batch = 8
    x_t = seeds.randn(model.latent_shape, 0, "trial", 0, range(batch)).to(model.device)
    cond = model.encode([concepts.pairs()[0].anchor])
    with torch.no_grad():
        model.predict(x_t, model.num_timesteps // 2, cond)
        spent = min(_timed(model, lambda: model.predict(x_t, model.num_timesteps // 2, cond)) for _ in range(3))
    return checks.passes(len(concepts)) * spent / batch


def _timed(model: Model, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


def _memory(model: Model) -> int:
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    return peak_rss()
