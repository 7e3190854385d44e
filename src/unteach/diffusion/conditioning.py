"""What a denoiser is conditioned on, as one batch-shaped value."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unteach.errors import ConfigError


class Conditioning:
    """A batch of encoded prompts: tensors by name, each with one row a prompt. Which there are is the family's matter.

    Args:
        hidden: text encoder states, ``(B, L, D)``; every family has them.
        parts: what else the family's denoiser reads, ``(B, ...)`` each, such as a pooled text embedding.
    """

    def __init__(self, hidden: Tensor, **parts: Tensor) -> None:
        self._parts = {"hidden": hidden, **parts}

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name]

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def hidden(self) -> Tensor:
        """Text encoder states, ``(B, L, D)``."""
        return self._parts["hidden"]

    def tensors(self) -> dict[str, Tensor]:
        """All parts by name."""
        return dict(self._parts)

    def index(self, rows: Sequence[int] | Tensor | slice) -> "Conditioning":
        """The chosen rows, in the order given; a row may come more than once."""
        key = rows if isinstance(rows, slice | Tensor) else torch.tensor(list(rows), dtype=torch.int64)
        if isinstance(key, Tensor):
            key = key.to(self.hidden.device)
        return Conditioning(**{name: part[key] for name, part in self.tensors().items()})

    def expand(self, batch: int) -> "Conditioning":
        """This batch when it has ``batch`` rows already, its only row repeated when it has one.

        Raises:
            ConfigError: it has another number of rows.
        """
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ConfigError(f"{batch} latents need {batch} prompts, or one for all", found=f"{len(self)} prompts")
        return self.index([0] * batch)

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Batches joined into one along the batch axis.

        Raises:
            ConfigError: there is nothing to join, or the batches belong to different families.
        """
        if not parts:
            raise ConfigError("there is no conditioning to join", fix="pass at least one prompt")
        rows = [part.tensors() for part in parts]
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ConfigError("conditionings of different model families cannot be joined")
        return Conditioning(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]})
