"""Small data of two concepts on the toy model: each word has a pattern of its own in latent space, plus noise."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from tests import toys

from unteach.core import seeds
from unteach.diffusion.examples import Examples
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.model import Model
from unteach.guard.data import GuardData

ILLEGAL, INNOCENT, REST = ("bomb", "cat"), ("dog", "house"), ("apple", "car")


def examples(model: Model, name: str, words: Sequence[str], count: int, part: str = "") -> Examples:
    """``count`` examples a word; equal words look alike in every part, no two parts share an image."""
    latents, captions, ids = [], [], []
    for word in words:
        pattern = torch.randn(model.latent_shape, generator=seeds.generator(0, "pattern", word))
        for k in range(count):
            noise = torch.randn(model.latent_shape, generator=seeds.generator(0, "instance", word, f"{name}{part}", k))
            latents.append(0.9 * pattern + 0.3 * noise)
            captions.append(f"a {word}")
            ids.append(f"{word} {name}{part} {k}")
    return Examples(name + part, torch.stack(latents), model.encode(captions), tuple(ids), tuple(captions))


def guard_data(model: Model, count: int = 8) -> GuardData:
    """Both levels of both kinds."""
    parts = [
        examples(model, kind, words, count, part)
        for kind, words in (("illegal", ILLEGAL), ("innocent", INNOCENT))
        for part in (" user", " publisher")
    ]
    return GuardData([parts[0]], [parts[1]], [parts[2]], [parts[3]])


def pretrain(model: Model, steps: int, rate: float = 3e-3) -> None:
    """Teach the toy other things first, so that what is learned later is the concepts and not denoising as such."""
    rest = examples(model, "rest", REST, 16, " before")
    finetune(model, rest.batches, Finetune(steps=steps, batch_size=16, learning_rate=rate))


def tiny(folder: Path) -> Model:
    """A U-Net of one level and 122 tensors, as small as one with all its kinds of layer gets."""
    pipe = toys.pipeline("sd", folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
        )
    return Model(pipe)
