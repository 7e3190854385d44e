"""Stable Diffusion 1 and 2: one CLIP text encoder, U-Net, ε- or v-prediction."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline

from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families.base import (
    Family,
    Pipeline,
    families,
    module_device,
    unet_latent_shape,
    variance_preserving,
)
from unteach.diffusion.schedule import Schedule


@families.add("sd")
class StableDiffusion(Family):
    """``StableDiffusionPipeline``: SD 1.x, SD 2.x and models trained in their form.

    The safety checker is not loaded: it would black out pictures that an evaluation has to count.
    """

    name = "sd"
    pipeline = StableDiffusionPipeline
    denoiser = "unet"
    components: ClassVar[Mapping[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    }
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "text_encoder"}
    loading: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    cross_attention_kv = r".*attn2\.to_[kv]\.weight"

    def schedule(self, pipe: Pipeline) -> Schedule:
        """ᾱ_t from the scheduler's betas."""
        return variance_preserving(pipe)

    def latent_shape(self, pipe: Pipeline) -> tuple[int, int, int]:
        """From the U-Net's ``in_channels`` and ``sample_size``."""
        return unet_latent_shape(pipe)

    def encode(self, pipe: Pipeline, prompts: Sequence[str]) -> Conditioning:
        """Last hidden state of the text encoder (after its final norm), padded to the tokenizer's length."""
        hidden, _ = pipe.encode_prompt(list(prompts), module_device(pipe.text_encoder), 1, False)
        return Conditioning(hidden=hidden)

    def unconditional(self, pipe: Pipeline) -> Conditioning:
        """The empty prompt, encoded."""
        return self.encode(pipe, [""])

    def denoiser_inputs(self, cond: Conditioning) -> dict[str, Any]:
        """``encoder_hidden_states``."""
        return {"encoder_hidden_states": cond.hidden}

    def pipeline_inputs(self, cond: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        """``prompt_embeds`` and, when guided, ``negative_prompt_embeds``."""
        given: dict[str, Any] = {"prompt_embeds": cond.hidden}
        if negative is not None:
            given["negative_prompt_embeds"] = negative.hidden
        return given
