"""Candidates for the checks of a manifest: a toy pipeline, its policy, and what people make of it."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests import toys
from torch import Tensor

from unteach.guard.manifest import FreezeManifest

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HELD = (
    "conv_in.bias",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "down_blocks.1.attentions.0.proj_in.weight",
    "mid_block.resnets.0.conv1.weight",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight",
    "up_blocks.1.resnets.0.norm1.weight",
)
FREE = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@dataclass(frozen=True)
class World:
    """A base pipeline, its U-Net's tensors and the manifest; ``folder`` is the test's own."""

    base: Path
    tensors: Mapping[str, Tensor]
    manifest: FreezeManifest
    folder: Path

    def copy(self, name: str = "candidate") -> Path:
        """A copy of the whole pipeline."""
        return Path(shutil.copytree(self.base, self.folder / name))

    def file(self, tensors: Mapping[str, Tensor], name: str = "weights.safetensors", **metadata: str) -> Path:
        """One safetensors file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata or None)
        return path

    def changed(self, change: Callable[[dict[str, Tensor]], object]) -> Path:
        """The pipeline with changed U-Net tensors."""
        path = self.copy()
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS)
        return path


def base(folder: Path) -> Path:
    return toys.build("sd", folder)


def world(base: Path, folder: Path) -> World:
    tensors = load_file(base / WEIGHTS)
    manifest = FreezeManifest.from_model(tensors, HELD, dict.fromkeys(HELD, 0.9), created="2026-01-01T00:00:00+00:00")
    return World(base, tensors, manifest, folder)


def flip(tensor: Tensor, element: int, bit: int) -> None:
    """Flip one bit of a contiguous tensor in place."""
    data = tensor.view(torch.uint8).view(-1)
    data[element * tensor.element_size() + bit // 8] ^= 1 << bit % 8
