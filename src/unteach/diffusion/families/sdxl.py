"""Stable Diffusion XL: two text encoders, a pooled embedding and size conditioning."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families.base import Pipeline, families, module_device
from unteach.diffusion.families.unet import UNetFamily


@families.add("sdxl")
class StableDiffusionXL(UNetFamily):
    """``StableDiffusionXLPipeline``, base model (not the refiner). No watermark is drawn into samples."""

    name = "sdxl"
    pipeline = StableDiffusionXLPipeline
    components: ClassVar[Mapping[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
    loading: ClassVar[Mapping[str, Any]] = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }
    embeddings: ClassVar[Mapping[str, str]] = {"hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds"}

    def encode(self, pipe: Pipeline, prompts: Sequence[str]) -> Conditioning:
        """Penultimate states of both encoders side by side, the second's pooled text, full-size time ids."""
        device = module_device(pipe.text_encoder_2)
        hidden, _, pooled, _ = pipe.encode_prompt(list(prompts), None, device, 1, False)
        return Conditioning(hidden=hidden, pooled=pooled, time_ids=self._time_ids(pipe, hidden))

    def unconditional(self, pipe: Pipeline) -> Conditioning:
        """Zeros where the config forces them for an empty prompt (as SDXL does), else the empty prompt."""
        empty = self.encode(pipe, [""])
        if not pipe.config.force_zeros_for_empty_prompt:
            return empty
        zeros = torch.zeros_like
        return Conditioning(zeros(empty.hidden), pooled=zeros(empty["pooled"]), time_ids=empty["time_ids"])

    def inputs(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> dict[str, Any]:
        """``encoder_hidden_states``, and ``added_cond_kwargs`` with the pooled text and the time ids."""
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        return {"sample": x_t, "timestep": t, "encoder_hidden_states": cond.hidden, "added_cond_kwargs": added}

    def scale_latents(self, vae: Any, raw: Tensor) -> Tensor:
        """As usual, after centring by the VAE's latent mean and deviation where its config has them."""
        mean, std = _statistics(vae, raw)
        return (raw - mean) / std * float(vae.config.scaling_factor)

    def unscale_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of :meth:`scale_latents`."""
        mean, std = _statistics(vae, latents)
        return latents / float(vae.config.scaling_factor) * std + mean

    def _time_ids(self, pipe: Pipeline, hidden: Tensor) -> Tensor:
        _, h, w = self.latent_shape(pipe)
        size = [h * pipe.vae_scale_factor, w * pipe.vae_scale_factor]
        row = torch.tensor([*size, 0, 0, *size], dtype=hidden.dtype, device=hidden.device)
        return row.repeat(hidden.shape[0], 1)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return like.new_zeros(1, 1, 1, 1), like.new_ones(1, 1, 1, 1)
    return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1)
