"""Stable Diffusion 3 and 3.5: a joint-attention transformer, flow matching, two CLIP text encoders and perhaps T5."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor

from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families.base import Family, Pipeline, Segment, families, module_device
from unteach.diffusion.schedule import Flow, Schedule
from unteach.errors import ModelError

_T5_LENGTH = 256
"""Tokens of a prompt that T5 reads: the pipeline's default ``max_sequence_length``."""
_UNKNOWN = ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling")


@families.add("sd3")
class StableDiffusion3(Family):
    """``StableDiffusion3Pipeline``, with or without its T5 text encoder (zeros stand in for it, as in diffusers).

    Text and picture go through the blocks as one sequence, so there is no cross-attention; the text's own key and
    value projections stand for it. A text also comes in pooled, beside the time.
    """

    name = "sd3"
    pipeline = StableDiffusion3Pipeline
    denoiser = "transformer"
    arguments = ("hidden_states", "timestep")
    components: ClassVar[Mapping[str, str]] = {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }
    tokenizers: ClassVar[Mapping[str, str]] = {
        "tokenizer": "text_encoder",
        "tokenizer_2": "text_encoder_2",
        "tokenizer_3": "text_encoder_3",
    }
    optional = frozenset({"text_encoder_3", "tokenizer_3"})
    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    loading: ClassVar[Mapping[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    embeddings: ClassVar[Mapping[str, str]] = {"hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    cross_attention_kv = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj\.weight"
    text_layers: ClassVar[Mapping[str, str]] = {
        r"context_embedder\.weight": "hidden",
        r"time_text_embed\.text_embedder\.linear_1\.weight": "pooled",
    }
    part = block = r"transformer_blocks\.\d+"
    kinds: ClassVar[tuple[tuple[str, str], ...]] = (
        ("cross-attention", r"transformer_blocks\.\d+\.attn\.(add_[qkv]_proj|to_add_out|norm_added_[qk])\..*"),
        ("self-attention", r"transformer_blocks\.\d+\.attn2?\..*"),
        ("feed-forward", r"transformer_blocks\.\d+\.ff(_context)?\..*"),
        ("transformer", r"transformer_blocks\..*"),
        ("embedding", r"(pos_embed|time_text_embed|context_embedder)\..*"),
    )

    def schedule(self, pipe: Pipeline) -> Schedule:
        """Straight lines, and the scheduler's shift of the times.

        Raises:
            ModelError: the scheduler is another one, or is set to change times or noise in ways not known here.
        """
        config, kind = pipe.scheduler.config, type(pipe.scheduler)
        wrong = [key for key in _UNKNOWN if config.get(key)]
        if wrong or not issubclass(kind, FlowMatchEulerDiscreteScheduler):
            raise ModelError(
                "the scheduler noises in a way that is not known here",
                found=f"{kind.__name__} with {', '.join(wrong) or 'rules of its own'}",
                fix="use a FlowMatchEulerDiscreteScheduler with a fixed shift",
            )
        return Flow(int(config["num_train_timesteps"]), float(config["shift"]))

    def latent_shape(self, pipe: Pipeline) -> tuple[int, int, int]:
        """From the transformer's ``in_channels`` and ``sample_size``."""
        config = pipe.transformer.config
        return int(config.in_channels), int(config.sample_size), int(config.sample_size)

    def segments(self, pipe: Pipeline) -> tuple[Segment, ...]:
        """Both CLIP encoders side by side (penultimate states), then T5, which has no start mark."""
        clip = Segment(("tokenizer", "tokenizer_2"), 0, int(pipe.tokenizer_max_length))
        t5 = Segment(("tokenizer_3",), clip.length, _T5_LENGTH, marked=False)
        return (clip,) if pipe.text_encoder_3 is None else (clip, t5)

    def encode(self, pipe: Pipeline, prompts: Sequence[str]) -> Conditioning:
        """The states of all three encoders, and the pooled text of both CLIP encoders."""
        device = module_device(pipe.text_encoder)
        texts = {"prompt": list(prompts), "prompt_2": None, "prompt_3": None, "max_sequence_length": _T5_LENGTH}
        hidden, _, pooled, _ = pipe.encode_prompt(**texts, device=device, do_classifier_free_guidance=False)
        return Conditioning(hidden, pooled=pooled)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> dict[str, Any]:
        """``encoder_hidden_states`` and ``pooled_projections``; one time a latent."""
        texts = {"encoder_hidden_states": cond.hidden, "pooled_projections": cond["pooled"]}
        return {"hidden_states": x_t, "timestep": t.expand(len(x_t)), **texts}

    def noised(self, scheduler: Any, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """On the line between picture and noise; the denoiser's input is not scaled."""
        seen: Tensor = scheduler.scale_noise(x0, t[None], eps)
        return seen

    def pixels(self, pipe: Pipeline) -> int:
        """The VAE's factor times the side of a patch."""
        return int(pipe.vae_scale_factor * pipe.patch_size)

    def scale_latents(self, vae: Any, raw: Tensor) -> Tensor:
        """Shifted, then scaled."""
        return (raw - float(vae.config.shift_factor or 0)) * float(vae.config.scaling_factor)

    def unscale_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of :meth:`scale_latents`."""
        return latents / float(vae.config.scaling_factor) + float(vae.config.shift_factor or 0)
