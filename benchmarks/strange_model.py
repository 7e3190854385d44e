"""Train a text-to-image pipeline and a judge on the strange world: about two minutes on two free cores, resumable.

    python benchmarks/strange_model.py --work FOLDER

Real classes of diffusers and transformers, trained by the library's own loop and fine-tuning, with everything unlike
the bundled model: words, tokenizer, widths, noise schedule, a learned autoencoder of 8 channels, text states of another
scale.
Stages (``words``, ``eye``, ``judge``, ``denoiser``) leave their files in FOLDER; what is there is kept. At the end the
judge says how often the pipeline draws what held-out templates ask for; below 90 % of objects or styles it is an error.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from accelerate import PartialState
from strange_world import (
    FILLER,
    HELD_OUT_TEMPLATES,
    OBJECTS,
    SIZE,
    STYLES,
    TRAIN_TEMPLATES,
    batch,
    caption,
    draw_caption,
    garbage,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unteach.core import seeds, state
from unteach.core.loop import Loop, Step
from unteach.diffusion import Model, load, sample
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.finetune import Finetune, finetune

parts: Any = diffusers  # its classes are only partly typed

LENGTH, WIDTH, CHANNELS = 16, 64, 8
TEXT_SCALE = 2.5
"""Factor on the finished text states: no method may count on states of one size."""
STEPS = {"words": 350, "eye": 400, "judge": 300, "denoiser": 1100}
PICTURES = 6000


# Words


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with the world's words as whole tokens; other words fall back to letters."""
    words = [*OBJECTS, *STYLES, *FILLER, *{w for t in (*TRAIN_TEMPLATES, *HELD_OUT_TEMPLATES) for w in t.split()}]
    words = sorted({word for word in words if word.isalpha()} | {"an"})
    made = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        words * 3,
        trainers.BpeTrainer(
            vocab_size=4000, min_frequency=2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(made.to_str())["model"]["merges"]]
    entries = [*alphabet, *(c + "</w>" for c in alphabet), *(m.replace(" ", "") for m in merges)]
    vocabulary = {e: i for i, e in enumerate(dict.fromkeys([*entries, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    found = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH)
    found.save_pretrained(folder)
    return found


def ids(tokens: CLIPTokenizer, texts: list[str]) -> Tensor:
    return torch.tensor(tokens(texts, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"])


def seeded(make: Any, purpose: str) -> Any:
    """A module whose weights depend on the purpose alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, purpose))
        return make()


def words(work: Path) -> None:
    """Tokenizer, and a text encoder that learns to tell shape and style from a caption, then freezes."""
    tokens = tokenizer(work / "pipeline" / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=3 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH, initializer_factor=2.0,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    encoder = seeded(lambda: CLIPTextModel(config), "text encoder")
    heads = seeded(lambda: nn.ModuleList(nn.Linear(WIDTH, len(c) + 1) for c in (OBJECTS, STYLES)), "text heads")
    params = {**dict(encoder.named_parameters()), **{f"heads.{n}": p for n, p in heads.named_parameters()}}
    optimizer = torch.optim.AdamW(params.values(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS["words"])

    def step(s: Step) -> dict[str, Tensor]:
        said = []
        for item in s.items(64):
            rng = random.Random(seeds.integer(s.seed, "caption", s.index, item))
            said.append(draw_caption(rng.randrange(len(OBJECTS)), rng.randrange(len(STYLES)), rng))
        rows = ids(tokens, [text for text, _, _ in said])
        hidden, ends = encoder(rows)[0], rows == tokens.eos_token_id
        labels = torch.tensor([row[1:] for row in said])
        loss = torch.zeros(())
        for head, truth in zip(heads, labels.T, strict=True):
            loss = loss + F.cross_entropy(head(hidden)[ends], truth[:, None].expand(ends.shape)[ends])
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        schedule.step()
        return {"loss": loss.detach()}

    Loop(
        steps=STEPS["words"], seed=0, params=params, state={"optimizer": optimizer, "rate": schedule},
        out=work / "words", save_every=100, label="words",
    ).run(step)  # fmt: skip
    with torch.no_grad():
        norm = next(m for name, m in encoder.named_modules() if name.endswith("final_layer_norm"))
        norm.weight.mul_(TEXT_SCALE)
        norm.bias.mul_(TEXT_SCALE)
    encoder.save_pretrained(work / "pipeline" / "text_encoder")


# Pictures


def eye(work: Path) -> None:
    """A small autoencoder, 16 px to 8 × 8 × 8, trained from nothing, and the latents of the training pictures."""
    vae = seeded(
        lambda: parts.AutoencoderKL(
            latent_channels=CHANNELS, sample_size=SIZE, block_out_channels=(24, 48), layers_per_block=1,
            norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            mid_block_add_attention=False,
        ),
        "autoencoder",
    ).to(memory_format=torch.channels_last)  # fmt: skip
    params = dict(vae.named_parameters())
    optimizer = torch.optim.AdamW(params.values(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS["eye"], pct_start=0.1)

    def step(s: Step) -> dict[str, Tensor]:
        images = batch(s.seed, "eye", s.index, 32)[0] * 2 - 1
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=seeds.generator(s.seed, "eye noise", s.index))
        seen = vae.decode(posterior.mean + 0.03 * noise).sample
        loss = F.l1_loss(seen, images) + F.mse_loss(seen, images) + 1e-3 * posterior.mean.square().mean()
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        schedule.step()
        return {"loss": loss.detach()}

    Loop(
        steps=STEPS["eye"], seed=0, params=params, state={"optimizer": optimizer, "rate": schedule},
        out=work / "eye", save_every=100, label="eye",
    ).run(step)  # fmt: skip
    rows = [batch(0, "pictures", i, 500) for i in range(PICTURES // 500)]
    with torch.no_grad():
        latents = torch.cat([vae.encode(images * 2 - 1).latent_dist.mean for images, _, _ in rows])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.to(memory_format=torch.contiguous_format).save_pretrained(work / "pipeline" / "vae")
    told = {"objects": torch.cat([o for _, o, _ in rows]), "styles": torch.cat([s for _, _, s in rows])}
    state.save(work / "latents.safetensors", {"latents": latents / latents.std(), **told}, {})


class Judge(nn.Module):
    """Names shape and style of pictures (N, 3, 16, 16) in [0, 1]; the last place of each is "none of these"."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.GELU()]
            layers += [nn.Conv2d(outputs, outputs, 3, 1, 1), nn.GroupNorm(8, outputs), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(64 * 16, len(c) + 1) for c in (OBJECTS, STYLES))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits (N, 11) and (N, 7)."""
        inner = self.body(images * 2 - 1)
        return [head(inner) for head in self.heads]

    @torch.no_grad()
    def judged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Places of shapes and styles, (N,) each."""
        said = [self(part) for part in torch.split(images.clamp(0, 1), 256)]
        return torch.cat([a.argmax(1) for a, _ in said]), torch.cat([b.argmax(1) for _, b in said])


def judge(work: Path) -> None:
    """Train the judge on drawn pictures, softened and grained, and on garbage."""
    net = seeded(Judge, "judge")
    params = dict(net.named_parameters())
    optimizer = torch.optim.AdamW(params.values(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS["judge"])

    def step(s: Step) -> dict[str, Tensor]:
        images, objects, styles = batch(s.seed, "judge", s.index, 64)
        draw = seeds.generator(s.seed, "judge view", s.index)
        waste, none, said = garbage(24, draw)
        images, objects, styles = (torch.cat(pair) for pair in ((images, waste), (objects, none), (styles, said)))
        soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        amount = torch.rand(len(images), 1, 1, 1, generator=draw) * 0.8
        images = images + amount * (soft - images)
        images = images + 0.06 * torch.rand(len(images), 1, 1, 1, generator=draw) * torch.randn(
            images.shape, generator=draw
        )
        a, b = net(images.clamp(0, 1))
        loss = F.cross_entropy(a, objects) + F.cross_entropy(b, styles, ignore_index=-1)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        schedule.step()
        return {"loss": loss.detach()}

    Loop(
        steps=STEPS["judge"], seed=0, params=params, state={"optimizer": optimizer, "rate": schedule},
        out=work / "judge", save_every=100, label="judge",
    ).run(step)  # fmt: skip
    state.save(work / "judge.safetensors", {k: v.clone() for k, v in net.state_dict().items()}, {})


def load_judge(work: Path) -> Judge:
    """The trained judge."""
    net = Judge()
    net.load_state_dict(state.load(work / "judge.safetensors")[0])
    return net.eval().requires_grad_(False)


# The denoiser


def denoiser(work: Path) -> None:
    """Train the U-Net on the latents with :func:`unteach.diffusion.finetune.finetune`."""
    folder = work / "pipeline"
    unet = seeded(
        lambda: parts.UNet2DConditionModel(
            sample_size=SIZE // 2, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(32, 64),
            layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2, cross_attention_dim=WIDTH, attention_head_dim=2,
            norm_num_groups=8,
        ),
        "denoiser",
    ).to(memory_format=torch.channels_last)  # fmt: skip
    pipe = parts.StableDiffusionPipeline(
        vae=parts.AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=parts.DPMSolverMultistepScheduler(
            num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02,
            prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    model, told = Model(pipe), state.load(work / "latents.safetensors")[0]
    config = Finetune(
        steps=STEPS["denoiser"], batch_size=32, learning_rate=2e-3, betas=(0.9, 0.99), warm_up=60, schedule="cosine",
        average=0.995,
    )  # fmt: skip

    def batches(s: Step, items: range) -> tuple[Tensor, Conditioning]:
        rows = s.randint("picture", len(told["latents"]), items)
        texts = []
        for item, row in zip(items, rows.tolist(), strict=True):
            rng = random.Random(seeds.integer(s.seed, "text", s.index, item))
            said = draw_caption(int(told["objects"][row]), int(told["styles"][row]), rng)[0]
            texts.append("" if rng.random() < 0.1 else said)
        with torch.no_grad():
            hidden = pipe.text_encoder(ids(pipe.tokenizer, texts))[0]
        return told["latents"][rows], Conditioning(hidden)

    done = finetune(model, batches, config, seed=0, out=work / "denoiser", save_every=200, label="denoiser")
    if PartialState().is_main_process:
        with torch.no_grad():
            for name, value in unet.named_parameters():
                value.copy_((done.average or {})[name])
        unet.to(memory_format=torch.contiguous_format)
        pipe.save_pretrained(folder, safe_serialization=True)


def asked(templates: tuple[str, ...], count: int) -> list[tuple[str, int, int]]:
    """``count`` prompts over all pairs and the templates: (prompt, object, style)."""
    pairs = [(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES))]
    found = []
    for i in range(count):
        o, s = pairs[i % len(pairs)]
        found.append((caption(templates[(i + i // len(pairs)) % len(templates)], OBJECTS[o], STYLES[s]), o, s))
    return found


def build(work: Path) -> dict[str, float]:
    """Make what is missing; returns the judge's shares on held-out templates and the seconds spent now."""
    begin = time.monotonic()
    for make, mark in (
        (words, "pipeline/text_encoder/config.json"), (eye, "latents.safetensors"), (judge, "judge.safetensors"),
        (denoiser, "pipeline/model_index.json"),
    ):  # fmt: skip
        if not (work / mark).exists():
            start = time.monotonic()
            if make is denoiser:
                torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
                command = [sys.executable, *torchrun, __file__, "--work", str(work), "--stage", "denoiser"]
                subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
            else:
                make(work)
            print(f"{make.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    spent = time.monotonic() - begin
    if not (work / "drawn.json").exists():
        net = load_judge(work)
        images, objects, styles = batch(1, "check", 0, 600)
        a, b = net.judged(images)
        waste, _, _ = garbage(200, seeds.generator(1, "check garbage"))
        prompts = asked(HELD_OUT_TEMPLATES, 240)
        drawn = sample(load(work / "pipeline"), [p for p, _, _ in prompts], list(range(240)), num_inference_steps=15)
        c, d = net.judged(drawn)
        said = torch.tensor([row[1:] for row in prompts])
        shares = {
            "judge object": (a == objects), "judge style": (b == styles),
            "judge refuses garbage": net.judged(waste)[0] == len(OBJECTS),
            "drawn object": c == said[:, 0], "drawn style": d == said[:, 1],
        }  # fmt: skip
        record = {name: float(hit.float().mean()) for name, hit in shares.items()} | {"seconds": spent}
        state.write_json(work / "drawn.json", record)
    record = state.read_json(work / "drawn.json")
    if min(record["drawn object"], record["drawn style"]) < 0.9:
        raise SystemExit(f"the pipeline does not draw what is asked: {record}")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stage", choices=["denoiser"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1 if args.stage else args.threads)
    if args.stage:
        denoiser(args.work)
        return
    for name, value in build(args.work).items():
        print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    main()
