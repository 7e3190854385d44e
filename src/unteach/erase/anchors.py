"""The training data of an erasure, drawn by the original model itself (doco §1.3; Concept Ablation).

No picture of what is to be erased is ever drawn or used: an *anchor* latent comes from an anchor prompt and
serves with both prompts of its pair; a *retain* latent comes from a prompt whose pictures must stay.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import PartialState
from torch import Tensor

from unteach.core import seeds, state
from unteach.core.run import same
from unteach.data.concepts import PromptPair
from unteach.diffusion.sample import sample
from unteach.erase.job import Job
from unteach.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Anchors:
    """Training data: clean latents with their prompts.

    Attributes:
        latents: drawn from the anchor prompts, ``(N, C, h, w)`` float32.
        pairs: the N prompt pairs, in the same order.
        retain_latents: drawn from the prompts to keep, ``(M, C, h, w)`` float32.
        retain: those M prompts.
    """

    latents: Tensor
    pairs: list[PromptPair]
    retain_latents: Tensor
    retain: list[str]


def draw(
    job: Job,
    *,
    images: int,
    retain_images: int,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int,
    keep: Sequence[str] | None = None,
    offered: Sequence[PromptPair] | None = None,
) -> Anchors:
    """Draw the training data, or read it from ``job.out`` if it is there; an interrupted drawing goes on.

    Args:
        job: the run. With several processes and ``job.out`` the first draws and the others read its file;
            without ``job.out`` each draws the same data for itself.
        images: number N of anchor latents; the pairs are taken in turn.
        retain_images: number M of retain latents; the retain prompts are taken in turn.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        batch_size: pictures at a time.
        offered: the pairs; None is those of the concepts.
        keep: the prompts to keep; None is those of the concepts (``ConceptSet.retain``).

    Raises:
        CheckpointError: ``job.out`` holds the data of another run, or damaged data.
    """
    offered = job.concepts.pairs() if offered is None else offered
    kept = list(job.concepts.retain() if keep is None else keep)
    pairs = [offered[i % len(offered)] for i in range(images)]
    retain = [kept[i % len(kept)] for i in range(retain_images)]
    prompts = [pair.anchor for pair in pairs] + retain
    numbers = [seeds.integer(job.seed, "anchor image", i) for i in range(images)]
    numbers += [seeds.integer(job.seed, "retain image", i) for i in range(retain_images)]
    config = {
        "base": job.model.digest(),
        "pairs": [[pair.anchor, pair.target] for pair in pairs],
        "retain": retain,
        "seed": job.seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    with PartialState().main_process_first():
        latents = _read(job, config)
        if latents is None:
            scratch = None if job.out is None else job.out / "anchors.part"
            latents = sample(
                job.model,
                prompts,
                numbers,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
                output="latent",
                out=scratch,
                events=job.events,
            )
            if job.out is not None:
                meta = {"fingerprint": state.fingerprint(config), "config": config}
                state.save(job.out / "anchors.safetensors", {"latents": latents}, meta)
        if job.out is not None:
            shutil.rmtree(job.out / "anchors.part", ignore_errors=True)
    return Anchors(latents[:images], pairs, latents[images:], retain)


def _read(job: Job, config: dict[str, object]) -> Tensor | None:
    if job.out is None or not (path := job.out / "anchors.safetensors").exists():
        return None
    tensors, meta = state.load(path)
    same(path, meta.get("config"), config)
    if "latents" not in tensors:
        raise CheckpointError(f"{path} is damaged: it holds no latents", fix="delete it and run again")
    return tensors["latents"]
