"""A weight delta as a LoRA file of diffusers' form, and what is lost by that.

A difference W ``(out, in)`` is written as ``B·A`` with B ``(out, r)`` and A ``(r, in)``. The best such pair
comes from the singular value decomposition (Eckart and Young 1936). A convolution's kernel ``(out, in, kh,
kw)`` is taken as the matrix ``(out, in·kh·kw)``: A is then a convolution with r output channels and B a 1×1
convolution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from unteach.core import state
from unteach.errors import ConfigError, MissingExtraError

FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LoraRow:
    """One tensor: its share of the delta's squared norm and its relative error (1.0 when left out)."""

    name: str
    shape: tuple[int, ...]
    expressed: bool
    share: float
    error: float


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA file keeps of a delta.

    Attributes:
        rank: rank of every factor pair in the file (at most what the largest matrix can use).
        rows: one for each tensor of the delta.
        error: ``‖delta − LoRA‖ / ‖delta‖`` over all tensors, with those left out counted in full.
        path: the file.
    """

    rank: int
    rows: tuple[LoraRow, ...]
    error: float
    path: Path

    @property
    def left_out(self) -> tuple[LoraRow, ...]:
        """Tensors that have no LoRA form: biases, norms."""
        return tuple(row for row in self.rows if not row.expressed)

    @property
    def left_out_share(self) -> float:
        """Their share of the delta's squared norm."""
        return sum(row.share for row in self.left_out)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        head = f"{'tensor':<{width}}  {'shape':>18}  {'share':>7}  relative error"
        lines = [
            f"{row.name:<{width}}  {'×'.join(map(str, row.shape)):>18}  {row.share:>7.2%}  "
            + (f"{row.error:.3e}" if row.expressed else "left out (no LoRA form)")
            for row in self.rows
        ]
        total = f"rank {self.rank}, total relative error {self.error:.3e}"
        if self.left_out:
            total += f"; {len(self.left_out)} tensors left out hold {self.left_out_share:.2%} of the squared norm"
        return "\n".join([head, *lines, total])


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best B ``(m, r)``, A ``(r, n)`` with B·A ≈ ``matrix`` ``(m, n)``; float64, r = min(rank, m, n).

    The left (or right) singular vectors are taken from the smaller Gram matrix, which makes wide convolutions
    cheap; in float64 the error of that is far below float32.
    """
    if matrix.shape[0] > matrix.shape[1]:
        b, a = factors(matrix.T, rank)
        return a.T, b.T
    wide = matrix.double()
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    left = vectors[:, -rank:].flip(1)
    right = left.T @ wide
    # Equal magnitudes on both sides survive a later cast to half precision best.
    balance = right.norm(dim=1).max().sqrt()
    return (left * balance, right / balance) if balance > 0 else (left, right)


def export(tensors: Mapping[str, Tensor], rank: int, folder: Path, prefix: str, meta: Mapping[str, Any]) -> LoraReport:
    """Write the LoRA file into ``folder``, as :meth:`WeightDelta.to_lora` says. Does not need peft."""
    if rank < 1:
        raise ConfigError("a LoRA's rank is at least 1", found=rank)
    total = sum(tensor.double().square().sum().item() for tensor in tensors.values())
    usable = {name: tensor for name, tensor in tensors.items() if _has_form(name, tensor) and tensor.any()}
    if not usable:
        raise ConfigError(
            "nothing in this delta can be written as a LoRA",
            found=f"{len(tensors)} tensors, none of them a changed matrix or kernel",
            fix="save the delta itself, or export the whole pipeline",
        )
    # One rank for all, padded with zeros where a matrix is smaller: readers then need no per-layer scales.
    used = min(rank, max(min(tensor.flatten(1).shape) for tensor in usable.values()))
    file: dict[str, Tensor] = {}
    rows, lost = [], 0.0
    for name, tensor in tensors.items():
        energy = tensor.double().square().sum().item()
        residual = energy
        if name in usable:
            b, a = _padded(*factors(tensor.flatten(1), used), used)
            residual = (tensor.flatten(1).double() - b.double() @ a.double()).square().sum().item()
            spatial = tensor.shape[2:]
            key = f"{prefix}.{name.removesuffix('.weight')}"
            file[f"{key}.lora_A.weight"] = a.reshape(used, tensor.shape[1], *spatial).contiguous()
            file[f"{key}.lora_B.weight"] = b.reshape(-1, used, *(1 for _ in spatial)).contiguous()
        lost += residual
        expressed = _has_form(name, tensor)
        error = (residual / energy) ** 0.5 if energy else 0.0
        rows.append(LoraRow(name, tuple(tensor.shape), expressed, energy / total, error))
    header = {"format": "pt", "unteach": state.canonical(dict(meta))}
    path = state.write_bytes(folder / FILE, to_bytes(file, metadata=header))
    return LoraReport(used, tuple(rows), (lost / total) ** 0.5, path)


def attach(pipe: Any, folder: Path | str) -> None:
    """``pipe.load_lora_weights(folder)``, with a clear error where the optional peft is missing.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("peft", "lora") from error
    # Named, because some releases look nothing up when the hub is off.
    pipe.load_lora_weights(str(folder), weight_name=FILE, local_files_only=True)


def _has_form(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim in (2, 4)


def _padded(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    lack = rank - a.shape[0]
    b = torch.nn.functional.pad(b, (0, lack))
    a = torch.nn.functional.pad(a, (0, 0, 0, lack))
    return b.float(), a.float()
