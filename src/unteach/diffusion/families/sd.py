"""Stable Diffusion 1 and 2: one CLIP text encoder, U-Net, ε- or v-prediction."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline
from torch import Tensor

from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families.base import Pipeline, families, module_device
from unteach.diffusion.families.unet import UNetFamily


@families.add("sd")
class StableDiffusion(UNetFamily):
    """``StableDiffusionPipeline``: SD 1.x, SD 2.x and models trained in their form.

    The safety checker is not loaded: it would black out pictures that an evaluation has to count.
    """

    name = "sd"
    pipeline = StableDiffusionPipeline
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
    embeddings: ClassVar[Mapping[str, str]] = {"hidden": "prompt_embeds"}

    def encode(self, pipe: Pipeline, prompts: Sequence[str]) -> Conditioning:
        """Last hidden state of the text encoder (after its final norm), padded to the tokenizer's length."""
        hidden, _ = pipe.encode_prompt(list(prompts), module_device(pipe.text_encoder), 1, False)
        return Conditioning(hidden=hidden)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> dict[str, Any]:
        """The text states as ``encoder_hidden_states``."""
        return {"sample": x_t, "timestep": t, "encoder_hidden_states": cond.hidden}
