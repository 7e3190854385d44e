"""The bundled model's eye: a stock AutoencoderKL whose encoder is set by hand to an exact linear map (spec: canvas).

The encoder computes the principal components of 4 x 4 pixel patches. Its residual branches are zero; its two strided
convolutions gather 2 x 2 pixels each; and its only non-linear layers are undone: a group norm is made linear by two
large constant channels ``+K, -K`` in every group, and ``silu(a) - silu(-a) = a`` undoes the activation. So latents are
cheap, linear in the pixels and nearly white; the decoder is then trained on them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unteach.core import seeds
from unteach.core.events import SILENT, Events
from unteach.core.kernels import fastest
from unteach.core.loop import Loop, Step
from unteach.errors import ModelError

parts: Any = diffusers  # its classes are only partly typed

LATENTS = 24
"""Latent channels: the first principal components of a patch of 4 x 4 x 3 = 48 numbers."""

_GROUPS, _WIDTH, _CONSTANT, _WHITENING = 8, 64, 200.0, 0.6
_PER_GROUP = 3  # latents a group: three pairs (+x, -x) and the two constants fill its eight channels


def build(images: Tensor) -> Any:
    """An AutoencoderKL (32 px, f = 4, 24 x 8 x 8) with the linear encoder fitted to ``images``.

    Args:
        images: (N, 3, 32, 32), float in [-1, 1].
    """
    vae = parts.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENTS, sample_size=32, block_out_channels=(16, _WIDTH, _WIDTH),
        layers_per_block=1, norm_num_groups=_GROUPS, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=1.0,
    )  # fmt: skip
    encoder: Any = vae.encoder
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                if module.bias is not None:
                    module.bias.zero_()
        for colour in range(3):
            encoder.conv_in.weight[colour, colour, 1, 1] = 1
        _gather(encoder.down_blocks[0].downsamplers[0].conv.weight, 3)
        for i in range(12):
            encoder.down_blocks[1].resnets[0].conv_shortcut.weight[i, i, 0, 0] = 1
        last = encoder.down_blocks[1].downsamplers[0].conv
        _gather(last.weight, 12)
        features = _features(encoder, images).permute(0, 2, 3, 1).reshape(-1, 48)
        mean, basis, scale = _components(features)
        gather = torch.zeros(48, 12, 2, 2)
        for i in range(12):
            for a in range(2):
                for b in range(2):
                    gather[i * 4 + a * 2 + b, i, a, b] = 1
        last.weight.zero_()
        encoder.conv_norm_out.weight.fill_(_CONSTANT / 2)
        encoder.conv_norm_out.bias.zero_()
        for j in range(LATENTS):
            plus = (j // _PER_GROUP) * 8 + (j % _PER_GROUP) * 2
            kernel = torch.einsum("k,kiab->iab", basis[:, j] * scale[j], gather)
            last.weight[plus, :12, :2, :2], last.weight[plus + 1, :12, :2, :2] = kernel, -kernel
            offset = -(mean @ basis[:, j]) * scale[j]
            last.bias[plus], last.bias[plus + 1] = offset, -offset
            encoder.conv_out.weight[j, plus, 1, 1], encoder.conv_out.weight[j, plus + 1, 1, 1] = 1, -1
        for group in range(_GROUPS):
            last.bias[group * 8 + 6], last.bias[group * 8 + 7] = _CONSTANT, -_CONSTANT
        encoder.conv_out.bias[LATENTS:] = -12.0  # log variance: the posterior is a point
    error = _linearity(vae, images[:256], mean, basis, scale)
    if error > 0.02:
        raise ModelError("the hand-set encoder is not linear on these images", found=f"largest error {error:.3g}")
    return vae


def _gather(weight: Tensor, channels: int) -> None:
    for i in range(channels):
        for a in range(2):
            for b in range(2):
                weight[i * 4 + a * 2 + b, i, a, b] = 1


def _features(encoder: Any, images: Tensor) -> Tensor:
    """The 48 numbers of every patch, in the encoder's own order: (N, 48, 8, 8)."""
    parts = []
    for batch in torch.split(images, 256):
        hidden = encoder.conv_in(batch)
        for block in encoder.down_blocks:
            hidden = block(hidden)
        parts.append(hidden[:, :48])
    return torch.cat(parts)


def _components(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, leading components (48, LATENTS) and scales that partly whiten them, to overall variance 1."""
    mean = features.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov(features.T))
    order = torch.arange(47, 47 - LATENTS, -1)
    deviation, basis = variances[order].clamp(min=1e-12).sqrt(), vectors[:, order]
    scale = deviation**-_WHITENING
    return mean, basis, scale / (deviation * scale).pow(2).mean().sqrt()


def _linearity(vae: Any, images: Tensor, mean: Tensor, basis: Tensor, scale: Tensor) -> float:
    """Largest difference between the encoder's output and the linear map that it should compute."""
    latents = vae.encode(images).latent_dist.mean
    pixels = F.pixel_unshuffle(F.pixel_unshuffle(images, 2), 2).permute(0, 2, 3, 1)
    return float((latents.permute(0, 2, 3, 1) - ((pixels - mean) @ basis) * scale).abs().max().detach())


def train_decoder(
    vae: Any,
    views: Callable[[Step, range], Tensor],
    out: Path,
    *,
    steps: int = 6000,
    batch: int = 24,
    lr: float = 3e-3,
    seed: int = 0,
    events: Events = SILENT,
) -> None:
    """Train the decoder on latents of ``views`` (uint8, (B, 3, 32, 32)) with L1 + MSE, under noise on the latents."""
    layout = fastest(vae.decoder)
    decoder: Any = vae.decoder.to(memory_format=layout)
    vae.requires_grad_(False)
    decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 1), pct_start=0.05)

    def step(s: Step) -> dict[str, Tensor]:
        items = s.items(batch)
        images = views(s, items).float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        level = 0.08 * s.rand("level", (1, 1, 1), items)
        latents = latents + level * s.randn("latent noise", latents.shape[1:], items)
        drawn = decoder(latents.contiguous(memory_format=layout))
        l1, mse = F.l1_loss(drawn, images), F.mse_loss(drawn, images)
        optimizer.zero_grad()
        torch.autograd.backward([l1 + mse])
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return {"loss": (l1 + mse).detach(), "psnr": -10 * torch.log10(mse.detach() / 4)}

    Loop(
        steps=steps, seed=seed, params=dict(decoder.named_parameters()), state={"optimizer": optimizer, "lr": schedule},
        config={"stage": "decoder", "batch": batch, "rate": lr}, out=out, save_every=200, log_every=50,
        events=events, label="decoder",
    ).run(step)  # fmt: skip
    vae.requires_grad_(False)


def seeded(seed: int) -> torch.Generator:
    """The generator that initial decoder weights come from (global, since diffusers initialises globally)."""
    torch.manual_seed(seeds.integer(seed, "autoencoder"))
    return torch.default_generator
