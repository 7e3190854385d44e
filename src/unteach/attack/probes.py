"""The usual measure of an attack: denoising losses of held-out sets at fixed noise and timesteps.

Two curves differ by the weights alone, and all sets are measured under every attack: what is attacked, what is
innocent, everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unteach.core import seeds
from unteach.core.loop import Step
from unteach.diffusion.examples import Examples, disjoint
from unteach.diffusion.model import Model
from unteach.errors import ConfigError

__all__ = ["Probes", "check_disjoint", "probe_losses"]


@dataclass(frozen=True, eq=False)
class Probes:
    """Mean denoising loss of each set.

    Args:
        sets: name to held-out examples.
        draws: noise draws for each image.
        seed: root of noise and timesteps; keep it, so that curves are paired.

    Raises:
        ConfigError: no set, or no draw.
    """

    sets: Mapping[str, Examples]
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sets or self.draws < 1:
            raise ConfigError(
                "an attack needs probes and at least one draw of noise",
                found=f"{len(self.sets)} probes, {self.draws} draws",
            )

    def __call__(self, model: Model) -> dict[str, float]:
        """Measure."""
        found = {
            name: probe_losses(model, probe, seed=self.seed, draws=self.draws) for name, probe in self.sets.items()
        }
        return {name: float(losses.mean()) for name, losses in found.items()}

    def digests(self) -> dict[str, str]:
        """Digest of each set."""
        return {name: probe.digest() for name, probe in self.sets.items()}

    def identity(self) -> dict[str, Any]:
        """What decides what is measured, as plain data."""
        return {"probes": self.digests(), "draws": self.draws, "probe_seed": self.seed}


@torch.no_grad()
def probe_losses(model: Model, examples: Examples, *, seed: int, draws: int = 4) -> Tensor:
    """Denoising loss of each example, (N,), float64: mean over ``draws`` fixed draws of noise and timestep.

    Draws depend on seed, draw and row alone. In each draw the timesteps are spread evenly over the examples, in an
    order that is drawn too.
    """
    total = torch.zeros(len(examples), dtype=torch.float64)
    for draw in range(draws):
        step = Step(draw, draws, seed)
        order = seeds.permutation(len(examples), seed, "probe order", draw)
        t = model.schedule.spread(step, range(len(examples)), len(examples))[order]
        for rows in torch.split(torch.arange(len(examples)), 64):
            x = examples.latents[rows].to(model.device, model.dtype)
            noise = step.randn("probe noise", x.shape[1:], rows.tolist()).to(x)
            now = t[rows].to(model.device)
            out = model.predict(model.noise(x, noise, now), now, examples.conditioning.index(rows))
            each = (out.float() - model.target(x, noise, now).float()).square().flatten(1).mean(1)
            total[rows] += each.double().cpu() / draws
    return total


def check_disjoint(data: Examples, probes: Mapping[str, Examples], mask_data: Sequence[Examples] = ()) -> None:
    """Refuse an attack whose data, probes and mask-learning data share an image.

    Raises:
        DataError: two of them overlap. Probes may overlap each other, and so may the mask's sets.
    """
    for probe in probes.values():
        disjoint(data, probe)
    for learned in mask_data:
        for other in (data, *probes.values()):
            disjoint(learned, other)
