"""A literal textbook loop of continual learning, the way it is usually written: the alternative of the speed table.

One sample at a time for augmentation, three passes for DER++, one sample at a time into the buffer, the Fisher
information at batch size 1. Written plainly from the algorithms; correct, and slow where the field's code is slow.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


def view(image: np.ndarray, rng: random.Random, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Pad by 4, crop at random, flip at random, normalise: one image (H, W, 3) uint8 to (3, H, W) float."""
    height, width, _ = image.shape
    padded = Image.new("RGB", (width + 8, height + 8))
    padded.paste(Image.fromarray(image), (4, 4))
    left, top = rng.randrange(9), rng.randrange(9)
    crop = padded.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.asarray(crop, dtype=np.float32).transpose(2, 0, 1) / 255)
    return (pixels - torch.from_numpy(mean)[:, None, None]) / torch.from_numpy(std)[:, None, None]


class Buffer:
    """A reservoir that takes one sample at a time."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.images: list[np.ndarray] = []
        self.labels: list[int] = []
        self.logits: list[Tensor] = []

    def add(self, images: list[np.ndarray], labels: Tensor, logits: Tensor, rng: random.Random) -> None:
        for image, label, row in zip(images, labels, logits, strict=True):
            if len(self.images) < self.size:
                self.images.append(image.copy())
                self.labels.append(int(label))
                self.logits.append(row.detach().clone())
            else:
                place = rng.randrange(self.seen + 1)
                if place < self.size:
                    self.images[place] = image.copy()
                    self.labels[place] = int(label)
                    self.logits[place] = row.detach().clone()
            self.seen += 1

    def draw(self, n: int, rng: random.Random, mean: np.ndarray, std: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        rows = rng.sample(range(len(self.images)), min(n, len(self.images)))
        x = torch.stack([view(self.images[row], rng, mean, std) for row in rows])
        return x, torch.tensor([self.labels[row] for row in rows]), torch.stack([self.logits[row] for row in rows])


def epoch_of_derpp(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: np.ndarray,
    labels: np.ndarray,
    buffer: Buffer,
    rng: random.Random,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    batch: int = 32,
    alpha: float = 0.1,
    beta: float = 0.5,
) -> float:
    """One epoch of DER++ (images (N, H, W, 3) uint8); returns the last loss."""
    order = list(range(len(images)))
    rng.shuffle(order)
    loss_value = 0.0
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        raw = [images[row] for row in rows]
        x = torch.stack([view(image, rng, mean, std) for image in raw])
        y = torch.tensor([int(labels[row]) for row in rows])
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        if buffer.images:
            bx, _, bz = buffer.draw(batch, rng, mean, std)
            loss = loss + alpha * F.mse_loss(model(bx), bz)
            bx, by, _ = buffer.draw(batch, rng, mean, std)
            loss = loss + beta * F.cross_entropy(model(bx), by)
        loss.backward()
        optimizer.step()
        loss_value = loss.item()
        buffer.add(raw, y, out, rng)
    return loss_value


def fisher(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The empirical Fisher information, one sample at a time."""
    model.eval()
    total = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(len(x)):
        model.zero_grad()
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        loss.backward()
        for sum_, p in zip(total, model.parameters(), strict=True):
            sum_ += p.grad.detach() ** 2
    model.train()
    return [t / len(x) for t in total]
