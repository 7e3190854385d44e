"""What a model family has to say about itself. The rest of the package is the same for all families."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from unteach.core.registry import Registry
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.schedule import Schedule
from unteach.errors import ModelError

# diffusers' constructors have no complete annotations; a pipeline is therefore typed as Any throughout.
Pipeline = Any
_DDPM: Any = DDPMScheduler


class Family(ABC):
    """The conventions of one diffusers pipeline class. Has no state: every method is given the pipeline.

    Attributes:
        name: the name in :data:`families`.
        pipeline: the diffusers class, equal to ``_class_name`` in ``model_index.json``.
        denoiser: the attribute of the pipeline that holds the network being edited; also its prefix in LoRA
            files.
        components: parts that must be there, and their class.
        tokenizers: its tokenizers, each with the text encoder that reads its tokens.
        loading: extra arguments of ``from_pretrained``: parts that are left out are None.
        cross_attention_kv: regex (``fullmatch``) for the names of the text's key and value projections.
    """

    name: ClassVar[str]
    pipeline: ClassVar[Any]
    denoiser: ClassVar[str]
    components: ClassVar[Mapping[str, str]]
    tokenizers: ClassVar[Mapping[str, str]]
    loading: ClassVar[Mapping[str, Any]]
    cross_attention_kv: ClassVar[str]

    @abstractmethod
    def schedule(self, pipe: Pipeline) -> Schedule:
        """Noise rates and prediction type, from the scheduler's config."""

    @abstractmethod
    def latent_shape(self, pipe: Pipeline) -> tuple[int, int, int]:
        """Channels, height and width of a latent at the model's own resolution."""

    @abstractmethod
    def encode(self, pipe: Pipeline, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts with the pipeline's own text encoders, at the model's own resolution."""

    @abstractmethod
    def unconditional(self, pipe: Pipeline) -> Conditioning:
        """One row: what the pipeline itself uses for guidance when no negative prompt is given."""

    @abstractmethod
    def denoiser_inputs(self, cond: Conditioning) -> dict[str, Any]:
        """The denoiser's keyword arguments for a conditioning."""

    @abstractmethod
    def pipeline_inputs(self, cond: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        """The keyword arguments of the pipeline's ``__call__`` that stand for the encoded prompts."""

    def scale_latents(self, vae: Any, raw: Tensor) -> Tensor:
        """From the VAE's own latents to those the denoiser sees."""
        return raw * float(vae.config.scaling_factor)

    def unscale_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of :meth:`scale_latents`."""
        return latents / float(vae.config.scaling_factor)


families: Registry[type[Family]] = Registry("model family")


def variance_preserving(pipe: Pipeline) -> Schedule:
    """The discrete schedule with a² + s² = 1 of the DDPM kind; a² is ᾱ_t.

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
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), config.get("prediction_type", "epsilon"))


def unet_latent_shape(pipe: Pipeline) -> tuple[int, int, int]:
    """Latent shape from a U-Net's config, whose ``sample_size`` is one number or two."""
    config = pipe.unet.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.in_channels), int(height), int(width)


def module_device(module: nn.Module) -> torch.device:
    """Where a module's first parameter is."""
    return next(module.parameters()).device
