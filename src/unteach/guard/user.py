"""The simulated user of mask learning: full or low-rank fine-tuning with SGD or AdamW, one tensor at a time."""

import torch
from torch import Tensor

from unteach.core import seeds
from unteach.guard.config import FreezeAsGuard


class User:
    """The simulated user: moves θ_ft, so the difference by +u and the blend by -(1 - m)·u."""

    def __init__(self, config: FreezeAsGuard, seed: int) -> None:
        self.config, self.seed = config, seed
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.begin(0)

    def begin(self, life: int) -> None:
        """A new user: settings drawn from the pool, no moments."""
        c = self.config
        pick = seeds.integer(self.seed, "user", life)
        self.rate = c.user_rates[pick % len(c.user_rates)]
        self.rank = c.user_ranks[(pick // 7919) % len(c.user_ranks)]
        self.moments.clear()
        self.count, self.life = 0, life

    def update(self, name: str, gradient: Tensor) -> Tensor:
        """u, what the optimiser would subtract from θ_ft (to be called once a tensor and step)."""
        if self.rank and gradient.ndim > 1:
            gradient = self._within(name, gradient)
        if self.config.user == "sgd":
            return self.rate * gradient
        if name not in self.moments:
            self.moments[name] = (torch.zeros_like(gradient), torch.zeros_like(gradient))
        first, second = self.moments[name]
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        n = self.count + 1
        return self.rate * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)

    def _within(self, name: str, gradient: Tensor) -> Tensor:
        wide = gradient.flatten(1)
        if self.rank >= wide.shape[1]:
            return gradient
        generator = seeds.generator(self.seed, f"subspace {name}", self.life)
        basis, _ = torch.linalg.qr(torch.randn(wide.shape[1], self.rank, generator=generator))
        basis = basis.to(wide)
        kept: Tensor = ((wide @ basis) @ basis.T).view_as(gradient)
        return kept
