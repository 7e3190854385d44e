"""Data of mask learning: two levels, illegal and innocent, all disjoint; draws and losses of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from unteach.core import seeds
from unteach.core.loop import Step
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.domains import Domains, digests
from unteach.diffusion.examples import Examples, disjoint, mixed
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
        apart = [*product([*lists[0], *lists[1]], [*lists[2], *lists[3]])]
        if not self.shared:
            apart += [*product(lists[0], lists[1]), *product(lists[2], lists[3])]
        for a, b in apart:
            disjoint(a, b)

    @classmethod
    def of(cls, domains: Domains, model: Model) -> "GuardData":
        """The mask's share of the pictures of domains, encoded by the model."""
        sets = domains.learned(model)
        return cls(sets["illegal user"], sets["illegal publisher"], sets["innocent user"], sets["innocent publisher"])

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
        step: the step that draws.
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
        weights: factors on the illegal and on the innocent mean.
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


def relabelled(data: GuardData, seed: int, how: str = "shuffle") -> GuardData:
    """The mask's data with wrong labels: "swap" exchanges illegal and innocent, "shuffle" deals the images' names anew.

    Shuffling keeps how many names are illegal on each level, and keeps the levels disjoint. A mask that is learned
    from it and protects as well as the true one was not learned from what is illegal.

    Raises:
        ConfigError: another ``how``.
    """
    if how == "swap":
        return GuardData(
            data.innocent_user, data.innocent_publisher, data.illegal_user, data.illegal_publisher, data.shared
        )
    if how != "shuffle":
        raise ConfigError("labels are wrong by 'swap' or 'shuffle'", found=how)
    levels = [(data.illegal_user, data.innocent_user), (data.illegal_publisher, data.innocent_publisher)]
    pools = [tuple(mixed(f"level {k}", side) for side in level) for k, level in enumerate(levels)]
    if data.shared:  # a name that is on both levels must get one label
        every = [(mixed("all", [pools[0][0], pools[1][0]]), mixed("all", [pools[0][1], pools[1][1]]))]
        chosen = _dealt(every[0][0], every[0][1], seed, 0)
        labels = [chosen, chosen]
    else:
        labels = [_dealt(illegal, innocent, seed, k) for k, (illegal, innocent) in enumerate(pools)]
    sides = []
    for (illegal, innocent), chosen in zip(pools, labels, strict=True):
        whole = mixed("shuffled", [illegal, innocent])
        parts = [[i for i, name in enumerate(whole.ids) if (name in chosen) == bad] for bad in (True, False)]
        sides.append(
            [whole.rows(rows, f"shuffled {word}") for rows, word in zip(parts, ("illegal", "innocent"), strict=True)]
        )
    return GuardData([sides[0][0]], [sides[1][0]], [sides[0][1]], [sides[1][1]], data.shared)


def _dealt(illegal: Examples, innocent: Examples, seed: int, level: int) -> set[str]:
    """Which names are called illegal: as many as there are, at random."""
    names = sorted({*illegal.ids, *innocent.ids})
    order = seeds.permutation(len(names), seed, "shuffled labels", level).tolist()
    return {names[i] for i in order[: len(set(illegal.ids))]}
