"""Train the bundled text-to-image model from scratch: one command, resumable, about 80 minutes on two cores.

    python -m tools.canvas.build --out runs/canvas

Run it in the repository's root. Stages, each of which starts from the files of the ones before: ``text-encoder`` (and
tokenizer) and ``autoencoder`` side by side, then ``denoiser`` and ``polish`` (two processes each, through
:mod:`unteach.diffusion.finetune`; the second goes on at a low rate with more unknown words around the names), then
``pack`` (a fp16 pipeline folder). Running the command again goes on where it was stopped.
"""

import argparse
import functools
import multiprocessing
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import CLIPTextModel, CLIPTokenizer

from tools.canvas import autoencoder, text_encoder
from unteach.core import seeds, state
from unteach.core.events import Bars, Events
from unteach.core.kernels import fastest
from unteach.core.loop import Step
from unteach.core.stopping import end_with_parent
from unteach.data import emoji
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.export import forget_paths
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.model import Model

parts: Any = diffusers  # its classes are only partly typed

VIEWS = 64
"""Views of every (object, style) pair that the model is trained on."""

STAGES = ("text-encoder", "autoencoder", "denoiser", "polish", "pack")


def training_views(seed: int = 0, count: int = VIEWS) -> Tensor:
    """uint8 views (count * 480, 3, 32, 32); row r shows pair ``r % 480`` (objects slowest)."""
    grid = emoji.grid()
    objects, styles = grid.pairs()
    parts = []
    for k in range(count):
        draw = seeds.generator(seed, "view", k)
        parts.append((grid.views(objects, styles, draw) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def fit_autoencoder(out: Path, *, steps: int, views: int, events: Events) -> None:
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
    autoencoder.train_decoder(vae, chosen, out / "autoencoder", steps=steps, events=events)
    vae.save_pretrained(out / "pipeline" / "vae")


def new_denoiser() -> Any:
    """The untrained denoiser: 4.26 M parameters on 24 x 8 x 8 latents."""
    torch.manual_seed(seeds.integer(0, "denoiser"))
    return parts.UNet2DConditionModel(
        sample_size=8, in_channels=autoencoder.LATENTS, out_channels=autoencoder.LATENTS, block_out_channels=(64, 128),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=text_encoder.WIDTH, attention_head_dim=(2, 4), norm_num_groups=16,
    )  # fmt: skip


def denoiser(out: Path, *, steps: int, events: Events, polish: bool = False) -> None:
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
            texts.append(
                "" if rng.random() < 0.1 else text_encoder.draw_caption(obj, style, rng, fill=fill, invent=invent)[0]
            )
        with torch.no_grad():
            hidden = encoder(text_encoder.token_ids(tokenizer, texts))[0]
        drawn = latents[rows].float().contiguous(memory_format=layout)
        return drawn, Conditioning(hidden)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return seeds.permutation(len(latents), 0, "epoch" if not polish else "polish epoch", epoch)

    result = finetune(
        model, batches, config, out=out / name, data_id=str(meta), save_every=250, events=events, label=name,
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
        steps_offset=1,
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
    parser.add_argument("--text-encoder-steps", type=int, default=900)
    parser.add_argument("--decoder-steps", type=int, default=1800)
    parser.add_argument("--denoiser-steps", type=int, default=11_000)
    parser.add_argument("--polish-steps", type=int, default=2_500)
    args = parser.parse_args(argv)
    if args.stage is not None:
        run(args.stage, args)
        return
    # Forked, not started anew: this process has imported everything and computes nothing before the last stage.
    context = multiprocessing.get_context("fork")
    early = [context.Process(target=run, args=(stage, args)) for stage in ("text-encoder", "autoencoder")]
    for process in early:
        process.start()
    for process in early:
        process.join()
    if any(process.exitcode for process in early):
        raise SystemExit("a stage failed; its message stands above; the same command goes on after it is mended")
    two = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        start_method="fork",
    )  # fmt: skip
    for stage in ("denoiser", "polish"):
        elastic_launch(two, run)(stage, args)
    run("pack", args)


def run(stage: str, args: argparse.Namespace) -> None:
    """Run one stage in this process."""
    if multiprocessing.parent_process() is not None:
        end_with_parent(os.getppid())
    torch.set_num_threads(1)
    if stage == "text-encoder":
        text_encoder.build_tokenizer(args.out / "pipeline" / "tokenizer")
        steps = args.text_encoder_steps
        print(text_encoder.train_reader(args.out / "pipeline", args.out / stage, steps=steps, events=Bars()))
    elif stage == "autoencoder":
        fit_autoencoder(args.out, steps=args.decoder_steps, views=args.views, events=Bars())
    elif stage == "denoiser":
        denoiser(args.out, steps=args.denoiser_steps, events=Bars())
    elif stage == "polish":
        denoiser(args.out, steps=args.polish_steps, events=Bars(), polish=True)
    else:
        print(pack(args.out))


if __name__ == "__main__":
    main()
