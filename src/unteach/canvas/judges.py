"""Judges: what object is in a picture, and in whose style? Bundled, small, independent of each other.

Every count of this package's evaluation on EmojiCanvas ("was it drawn?") is a judge's word, so there are two
of different kinds: a claim should hold under both.
"""

import functools
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from unteach.canvas import model_path
from unteach.canvas.nets import CLASSES, Logits, networks
from unteach.core import state
from unteach.data.emoji import OBJECTS, SIZE, STYLES
from unteach.errors import CheckpointError, DataError
from unteach.records.base import check_heading

__all__ = ["Judge", "judges", "load", "save"]

FORMAT, VERSION = "unteach-judge", 1
"""What a judge's file says it is."""

BATCH: Final = 256
"""Pictures judged at once."""


class Judge:
    """Names the object and the style of pictures, or says "none of these" (the last index).

    A picture that holds a value that is not finite shows nothing: "none", with certainty. Values outside
    [0, 1] are clamped, as on a screen.

    Args:
        name: short name, as in :func:`judges`.
        net: pictures (B, 3, 32, 32) to logits (B, 61) and (B, 9); taken over and set to evaluation.
        meta: what the file told of it (measured accuracies and so on).
    """

    def __init__(self, name: str, net: nn.Module, meta: dict[str, Any] | None = None) -> None:
        self.name, self.net, self.meta = name, net.eval().requires_grad_(False), dict(meta or {})

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices: objects (N,) in 0..60 and styles (N,) in 0..8, int64, on the CPU.

        Args:
            images: (N, 3, 32, 32), float in [0, 1].

        Raises:
            DataError: another shape or type.
        """
        objects, styles = self.probabilities(images)
        return objects.argmax(dim=1), styles.argmax(dim=1)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of objects (N, 61) and styles (N, 9), "none of these" last; see :meth:`__call__`."""
        if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
            raise DataError(
                f"a judge looks at pictures of shape (N, 3, {SIZE}, {SIZE})",
                found=tuple(images.shape),
                fix="resize the pictures, or add the batch dimension",
            )
        if not images.is_floating_point():
            raise DataError(
                "a judge looks at float pictures in [0, 1]",
                found=images.dtype,
                fix="divide uint8 pixels by 255",
            )
        if not len(images):
            return torch.empty(0, CLASSES[0] + 1), torch.empty(0, CLASSES[1] + 1)
        images = images.detach().to("cpu", torch.float32)
        whole = torch.isfinite(images).all(dim=3).all(dim=2).all(dim=1)
        images = torch.nan_to_num(images).clamp(0, 1)
        parts = [self._softmax(self.net(batch)) for batch in torch.split(images, BATCH)]
        out = [torch.cat(part) for part in zip(*parts, strict=True)]
        for table in out:
            table[~whole] = torch.eye(table.shape[1])[-1]
        return out[0], out[1]

    @staticmethod
    def _softmax(logits: Logits) -> Logits:
        return logits[0].softmax(dim=1), logits[1].softmax(dim=1)

    def describe(self) -> str:
        """One line: name, kind, size and measured accuracy."""
        size = sum(p.numel() for p in self.net.parameters()) / 1e6
        line = f"{self.name}: {getattr(self.net, 'summary', type(self.net).__name__)}, {size:.2f} M parameters"
        measured = self.meta.get("measured", {}).get("weak views")
        if measured is None:
            return line
        return f"{line}; right on fresh views: object {measured['object']:.3f}, style {measured['style']:.3f}"


def save(path: Path | str, name: str, net: nn.Module, **meta: Any) -> Path:
    """Write a judge: matrices and kernels as fp16, vectors as fp32."""
    tensors = {
        key: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for key, value in net.state_dict().items()
    }
    classes = {"objects": [info.file for info in OBJECTS], "styles": list(STYLES)}
    return state.save(
        path, tensors, {"format": FORMAT, "version": VERSION, "network": name, "classes": classes, **meta}
    )


def load(path: Path | str) -> Judge:
    """Read a judge that :func:`save` wrote; it computes in fp32.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or names other objects and styles.
    """
    path = Path(path)
    tensors, meta = state.load(path)
    check_heading(meta, FORMAT, VERSION, str(path))
    if meta.get("network") not in networks:
        raise CheckpointError(
            f"{path} is not a judge of this version",
            found=f"network {meta.get('network')!r:.80}",
            fix="reinstall unteach, or train the judges: python -m tools.canvas.train_judges",
        )
    if meta["classes"] != {"objects": [info.file for info in OBJECTS], "styles": list(STYLES)}:
        raise CheckpointError(
            f"{path} knows other objects or styles than this version's grid",
            fix="train the judges again in the repository: python -m tools.canvas.train_judges",
        )
    net = networks[meta["network"]]()
    try:
        net.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the network '{meta['network']}' of this version",
            found=error,
            fix="train it again",
        ) from error
    return Judge(meta["network"], net, meta)


@functools.cache
def judges() -> dict[str, Judge]:
    """The bundled judges by name, "cnn" first.

    Raises:
        CheckpointError: none are bundled, or a file is damaged.
    """
    files = sorted((model_path() / "judges").glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            "no judges are bundled with this installation",
            fix="reinstall unteach, or train them in its repository: python -m tools.canvas.train_judges",
        )
    return {judge.name: judge for judge in map(load, files)}
