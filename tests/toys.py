"""Tiny real pipelines with random weights: real diffusers and transformers classes, made in a second.

``build("sd", folder)`` writes a diffusers folder and returns it; equal kinds and seeds give equal
bytes. The models draw nothing sensible, but their pictures differ by prompt and by seed.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from unteach.core import seeds
from unteach.diffusion import Model, WeightDelta
from unteach.diffusion.loading import quiet

KINDS = ("sd", "sd_v", "sdxl")
"""U-Nets."""
FAMILIES = ("sd", "sdxl", "sd3", "sd3_no_t5")
"""One of each family, and one without the part that users leave out."""
LENGTH = 24
# fmt: off
_WORDS = [
    "a", "an", "the", "in", "of", "style", "drawing", "picture", "photo", "icon", "dog", "cat", "apple",
    "bomb", "house", "car", "twemoji", "openmoji", "noto", "mono", "red", "blue",
]
# fmt: on
_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _byte_symbols() -> list[str]:
    """The printable stand-in of each byte that byte-level BPE uses."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer in which the usual words of the tests are one token each."""
    symbols = _byte_symbols()
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[str] = []
    for word in _WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = f"{parts[-2]} {parts[-1]}"
            if pair not in merges:
                merges.append(pair)
            parts[-2:] = [parts[-2] + parts[-1]]
            if parts[-1] not in vocabulary:
                vocabulary.append(parts[-1])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _text_config(tokens: CLIPTokenizer, width: int, factor: float = 10.0) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        initializer_factor=factor,
    )


def _t5_tokenizer() -> T5TokenizerFast:
    """A Unigram tokenizer with the usual words and all letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -5.0)]
    words = [(f"▁{word}", -2.0) for word in _WORDS]
    letters = [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz<>!-"]
    known = {token for token, _ in words}
    vocabulary = [*special, *words, *(entry for entry in letters if entry[0] not in known)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=256)


def _t5_encoder(tokens: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokens), d_model=40, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def pixart() -> PixArtSigmaPipeline:
    """What docs/adding-a-family.md adds; the package has no such family."""
    read = _t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
            cross_attention_dim=8, caption_channels=40, norm_num_groups=4, use_additional_conditions=False,
        )  # fmt: skip
        return PixArtSigmaPipeline(
            tokenizer=read,
            text_encoder=_t5_encoder(read),
            vae=_vae(),
            transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(**_BETAS),
        )


def _sd3(tokens: CLIPTokenizer, t5: bool) -> StableDiffusion3Pipeline:
    """Joint attention in both blocks, a second self-attention in the first; the last has no text stream after it."""
    read = _t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=6, out_channels=6, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=8, pooled_projection_dim=32,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    with torch.no_grad():
        transformer.proj_out.weight.mul_(3)
        transformer.context_embedder.weight.mul_(3)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(latent_channels=6, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokens, 16, 2.0)),
        tokenizer=tokens,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokens, 16, 2.0)),
        tokenizer_2=tokens,
        text_encoder_3=_t5_encoder(read) if t5 else None,
        tokenizer_3=read if t5 else None,
    )


def _unet(width: int, **extra: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **extra,
    )


def _vae(**extra: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        sample_size=16,
        **{"latent_channels": 4, **extra},
    )


def _livelier(unet: nn.Module) -> None:
    """Random attention is weak: make the text matter, so that tests can tell two prompts apart."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_" in name and name.endswith("weight"):
                parameter.mul_(3)


def pipeline(kind: str, tokenizers: Path, seed: int = 0) -> Any:
    """The pipeline itself; ``tokenizers`` is a scratch folder for the vocabulary."""
    tokens = tokenizer(tokenizers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind.startswith("sd3"):
            return _sd3(tokens, t5=kind == "sd3")
        if kind == "sdxl":
            unet = _unet(
                32,
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 16,
            )
            _livelier(unet)
            return StableDiffusionXLPipeline(
                vae=_vae(),
                text_encoder=CLIPTextModel(_text_config(tokens, 16, 2.0)),
                text_encoder_2=CLIPTextModelWithProjection(_text_config(tokens, 16, 2.0)),
                tokenizer=tokens,
                tokenizer_2=tokens,
                unet=unet,
                scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
                add_watermarker=False,
            )
        if kind == "sd":
            scheduler: Any = PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1)
        elif kind == "sd_v":
            scheduler = DPMSolverMultistepScheduler(
                **_BETAS, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
            )
        else:
            raise ValueError(f"no toy is called {kind!r}; there are {KINDS} and {FAMILIES}")
        unet = _unet(16)
        _livelier(unet)
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokens, 16)),
            tokenizer=tokens,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def build(kind: str, folder: Path | str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a toy of one of :data:`KINDS` to ``folder``, unless it is there, and return the folder."""
    folder = Path(folder)
    if not (folder / "model_index.json").exists():
        scratch = folder / "tokenizer"
        pipe = pipeline(kind, scratch, seed)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                nn.Module.to(part, dtype)
        with quiet():
            pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def weights(model: Model) -> dict[str, torch.Tensor]:
    """A copy of the denoiser's parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.denoiser.named_parameters()}


def record(model: Model, **more: object) -> dict[str, object]:
    """What a delta's meta needs."""
    return {"method": "test", "base": model.digest(fresh=True), "family": model.family, "seed": 0, **more}


def change(model: Model, names: list[str] | None = None, size: float = 0.1, seed: int = 0) -> WeightDelta:
    """A random change of some tensors, the cross-attention's by default; the model is not touched."""
    before = weights(model)
    params = {
        name: before[name] + size * seeds.randn(before[name].shape, seed, name, 0, [0])[0].to(before[name].dtype)
        for name in names or model.cross_attention_kv()
    }
    return WeightDelta.between(before, params, record(model))
