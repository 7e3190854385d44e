"""Digests and differences of tensors that are read piece by piece, in memory or in a file."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unteach.errors import ModelError, NumericsError
from unteach.guard.verify.reader import PIECE

__all__ = [
    "CASTS", "Difference", "InMemory", "Readable", "cast_hashes", "compare", "component_digest", "is_component",
    "matches", "model_digest",
]  # fmt: skip

CASTS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The number formats that a frozen tensor is hashed in; casts round to nearest, ties to even."""


class Readable(Protocol):
    """A tensor that can be read in row-major order, flat piece by flat piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def type(self) -> torch.dtype | None:
        """Its torch type, None when it has none."""

    def pieces(self) -> Iterator[Tensor]:
        """Its elements, some at a time."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A tensor as a :class:`Readable`."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def type(self) -> torch.dtype:
        """Its torch type."""
        return self.tensor.dtype

    def pieces(self) -> Iterator[Tensor]:
        """Its elements, at most :data:`~unteach.guard.verify.reader.PIECE` bytes at a time, on the CPU."""
        flat = self.tensor.detach().contiguous().reshape(-1)
        step = PIECE // flat.element_size()
        for begin in range(0, flat.numel(), step):
            yield flat[begin : begin + step].cpu()


def _bytes(piece: Tensor) -> bytes:
    return piece.view(torch.uint8).numpy().tobytes()


def model_digest(tensors: Mapping[str, Readable]) -> str:
    """SHA-256 (hex) over names, shapes and values taken in float32, whatever the order of the tensors.

    The same number as :func:`unteach.diffusion.model.weights_digest` and ``Model.digest`` of that model, so a
    manifest, a delta and a checkpoint can be known to belong together.

    Raises:
        ModelError: a tensor has a format that torch cannot read.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.type is None:
            raise ModelError(f"'{name}' has a number format that cannot be read", fix="give the model unquantised")
        wide = torch.float32 if tensor.type.is_floating_point else tensor.type
        sha.update(f"{name}|{wide}|{tensor.shape}|".encode())
        for piece in tensor.pieces():
            sha.update(_bytes(piece.to(wide)))
    return sha.hexdigest()


def component_digest(tensors: Mapping[str, Readable]) -> str:
    """:func:`model_digest` of a component other than the policy's, under names that all releases of transformers share.

    transformers 4 puts "text_model." before a text encoder's names and may save its positions, which are counted.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    return model_digest({name.removeprefix("text_model."): tensor for name, tensor in kept.items()})


def is_component(tensors: Mapping[str, Readable], wanted: str) -> bool:
    """Whether a manifest's digest of a component is of these tensors; older manifests took the names as they were."""
    return wanted in (component_digest(tensors), model_digest(tensors))


def cast_hashes(name: str, tensor: Readable) -> dict[str, str]:
    """SHA-256 (hex) of the tensor's bytes (little-endian, row-major) cast to each of :data:`CASTS`.

    Raises:
        ModelError: its values are not floating-point numbers of 16 or 32 bits.
        NumericsError: a value is not finite.
    """
    if tensor.type not in CASTS.values():
        raise ModelError(
            f"'{name}' cannot be frozen in a manifest", found=tensor.type, fix="freeze tensors of fp32, fp16 or bf16"
        )
    shas = {cast: hashlib.sha256() for cast in CASTS}
    for piece in tensor.pieces():
        if not bool(torch.isfinite(piece).all()):
            raise NumericsError(
                f"'{name}' holds values that are not finite", fix="repair the model before it is frozen"
            )
        for cast, dtype in CASTS.items():
            shas[cast].update(_bytes(piece.to(dtype)))
    return {cast: sha.hexdigest() for cast, sha in shas.items()}


def matches(tensor: Readable, hashes: Mapping[str, str]) -> str | None:
    """Which cast of a frozen tensor this is, bit for bit: "fp32", "fp16", "bf16"; None when it is none.

    "fp16 in wider numbers" (bf16, fp32 likewise) is a tensor that was rounded and widened again, as happens when a
    model is trained or stored in 16 bits and saved in 32: every value is exactly the rounded one.
    """
    kind = tensor.type
    if kind not in _BITS_OF:
        return None
    own = next((cast for cast, dtype in CASTS.items() if dtype == kind), None)
    shas = {cast: hashlib.sha256() for cast, dtype in CASTS.items() if cast == own or dtype.itemsize < kind.itemsize}
    for piece in tensor.pieces():
        for cast in list(shas):
            rounded = piece.to(CASTS[cast])
            if cast == own or torch.equal(rounded.to(kind).view(_BITS_OF[kind]), piece.view(_BITS_OF[kind])):
                shas[cast].update(_bytes(rounded))
            else:
                del shas[cast]
    hits = [cast for cast, sha in shas.items() if sha.hexdigest() == hashes[cast]]
    if own in hits:
        return own
    return f"{hits[0]} in wider numbers" if hits else None


_BITS_OF = {
    torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16,
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How far a tensor is from another.

    Attributes:
        largest: max |new − old| in float64; infinite when a new value is not finite.
        changed: share of the elements whose bits differ, in [0, 1].
        rounding: whether no element is further than two steps of its number format from the old one.
    """

    largest: float
    changed: float
    rounding: bool


def compare(old: Readable, new: Readable, via: torch.dtype | None = None) -> Difference:
    """The difference between two floating-point tensors of as many elements.

    Args:
        old: cast to the new one's format first.
        new: what it became.
        via: a format that the old one is rounded to before.
    """
    assert new.type in _BITS_OF
    bits = _BITS_OF[new.type]
    largest, changed, total, rounding = 0.0, 0, 0, True
    for before, after in _paired(old.pieces(), new.pieces()):
        before = (before if via is None else before.to(via)).to(after.dtype)
        mask = before.view(bits) != after.view(bits)
        changed += int(mask.sum())
        total += after.numel()
        if not bool(mask.any()):
            continue
        first, last = before[mask].double(), after[mask].double()
        gap = (last - first).abs()
        largest = max(largest, float(torch.nan_to_num(gap, nan=math.inf, posinf=math.inf).max()))
        rounding = rounding and bool((gap <= 2 * torch.finfo(after.dtype).eps * first.abs()).all())
    return Difference(largest, changed / max(total, 1), rounding)


def _paired(left: Iterator[Tensor], right: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of two streams cut to equal lengths."""
    a = b = torch.empty(0)
    while True:
        a, b = _filled(a, lambda: next(left, None)), _filled(b, lambda: next(right, None))
        count = min(a.numel(), b.numel())
        if count == 0:
            return
        yield a[:count], b[:count]
        a, b = a[count:], b[count:]


def _filled(rest: Tensor, more: Callable[[], Tensor | None]) -> Tensor:
    while rest.numel() == 0:
        piece = more()
        if piece is None:
            break
        rest = piece
    return rest
