"""Data of mask learning: two levels, illegal and innocent, all disjoint; draws and losses of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unteach.core.loop import Step
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.domains import digests
from unteach.diffusion.examples import Examples, disjoint
from unteach.diffusion.model import Model
from unteach.errors import ConfigError

Batch = tuple[Tensor, Conditioning]
"""Latents (B, C, h, w) and B rows of conditioning."""


@dataclass(frozen=True, eq=False)
class GuardData:
    """Data of the two levels: the user's (lower) and the publisher's (upper), illegal and innocent; all disjoint.

    ``shared`` lets both levels draw from the same images, as the released code does.
    """

    illegal_user: Sequence[Examples]
    illegal_publisher: Sequence[Examples]
    innocent_user: Sequence[Examples]
    innocent_publisher: Sequence[Examples]
    shared: bool = False

    def __post_init__(self) -> None:
        lists = (self.illegal_user, self.illegal_publisher, self.innocent_user, self.innocent_publisher)
        if not all(lists):
            raise ConfigError("mask learning needs illegal and innocent data for the user and for the publisher")
        illegal = [*self.illegal_user, *self.illegal_publisher]
        innocent = [*self.innocent_user, *self.innocent_publisher]
        for a in illegal:
            for b in innocent:
                disjoint(a, b)
        if not self.shared:
            for a in self.illegal_user:
                for b in self.illegal_publisher:
                    disjoint(a, b)
            for a in self.innocent_user:
                for b in self.innocent_publisher:
                    disjoint(a, b)

    def digests(self) -> dict[str, str]:
        """What was learned from."""
        return digests(
            {
                "illegal user": self.illegal_user,
                "illegal publisher": self.illegal_publisher,
                "innocent user": self.innocent_user,
                "innocent publisher": self.innocent_publisher,
            }
        )


def draw(parts: Sequence[Examples], step: Step, purpose: str, count: int) -> tuple[Tensor, Conditioning]:
    """``count`` samples, as equally as possible from each set."""
    latents, rows = [], []
    for k, part in enumerate(parts):
        n = count // len(parts) + (k < count % len(parts))
        if n:
            index = step.randint(f"{purpose} {k}", len(part), range(n))
            latents.append(part.latents[index])
            rows.append(part.conditioning.index(index))
    return torch.cat(latents), Conditioning.cat(rows)


def pooled(parts: Sequence[Examples], step: Step, purpose: str, count: int) -> tuple[Tensor, Conditioning, Tensor]:
    """Samples drawn from all sets as one pool, so larger sets come more often; and each one's set, int64 (B,)."""
    sizes = torch.tensor([len(part) for part in parts])
    ends = sizes.cumsum(0)
    rows = step.randint(f"{purpose} pooled", int(ends[-1]), range(count))
    which = torch.searchsorted(ends, rows, right=True)
    within = (rows - (ends - sizes)[which]).tolist()
    chosen = [(parts[k], i) for k, i in zip(which.tolist(), within, strict=True)]
    latents = torch.stack([part.latents[i] for part, i in chosen])
    return latents, Conditioning.cat([part.conditioning.index([i]) for part, i in chosen]), which


def losses(
    model: Model,
    batches: Sequence[Batch],
    step: Step,
    purpose: str,
    *,
    spread: bool = True,
    shared: bool = True,
) -> list[Tensor]:
    """Denoising loss of each sample of each batch, (B_k,), in one pass; noise and timesteps are functions of the step.

    By default the i-th samples of all batches have the same noise, and of batches of equal size the same timestep
    (spread evenly over the range within each batch): what batches have in common then cancels in the difference of
    their losses, which stays unbiased. An empty batch gives (0,).

    Args:
        model: what predicts.
        batches: latents and conditioning; some may be empty.
        step: of the draws.
        purpose: a name of the draws.
        spread: timesteps are stratified within each batch; else each is drawn on its own.
        shared: batches share their noise.
    """
    latents = torch.cat([batch[0] for batch in batches]).to(model.device, model.dtype)
    conditioning = Conditioning.cat([batch[1] for batch in batches if len(batch[0])])
    sizes = [len(batch[0]) for batch in batches]
    noise = step.randn(f"{purpose} noise", latents.shape[1:], range(max(sizes) if shared else sum(sizes))).to(latents)
    if shared:
        noise = torch.cat([noise[:n] for n in sizes])
    if spread:
        t = torch.cat([model.schedule.spread(step, range(n), n) for n in sizes if n])
    else:
        t = model.schedule.draw(step, f"{purpose} timesteps", range(sum(sizes)))
    t = t.to(model.device)
    out = model.predict(model.noise(latents, noise, t), t, conditioning)
    each = (out.float() - model.target(latents, noise, t).float()).square().flatten(1).mean(1)
    return list(torch.split(each, sizes))


def upper(illegal: Tensor, innocent: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """L_up = (mean innocent loss - mean illegal loss) / 2; an absent class counts 0 (freezeasguard.md §1.3).

    Args:
        illegal, innocent: loss of each sample.
        weights: of the illegal and of the innocent mean.
    """
    bad, good = illegal.sum() / (len(illegal) + 1e-5), innocent.sum() / (len(innocent) + 1e-5)
    return 0.5 * (weights[1] * good - weights[0] * bad)


Level = Literal["user", "publisher"]


def mean_losses(
    model: Model, data: GuardData, seed: int, level: Level = "publisher", batches: int = 8, size: int = 16
) -> tuple[float, float]:
    """Mean denoising loss of a level's illegal and innocent data, on fixed draws: (illegal, innocent)."""
    sides = {
        "user": (data.illegal_user, data.innocent_user),
        "publisher": (data.illegal_publisher, data.innocent_publisher),
    }[level]
    totals = torch.zeros(2, dtype=torch.float64)
    for k in range(batches):
        step = Step(k, batches, seed)
        drawn = [draw(side, step, "gain", size) for side in sides]
        with torch.no_grad():
            totals += torch.stack([part.mean().double().cpu() for part in losses(model, drawn, step, "gain")])
    illegal, innocent = (totals / batches).tolist()
    return illegal, innocent
