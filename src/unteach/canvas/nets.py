"""The judges' networks. All give two tensors of logits: objects (B, 61) and styles (B, 9), "none" last.

The two bundled ones share nothing but the task: one learns its features by convolution, the other has a fixed
bank of edge and colour measurements under a perceptron; they also differ in loss, augmentation and in how
they say "none".
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unteach.core.registry import Registry
from unteach.data.emoji import OBJECTS, STYLES

CLASSES: tuple[int, int] = (len(OBJECTS), len(STYLES))
"""How many objects and styles there are, without "none of these"."""

Logits = tuple[Tensor, Tensor]
networks: Registry[type[nn.Module]] = Registry("judge network")
"""Name to class; a judge's file names its network."""


class _Residual(nn.Module):
    """``relu(x + f(x))`` with one 3 x 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def _down(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


@networks.add("cnn")
class ConvNet(nn.Module):
    """A small residual convolutional network: 2 x 2 pixels to depth, then 16, 8 and 4 cells a side."""

    summary = "convolutional network, learned features, softmax over the classes and 'none'"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2), _down(12, 48, stride=1), _Residual(48),
            _down(48, 96), _Residual(96), _Residual(96), _down(96, 128), _Residual(128),
        )  # fmt: skip
        self.drop = nn.Dropout(0.2)
        self.where = nn.ModuleList(nn.Linear(128 * 16, n + 1) for n in CLASSES)
        self.what = nn.ModuleList(nn.Linear(128, n + 1, bias=False) for n in CLASSES)

    def forward(self, images: Tensor) -> Logits:
        """Logits (B, 61) and (B, 9) of pictures (B, 3, 32, 32) in [0, 1]."""
        cells = self.body(images * 2 - 1)
        flat, mean = self.drop(cells.flatten(1)), cells.mean(dim=(2, 3))
        objects, styles = (a(flat) + b(mean) for a, b in zip(self.where, self.what, strict=True))
        return objects, styles


class Measurements(nn.Module):
    """A fixed bank, nothing learned: edges by direction and scale, ridges, colours, each averaged over cells.

    - luminance gradients (Gaussian derivatives, σ 0.8 and 1.6 pixels) shared among eight directions, and the
      two signs of the Laplacian, on 8 x 8 and 4 x 4 cells;
    - gradients of two opponent colours among four directions each, on 4 x 4 cells;
    - nearness to each of 27 colours on 4 x 4 cells; mean colour on 8 x 8 cells;
    - shares of 216 colours in the whole picture (an artist's palette, wherever it is used).
    """

    opponent: Tensor
    fine: Tensor
    coarse: Tensor
    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        opponent = torch.tensor([[0.3, 0.59, 0.11], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]])
        self.register_buffer("opponent", opponent[:, :, None, None], persistent=False)
        for name, sigma in (("fine", 0.8), ("coarse", 1.6)):
            self.register_buffer(name, _derivatives(sigma), persistent=False)
        self.register_buffer("levels", torch.tensor([0.0, 0.5, 1.0]), persistent=False)
        self.size = 2 * 10 * 64 + 10 * 16 + 2 * 4 * 16 + 27 * 16 + 3 * 64 + 216

    def forward(self, images: Tensor) -> Tensor:
        """Measurements (B, size), roughly in [0, 1], of pictures (B, 3, 32, 32) in [0, 1]."""
        count = len(images)
        planes = F.conv2d(images, self.opponent)
        light, colour = planes[:, :1], planes[:, 1:]
        fine, coarse = _edges(light, self.fine, 8), _edges(light, self.coarse, 8)
        hues = _edges(colour.reshape(count * 2, 1, 32, 32), self.coarse, 4)[:, :4].reshape(count, 8, 32, 32)
        # A Gaussian around a colour is a product over the channels: nearness to 3 levels each.
        level = torch.exp(-12 * (images[:, :, None] - self.levels[:, None, None]) ** 2)
        level = level / level.sum(dim=2, keepdim=True)
        near = torch.einsum("brhw,bghw,bchw->brgchw", *level.unbind(dim=1)).reshape(count, 27, 32, 32)
        # Six levels a channel, a pixel shared between its two nearest.
        shade = F.relu(1 - (5 * images[:, :, None] - torch.arange(6.0)[:, None, None]).abs()).flatten(3)
        red, green, blue = shade.unbind(dim=1)
        both = (red[:, :, None] * green[:, None]).flatten(1, 2)
        shares = torch.bmm(both, blue.transpose(1, 2)) / both.shape[2]
        parts = [
            _cells(fine, 4), _cells(coarse, 4), _cells(coarse, 8), _cells(hues, 8), shares,
        ]  # fmt: skip
        parts = [torch.sqrt(part.clamp(min=0) + 1e-4) for part in parts]
        parts += [_cells(near, 8), F.avg_pool2d(images, 4)]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def _derivatives(sigma: float) -> Tensor:
    """Gaussian derivatives along x and y and the Laplacian of a Gaussian: (3, 1, 7, 7)."""
    place = torch.arange(-3.0, 4.0)
    y, x = torch.meshgrid(place, place, indexing="ij")
    bell = torch.exp(-(x**2 + y**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    laplacian = bell * ((x**2 + y**2) / sigma**4 - 2 / sigma**2)
    laplacian = laplacian - laplacian.mean()
    kernels = torch.stack([bell * x / sigma**2, bell * y / sigma**2, laplacian * sigma])
    return kernels[:, None] * sigma


def _edges(planes: Tensor, kernels: Tensor, directions: int) -> Tensor:
    """Edge strength by direction, then both signs of the Laplacian: (B, directions + 2, 32, 32).

    Eight directions tell light-to-dark from dark-to-light, four do not.
    """
    dx, dy, ridge = F.conv2d(F.pad(planes, (3, 3, 3, 3), mode="replicate"), kernels).unbind(dim=1)
    turn = 2 * math.pi / 8
    angles = [turn * i for i in range(directions)]
    along = torch.stack([dx * math.cos(a) + dy * math.sin(a) for a in angles], dim=1)
    along = F.relu(along) if directions == 8 else along.abs()
    strength = torch.sqrt(dx**2 + dy**2 + 1e-6)[:, None]
    # Sharpened: a direction counts by the square of its share of the gradient.
    along = along**2 / strength
    return torch.cat([along, F.relu(ridge)[:, None], F.relu(-ridge)[:, None]], dim=1)


def _cells(planes: Tensor, size: int) -> Tensor:
    """Means over overlapping cells, one every ``size`` pixels."""
    margin = size // 4
    return F.avg_pool2d(planes, size + 2 * margin, stride=size, padding=margin, count_include_pad=True)


@networks.add("patch")
class PatchNet(nn.Module):
    """A perceptron on :class:`Measurements`. Each class is accepted or rejected by itself.

    "None of these" is when all are rejected.
    """

    summary = "fixed bank of edge and colour measurements, perceptron, one yes-or-no a class"

    def __init__(self, width: int = 288) -> None:
        super().__init__()
        self.measure = Measurements()
        self.scale = nn.BatchNorm1d(self.measure.size, affine=False)
        self.inner = nn.Linear(self.measure.size, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.15)
        heads = [nn.Linear(width, n) for n in CLASSES]
        for head in heads:
            nn.init.constant_(head.bias, -3.0)
        self.heads = nn.ModuleList(heads)

    def forward(self, images: Tensor) -> Logits:
        """Logits (B, 61) and (B, 9) of pictures (B, 3, 32, 32) in [0, 1].

        Given that at most one class is accepted, its odds against "none" are those of its own yes-or-no, so
        "none" has the logit 0.
        """
        measured = F.dropout(self.scale(self.measure(images)), 0.05, self.training)
        inner = self.drop(F.gelu(self.norm(self.inner(measured))))
        objects, styles = (F.pad(head(inner), (0, 1)) for head in self.heads)
        return objects, styles
