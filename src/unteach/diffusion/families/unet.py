"""What Stable Diffusion 1, 2 and XL share: a U-Net with cross-attention, and a schedule of betas."""

from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler

from unteach.diffusion.families.base import Family, Pipeline
from unteach.diffusion.schedule import Discrete, Schedule
from unteach.errors import ModelError

BETAS = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""Schedulers of discrete timesteps with betas; others (EDM, flow matching) noise by other rules."""

_DDPM: Any = DDPMScheduler
_KV = r".*attn2\.to_[kv]\.weight"


def from_betas(pipe: Pipeline) -> Schedule:
    """The rates with a² + s² = 1 of the DDPM kind; a² is ᾱ_t.

    Raises:
        ModelError: the scheduler has no betas, so that its noise rates would be a guess.
    """
    config = pipe.scheduler.config
    flow = config.get("use_flow_sigmas", False)
    if flow or not any(config.get(key) is not None for key in ("beta_schedule", "trained_betas")):
        raise ModelError(
            "the scheduler noises in a way that is not known here: "
            + ("it uses flow matching" if flow else "it has no betas (EDM, flow matching or the like)"),
            found=type(pipe.scheduler).__name__,
            fix="use a model whose scheduler has betas, such as DDIM, Euler or DPM-Solver++",
        )
    # Only the betas matter here; how the model is sampled (clipping, thresholding) does not.
    kept = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    ddpm = _DDPM.from_config({key: config[key] for key in kept if key in config})
    alpha_bar = ddpm.alphas_cumprod.to(torch.float64)
    return Discrete(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), config.get("prediction_type", "epsilon"))


class UNetFamily(Family):
    """A pipeline around a ``UNet2DConditionModel`` that was trained with discrete timesteps."""

    denoiser = "unet"
    schedulers = BETAS
    cross_attention_kv = _KV
    text_layers: ClassVar[dict[str, str]] = {_KV: "hidden"}
    part = r"(down|up)_blocks\.\d+|mid_block"
    block = r"(down|up)_blocks\.\d+\.(resnets|attentions)\.\d+|mid_block\.\w+\.\d+"
    kinds: ClassVar[tuple[tuple[str, str], ...]] = (
        ("cross-attention", r".*\.attn2\..*"),
        ("self-attention", r".*\.attn1\..*"),
        ("feed-forward", r".*\.ff\..*"),
        ("transformer", r".*\.attentions\..*"),
        ("resnet", r".*\.resnets\..*"),
        ("resampling", r".*\.(down|up)samplers\..*"),
        ("embedding", r"(time|add|class)_embedding\..*"),
    )

    def schedule(self, pipe: Pipeline) -> Schedule:
        """From the scheduler's betas."""
        return from_betas(pipe)

    def latent_shape(self, pipe: Pipeline) -> tuple[int, int, int]:
        """From the U-Net's ``in_channels`` and ``sample_size``, which is one number or two."""
        config = pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(config.in_channels), int(height), int(width)
