"""Train the bundled text-to-image model from scratch: one command, resumable, about 80 minutes on two cores.

    python -m unteach.canvas.build --out runs/canvas

Stages, each a process that starts from the files of the ones before: ``words`` (tokenizer and text encoder) and
``eye`` (autoencoder) side by side, then ``denoiser`` and ``polish`` (two processes each, through
:mod:`unteach.diffusion.finetune`; the second goes on at a low rate with more unknown words around the names), then
``pack`` (a fp16 pipeline folder). Running the command again goes on where it was stopped.
"""

import argparse
import functools
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from unteach.canvas import autoencoder, words
from unteach.core import seeds, state
from unteach.core.kernels import fastest
from unteach.core.loop import Step
from unteach.core.stopping import child_environment, end_with_parent
from unteach.data import emoji
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.export import forget_paths
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.model import Model

parts: Any = diffusers  # its classes are only partly typed

VIEWS = 64
"""Views of every (object, style) pair that the model is trained on."""

STAGES = ("words", "eye", "denoiser", "polish", "pack")


def training_views(seed: int = 0, count: int = VIEWS) -> Tensor:
    """uint8 views (count * 480, 3, 32, 32); row r shows pair ``r % 480`` (objects slowest)."""
    grid = emoji.grid()
    objects, styles = grid.pairs()
    parts = []
    for k in range(count):
        draw = seeds.generator(seed, "view", k)
        parts.append((grid.views(objects, styles, draw) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def eye(out: Path, *, steps: int, views: int, progress: bool) -> None:
    """Fit the encoder, train the decoder, save ``vae`` and the latents of all training views."""
    images = training_views(count=views)
    autoencoder.seeded(0)
    vae: Any = autoencoder.build(images[: 6 * 480].float() / 127.5 - 1)
    vae.save_pretrained(out / "pipeline" / "vae")

    def chosen(s: Step, items: range) -> Tensor:
        return images[s.randint("view", len(images), items)]

    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(b.float() / 127.5 - 1).latent_dist.mean.half() for b in torch.split(images, 512)]
        )
    state.save(out / "latents.safetensors", {"latents": latents}, {"views": views})
    autoencoder.train_decoder(vae, chosen, out / "eye", steps=steps, progress=progress)
    vae.save_pretrained(out / "pipeline" / "vae")


def new_denoiser() -> Any:
    """The untrained denoiser: 4.26 M parameters on 24 x 8 x 8 latents."""
    torch.manual_seed(seeds.integer(0, "denoiser"))
    return parts.UNet2DConditionModel(
        sample_size=8, in_channels=autoencoder.LATENTS, out_channels=autoencoder.LATENTS, block_out_channels=(64, 128),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=words.WIDTH, attention_head_dim=(2, 4), norm_num_groups=16,
    )  # fmt: skip


def denoiser(out: Path, *, steps: int, progress: bool, polish: bool = False) -> None:
    """Train the denoiser on the latents; every process of ``torchrun`` takes its share of each batch.

    The first stage starts from nothing and saves ``unet-first``; the second starts there, at a third of the rate, with
    filler words in most captions, some of them unknown, and saves the pipeline's ``unet``.
    """
    tensors, meta = state.load(out / "latents.safetensors")
    latents = tensors["latents"]
    pairs = len(emoji.OBJECTS) * len(emoji.STYLES)
    unet = parts.UNet2DConditionModel.from_pretrained(out / "unet-first") if polish else new_denoiser()
    config = Finetune(
        steps=steps, batch_size=32, learning_rate=4e-4 if polish else 1e-3, betas=(0.9, 0.99), weight_decay=1e-2,
        warm_up=100, schedule="cosine", clip=1.0, average=0.999,
    )  # fmt: skip
    name, fill, invent = ("polish", 0.8, 0.5) if polish else ("denoiser", 0.5, 0.0)
    model = Model(pipeline(out, unet))
    layout = fastest(model.pipe.unet)
    model.pipe.unet.to(memory_format=layout)
    tokenizer, encoder = model.pipe.tokenizer, model.pipe.text_encoder

    def batches(s: Step, items: range) -> tuple[Tensor, Conditioning]:
        # A random permutation of all views each epoch, read by the global index of the item.
        rows, texts = [], []
        for item in items:
            place = s.index * config.batch_size + item
            epoch, position = divmod(place, len(latents))
            rows.append(int(order(epoch)[position]))
            rng = random.Random(seeds.integer(s.seed, "caption", s.index, item))
            obj, style = divmod(rows[-1] % pairs, len(emoji.STYLES))
            texts.append("" if rng.random() < 0.1 else words.draw_caption(obj, style, rng, fill=fill, invent=invent)[0])
        with torch.no_grad():
            hidden = encoder(words.token_ids(tokenizer, texts))[0]
        drawn = latents[rows].float().contiguous(memory_format=layout)
        return drawn, Conditioning(hidden)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return seeds.permutation(len(latents), 0, "epoch" if not polish else "polish epoch", epoch)

    result = finetune(
        model, batches, config, out=out / name, data_id=str(meta), save_every=250, progress=progress, label=name,
    )  # fmt: skip
    if PartialState().is_main_process and result.average is not None:
        with torch.no_grad():
            for name, value in unet.named_parameters():
                value.copy_(result.average[name])
        unet.to(memory_format=torch.contiguous_format)
        unet.save_pretrained(out / "pipeline" / "unet" if polish else out / "unet-first")


def pipeline(out: Path, unet: nn.Module) -> Any:
    """The parts in ``out/pipeline`` and a denoiser as one pipeline; v-prediction, DPM-Solver++ with trailing steps."""
    folder = out / "pipeline"
    scheduler = parts.DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type="v_prediction", algorithm_type="dpmsolver++", timestep_spacing="trailing",
    )  # fmt: skip
    return parts.StableDiffusionPipeline(
        vae=parts.AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pack(out: Path) -> Path:
    """Write the whole pipeline as fp16 safetensors to ``out/packed``."""
    unet = parts.UNet2DConditionModel.from_pretrained(out / "pipeline" / "unet")
    pipe = pipeline(out, unet).to(torch.float16)
    pipe.save_pretrained(out / "packed", safe_serialization=True)
    forget_paths(out / "packed")
    return out / "packed"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all stages, or one of them."""
    end_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--views", type=int, default=VIEWS, help="views of every object and style")
    parser.add_argument("--reader-steps", type=int, default=900)
    parser.add_argument("--decoder-steps", type=int, default=1800)
    parser.add_argument("--denoiser-steps", type=int, default=11_000)
    parser.add_argument("--polish-steps", type=int, default=2_500)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.stage == "words":
        words.build_tokenizer(args.out / "pipeline" / "tokenizer")
        print(words.train_reader(args.out / "pipeline", args.out / "words", steps=args.reader_steps, progress=True))
    elif args.stage == "eye":
        eye(args.out, steps=args.decoder_steps, views=args.views, progress=True)
    elif args.stage == "denoiser":
        denoiser(args.out, steps=args.denoiser_steps, progress=True)
    elif args.stage == "polish":
        denoiser(args.out, steps=args.polish_steps, progress=True, polish=True)
    elif args.stage == "pack":
        print(pack(args.out))
    else:
        _all(sys.argv[1:] if argv is None else list(argv))


def _all(argv: list[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    own = {**child_environment(), **env}
    here = ["-m", "unteach.canvas.build", *argv]
    early = [subprocess.Popen([sys.executable, *here, "--stage", name], env=own) for name in ("words", "eye")]
    if any(process.wait() for process in early):
        raise SystemExit("a stage failed; its message stands above; the same command goes on after it is mended")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in (
        [*torchrun, *here, "--stage", "denoiser"],
        [*torchrun, *here, "--stage", "polish"],
        [*here, "--stage", "pack"],
    ):
        subprocess.run([sys.executable, *command], env=env, check=True)


if __name__ == "__main__":
    main()
