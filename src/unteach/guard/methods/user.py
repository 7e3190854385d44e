"""The simulated user of mask learning: full or low-rank fine-tuning with SGD or AdamW, one tensor at a time."""

import tempfile
import weakref

import torch
from torch import Tensor

from unteach.core import seeds
from unteach.guard.methods.learning import Learning


class User:
    """The simulated user: moves θ_ft, so the difference by +u and the blend by -(1 - m)·u.

    AdamW's moments are two weight sets. With ``moments="disk"`` they are in a temporary file that goes with the user,
    read and written one tensor at a time: the updates are the same to the bit, the memory is that of SGD.
    """

    def __init__(self, config: Learning, seed: int) -> None:
        self.config, self.seed = config, seed
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._places: dict[str, int] = {}
        self._end = 0
        self._file = None
        if config.moments == "disk" and config.user == "adamw":
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the user)
            weakref.finalize(self, self._file.close)
        self.begin(0)

    def begin(self, life: int) -> None:
        """A new user: settings drawn from the pool, no moments."""
        c = self.config
        pick = seeds.integer(self.seed, "user", life)
        self.rate = c.user_rates[pick % len(c.user_rates)]
        self.rank = c.user_ranks[(pick // 7919) % len(c.user_ranks)]
        self.moments.clear()
        self._places.clear()
        self._end = 0
        self.count, self.life = 0, life

    def update(self, name: str, gradient: Tensor) -> Tensor:
        """u, what the optimizer would subtract from θ_ft (to be called once a tensor and step)."""
        if self.rank and gradient.ndim > 1:
            gradient = self._within(name, gradient)
        if self.config.user == "sgd":
            return self.rate * gradient
        first, second = self._load(name, gradient)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        self._store(name, first, second)
        n = self.count + 1
        return self.rate * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)

    def _load(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both moments of a tensor, zero at first."""
        if self._file is None:
            if name not in self.moments:
                self.moments[name] = (torch.zeros_like(like), torch.zeros_like(like))
            return self.moments[name]
        raw = torch.zeros(2, like.nbytes, dtype=torch.uint8)
        if name in self._places:
            self._file.seek(self._places[name])
            self._file.readinto(raw.numpy().data)
        first, second = (row.view(like.dtype).view(like.shape).to(like.device) for row in raw)
        return first, second

    def _store(self, name: str, first: Tensor, second: Tensor) -> None:
        """Where the moments are on disk, write them back."""
        if self._file is None:
            return
        if name not in self._places:
            self._places[name] = self._end
            self._end += first.nbytes + second.nbytes
        self._file.seek(self._places[name])
        for moment in (first, second):
            self._file.write(moment.cpu().flatten().view(torch.uint8).numpy().data)

    def _within(self, name: str, gradient: Tensor) -> Tensor:
        wide = gradient.flatten(1)
        if self.rank >= wide.shape[1]:
            return gradient
        generator = seeds.generator(self.seed, f"subspace {name}", self.life)
        basis, _ = torch.linalg.qr(torch.randn(wide.shape[1], self.rank, generator=generator))
        basis = basis.to(wide)
        kept: Tensor = ((wide @ basis) @ basis.T).view_as(gradient)
        return kept
