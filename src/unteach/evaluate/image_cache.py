"""A folder of sampled pictures that grows chunk by chunk, so that an interrupted evaluation goes on where it
stopped.

A picture is known by its prompt and its noise seed, inside a folder named after everything else that decides
it (model, delta, sampler settings). Pictures of the unchanged model are therefore shared by all evaluations
of that model.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.errors import CheckpointError

Item = tuple[str, int]
Draw = Callable[[list[str], list[int]], Tensor]


def quantise(images: Tensor) -> Tensor:
    """Pictures in [0, 1] to uint8, as a PNG file would hold them."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


class ImageStore:
    """Pictures of one model under one set of settings, in memory and (with a folder) on disk.

    Args:
        folder: parent folder, shared by any number of stores; None keeps the pictures in memory only.
        config: everything but prompt and seed that decides a picture; names the store's own folder.

    Raises:
        CheckpointError: a chunk in the folder is damaged.
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.folder = None if folder is None else Path(folder) / state.fingerprint(self.config)[:16]
        self._images: dict[Item, Tensor] = {}
        if self.folder is not None and self.folder.is_dir():
            for path in sorted(self.folder.glob("*.safetensors")):
                self._read(path)

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, item: object) -> bool:
        return item in self._images

    def fetch(
        self,
        items: Sequence[Item],
        draw: Draw,
        *,
        chunk: int = 32,
        events: Events = SILENT,
        label: str = "sample",
    ) -> Tensor:
        """Pictures of ``items`` (N, 3, H, W) uint8, drawing and saving those that are missing, a chunk at a
        time.

        Args:
            items: (prompt, noise seed) pairs.
            draw: prompts and seeds to pictures (n, 3, H, W) in [0, 1].
            chunk: pictures drawn (and, at most, lost) at a time.
            events: told of the pictures that are drawn.
            label: what the events call this stage.
        """
        missing = [item for item in dict.fromkeys(items) if item not in self._images]
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            images = quantise(draw([prompt for prompt, _ in part], [seed for _, seed in part]))
            if self.folder is not None:
                name = state.fingerprint(part)[:16]
                meta = {"items": [list(item) for item in part], "config": self.config}
                state.save(self.folder / f"{name}.safetensors", {"images": images}, meta)
            self._images.update(zip(part, images, strict=True))
            events.step(label, min(start + chunk, len(missing)), len(missing))
        return torch.stack([self._images[item] for item in items])

    def _read(self, path: Path) -> None:
        tensors, meta = state.load(path)
        if state.canonical(meta.get("config")) != state.canonical(self.config) or "images" not in tensors:
            raise CheckpointError(
                f"{path} holds other pictures than its folder's name says", fix="delete it and run again"
            )
        try:
            items = [(str(prompt), int(seed)) for prompt, seed in meta["items"]]
            self._images.update(zip(items, tensors["images"], strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged", found=error, fix="delete it and run again") from error
