"""Encoded images with their captions, as data for fine-tuning; sets that must not overlap say so."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unteach.core import seeds, state
from unteach.core.loop import Step
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Examples:
    """Images as latents, with encoded captions.

    Attributes:
        name: for messages and records.
        latents: (N, C, h, w), scaled.
        conditioning: N rows.
        ids: what each image is of, N names; two sets are disjoint when no name is in both.
        captions: N texts.
    """

    name: str
    latents: Tensor
    conditioning: Conditioning
    ids: tuple[str, ...]
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = {len(self.latents), len(self.conditioning), len(self.ids), len(self.captions)}
        if len(counts) != 1 or not len(self.latents):
            raise DataError(
                f"the examples '{self.name}' need one caption and one name an image, and at least one image",
                found=f"{len(self.latents)} images, {len(self.captions)} captions, {len(self.ids)} names",
            )

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, rows: Tensor | Sequence[int], name: str = "") -> "Examples":
        """The chosen rows."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        listed = index.tolist()
        return Examples(
            name or self.name,
            self.latents[index],
            self.conditioning.index(index),
            tuple(self.ids[i] for i in listed),
            tuple(self.captions[i] for i in listed),
        )

    def split(self, shares: Sequence[float], seed: int) -> list["Examples"]:
        """Disjoint parts by name: every image of one name falls into one part.

        Args:
            shares: share of the names for each part, at most 1 in all; a part gets at least one name.
            seed: which names.

        Raises:
            ConfigError: shares above 1 in all, or fewer names than parts.
        """
        names = sorted(set(self.ids))
        if sum(shares) > 1 + 1e-9 or len(names) < len(shares):
            raise ConfigError(f"'{self.name}' cannot be split so", found=f"shares {list(shares)} of {len(names)} names")
        order = [names[i] for i in seeds.permutation(len(names), seed, f"split {self.name}").tolist()]
        parts, start = [], 0
        for k, share in enumerate(shares):
            left = len(shares) - k - 1
            count = min(max(1, round(share * len(names))), len(names) - start - left)
            chosen = set(order[start : start + count])
            start += count
            parts.append(self.rows([i for i, name in enumerate(self.ids) if name in chosen], f"{self.name}/{k}"))
        return parts

    def batches(self, step: Step, items: range) -> tuple[Tensor, Conditioning]:
        """Random rows for :func:`unteach.diffusion.finetune.finetune`, a function of seed, step and item."""
        rows = step.randint(f"rows {self.name}", len(self), items)
        return self.latents[rows], self.conditioning.index(rows)

    def digest(self) -> str:
        """Of names, captions and the latents' shape, so that it is the same on every machine.

        The latents themselves differ in their last bits from one processor to the next. Names that should tell changed
        pictures apart are hashes of their pixels.
        """
        return state.fingerprint({"ids": self.ids, "shape": list(self.latents.shape), "captions": self.captions})


def encoded(
    model: Model | Pipeline, name: str, images: Tensor, captions: Sequence[str], ids: Sequence[str]
) -> Examples:
    """Encode images (N, 3, H, W), float in [0, 1], and captions with a model's own encoders."""
    model = Model.of(model)
    latents = torch.cat([model.to_latents(part) for part in torch.split(images, 64)])
    return Examples(name, latents.cpu(), model.encode(list(captions)), tuple(ids), tuple(captions))


def disjoint(*sets: Examples) -> None:
    """Refuse sets that share an image's name.

    Raises:
        DataError: two of them overlap.
    """
    for i, a in enumerate(sets):
        for b in sets[i + 1 :]:
            if shared := sorted(set(a.ids) & set(b.ids)):
                raise DataError(
                    f"'{a.name}' and '{b.name}' must not share images: what was learned from is no test",
                    found=f"{len(shared)} in both, such as {shared[0]}",
                    fix="split the data with Examples.split",
                )


def mixed(name: str, parts: Sequence[Examples]) -> Examples:
    """Sets joined behind each other; draw with equal weight a set by :func:`balanced`."""
    return Examples(
        name,
        torch.cat([part.latents for part in parts]),
        Conditioning.cat([part.conditioning for part in parts]),
        tuple(i for part in parts for i in part.ids),
        tuple(c for part in parts for c in part.captions),
    )
