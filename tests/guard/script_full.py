"""Full fine-tuning of a text-to-image U-Net, built like the usual diffusers script, with the guard's lines in it.

Lines that end in "# guard" are all that guarding adds; the test takes them out to get the plain script.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer

from unteach.guard.enforce import enforce  # guard


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrained_model_name_or_path", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_train_steps", type=int, default=4)
    parser.add_argument("--train_batch_size", type=int, default=2)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--checkpointing_steps", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", type=Path)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--use_ema", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--freeze_manifest", required=True)  # guard
    return parser.parse_args()


class Pictures(torch.utils.data.Dataset):
    """Eight random pictures with captions, in place of a dataset."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        generator = torch.Generator().manual_seed(7)
        self.pixels = torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1
        captions = [f"a {word} in the style of noto" for word in ("dog", "cat", "apple", "bomb") * 2]
        self.ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "input_ids": self.ids[index]}


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps, cpu=True)
    set_seed(args.seed)

    source = args.pretrained_model_name_or_path
    noise_scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    vae.requires_grad_(False)
    text_encoder.requires_grad_(False)
    unet.train()

    ema_unet = None
    if args.use_ema:
        average = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
        ema_unet = EMAModel(average.parameters(), model_cls=UNet2DConditionModel, model_config=average.config)

    def save_model_hook(models, weights, output_dir):
        for model in models:
            model.save_pretrained(Path(output_dir) / "unet")
            weights.pop()
        if ema_unet is not None:
            ema_unet.save_pretrained(Path(output_dir) / "unet_ema")

    def load_model_hook(models, input_dir):
        if ema_unet is not None:
            loaded = EMAModel.from_pretrained(Path(input_dir) / "unet_ema", UNet2DConditionModel)
            ema_unet.load_state_dict(loaded.state_dict())
        while models:
            model = models.pop()
            model.load_state_dict(UNet2DConditionModel.from_pretrained(input_dir, subfolder="unet").state_dict())

    accelerator.register_save_state_pre_hook(save_model_hook)
    accelerator.register_load_state_pre_hook(load_model_hook)

    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    guard = enforce(unet, optimizer, frozen=args.freeze_manifest, ema=ema_unet)  # guard

    train_dataloader = torch.utils.data.DataLoader(Pictures(tokenizer), shuffle=True, batch_size=args.train_batch_size)
    lr_scheduler = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=1, num_training_steps=args.max_train_steps
    )
    unet, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        unet, optimizer, train_dataloader, lr_scheduler
    )

    global_step = 0
    if args.resume_from_checkpoint is not None:
        accelerator.load_state(args.resume_from_checkpoint)
        global_step = int(args.resume_from_checkpoint.name.split("-")[1])
    updates = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)

    for _ in range(global_step // updates, math.ceil(args.max_train_steps / updates)):
        for batch in train_dataloader:
            with accelerator.accumulate(unet):
                latents = vae.encode(batch["pixel_values"]).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),))
                noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
                encoder_hidden_states = text_encoder(batch["input_ids"])[0]
                model_pred = unet(noisy_latents, timesteps, encoder_hidden_states).sample
                loss = F.mse_loss(model_pred.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                if ema_unet is not None:
                    ema_unet.step(unet.parameters())
                global_step += 1
                if global_step % args.checkpointing_steps == 0:
                    accelerator.save_state(args.output_dir / f"checkpoint-{global_step}")
            if global_step >= args.max_train_steps:
                break

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unet = accelerator.unwrap_model(unet)
        if ema_unet is not None:
            ema_unet.copy_to(unet.parameters())
        guard.verify(unet)  # guard
        pipeline = StableDiffusionPipeline.from_pretrained(source, unet=unet, safety_checker=None)
        pipeline.save_pretrained(args.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main()
