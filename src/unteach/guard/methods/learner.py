"""Learn what to freeze: the bilevel problem of FreezeAsGuard (freezeasguard.md §1), two weight sets in memory.

The model holds the blend θ = m·θ_pre + (1 - m)·θ_ft; beside it stands the difference θ_pre - θ_ft. A publisher step
moves the mask's logits along <θ_pre - θ_ft, dL_up/dθ>, L_up = (-L_illegal + L_innocent)/2; a user step moves θ_ft as
a user would who trains on both. Gradients are used tensor by tensor, inside the backward pass, and dropped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unteach.core import masks, seeds
from unteach.core.events import SILENT, Events
from unteach.core.loop import Step
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import NumericsError
from unteach.guard.budget import costs, groups, projected
from unteach.guard.data import Batch, GuardData, draw, losses, mean_losses, pooled, upper
from unteach.guard.methods.base import Selection
from unteach.guard.methods.learning import Learning
from unteach.guard.methods.relearn import relearn, unchanged
from unteach.guard.methods.user import User

__all__ = ["MaskLearner", "jaccard", "learn"]


class MaskLearner:
    """The state of one run; :func:`learn` drives it. ``publisher`` and ``user`` are the two steps."""

    def __init__(self, model: Model, config: Learning, seed: int) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.params = dict(model.denoiser.named_parameters())
        self.names = list(self.params)
        self.cost = costs(model, config.budget)
        self.groups = groups(self.names, config.granularity)
        self.of = {name: k for k, members in enumerate(self.groups) for name in members}
        self.weight = torch.tensor([float(sum(self.cost[n] for n in g)) for g in self.groups])
        self.weight = self.weight / self.weight.sum()
        dtype = torch.float32 if config.logits == "fp32" else torch.bfloat16
        count = len(self.groups)
        if config.start == "equal":
            self.x = torch.zeros(count, dtype=dtype)
        else:
            self.x = torch.rand(count, generator=seeds.generator(seed, "logits")).to(dtype)
        if config.project:
            self.x = projected(self.x, self.weight, config.rho, config.temperature)
        self.average = torch.zeros(count)
        self.difference: dict[str, Tensor] = {}
        self.user_ = User(config, seed)
        self.weights = (1.0, config.innocent_weight)

    def mask(self) -> Tensor:
        """m, one entry a group."""
        return torch.sigmoid(self.x / self.config.temperature)

    def blend(self, pre: Callable[[str], Tensor]) -> None:
        """From θ_ft in the model and θ_pre as given: the difference, and the blend into the model."""
        kind = torch.float32 if self.config.difference == "fp32" else torch.bfloat16
        m = self.mask().float()
        with torch.no_grad():
            for name, value in self.params.items():
                gap = (pre(name).to(value) - value).to(kind)
                self.difference[name] = gap
                value.add_(gap.to(value), alpha=float(m[self.of[name]]))

    @contextmanager
    def _each(self, use: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Inside, every tensor's gradient is handed to ``use`` in the backward pass, and dropped."""
        handles = []
        for name, value in self.params.items():
            value.requires_grad_(True)

            def hook(param: Tensor, name: str = name) -> None:
                assert param.grad is not None
                use(name, param.grad)
                param.grad = None

            handles.append(value.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for value in self.params.values():
                value.requires_grad_(False)
                value.grad = None

    def _losses(self, batches: Sequence[Batch], step: Step, purpose: str) -> list[Tensor]:
        spread, shared = self.config.timesteps == "stratified", self.config.noise == "shared"
        return losses(self.model, batches, step, purpose, spread=spread, shared=shared)

    def publisher(self, illegal: Batch, innocent: Batch, step: Step) -> float:
        """One step of the mask; returns the largest |<θ_pre - θ_ft, dL_up/dθ>| of a group. One batch may be empty."""
        inner = torch.zeros(len(self.groups), dtype=torch.float64)
        unrolled: dict[str, Tensor] = {}
        if self.config.unrolled:
            with self._each(lambda name, g: unrolled.__setitem__(name, g.clone())):
                torch.autograd.backward(torch.cat(self._losses([illegal, innocent], step, "look-ahead")).mean())
        m = self.mask().double()

        def use(name: str, g: Tensor) -> None:
            k = self.of[name]
            inner[k] += float((self.difference[name].to(g) * g).sum())
            if name in unrolled:
                inner[k] += self.user_.rate * float((1 - m[k]) * (unrolled[name] * g).sum())

        with self._each(use):
            each = self._losses([illegal, innocent], step, "publisher")
            torch.autograd.backward(upper(each[0], each[1], self.weights))
        self.move(inner.float())
        return float(inner.abs().max())

    def move(self, inner: Tensor) -> None:
        """Move the logits along the groups' inner products (), and the blend with the mask."""
        c, before = self.config, self.mask()
        if not bool(torch.isfinite(inner).all()):
            raise NumericsError("the mask's gradient is not finite", fix="lower relearn_rate or user_rates")
        if c.normalise:
            self.average = c.mask_average * self.average + (1 - c.mask_average) * inner
            g = self.average if c.mask_average else inner
            x = self.x - c.mask_rate * g / g.square().mean().sqrt().clamp_min(1e-30)
        else:
            slope = (before * (1 - before) / c.temperature).float()
            gap = -2 * (c.rho - before.float().mean()) * slope / len(self.groups)
            x = self.x.float() - (c.mask_rate * inner * slope + c.sparsity * gap)  # rounded once, below
        self.x = projected(x, self.weight, c.rho, c.temperature) if c.project else x.to(self.x)
        change = (self.mask() - before).float()
        with torch.no_grad():
            for name, value in self.params.items():
                value.add_(self.difference[name].to(value), alpha=float(change[self.of[name]]))

    def user(self, batches: Sequence[Batch], step: Step) -> float:
        """One step of the simulated user on the samples of all batches; returns the mean loss."""
        m = self.mask().float()

        def use(name: str, g: Tensor) -> None:
            free = 1 - float(m[self.of[name]])
            # The gradient of θ_ft is (1 - m)·g. Adam divides by its size, SGD's step is linear in it.
            linear = self.config.user == "sgd"
            u = self.user_.update(name, g.detach() if linear else free * g.detach())
            moved = free if linear else 1.0
            with torch.no_grad():
                self.difference[name].add_(u.to(self.difference[name]), alpha=moved)
                self.params[name].sub_(u, alpha=moved * free)

        with self._each(use):
            loss = torch.cat(self._losses(batches, step, "user")).mean()
            torch.autograd.backward(loss)
        self.user_.count += 1
        return float(loss.detach())

    def hard(self) -> tuple[str, ...]:
        """The tensors to freeze: exact budget with projection, else the mask rounded, as the released code does."""
        if self.config.project:
            sizes = {str(k): sum(self.cost[n] for n in g) for k, g in enumerate(self.groups)}
            scores = {str(k): float(v) for k, v in enumerate(self.x)}
            measure: masks.Measure = "parameters"
            chosen = {int(k) for k in masks.by_score(scores, sizes, self.config.rho, measure)}
        else:
            chosen = {k for k, v in enumerate(self.mask().float().tolist()) if v > 0.5}
        return tuple(name for name in self.names if self.of[name] in chosen)


def learn(
    model: Model | Pipeline,
    data: GuardData,
    config: Learning,
    *,
    seed: int = 0,
    out: Path | None = None,
    events: Events = SILENT,
) -> Selection:
    """Learn a mask for ``model.denoiser``; the model's weights are bit for bit as before on return.

    Args:
        model: what will be published: a model, or a diffusers pipeline.
        data: disjoint data of both levels.
        config: settings.
        seed: root of all draws.
        out: folder for θ_pre and the relearned weights (a temporary one when None); a relearning that was interrupted
            goes on, a finished one is read. The mask's own steps always start anew, and give the same.
        events: told the steps of "relearning" and "mask", and in a sentence what relearning gave.

    Raises:
        ConfigError, DataError: settings or data that do not fit.
        NumericsError: something is not finite; or relearning gained nothing on held-out pictures.
    """
    model = Model.of(model, edit=True)
    with unchanged(model, out) as (folder, pre_path):
        return _learn(model, data, config, seed, folder, pre_path, events)


def _learn(
    model: Model,
    data: GuardData,
    c: Learning,
    seed: int,
    folder: Path,
    pre_path: Path,
    events: Events,
) -> Selection:
    learner = MaskLearner(model, c, seed)
    both = [*data.illegal_user, *data.innocent_user]
    sides = (list(data.illegal_user), list(data.innocent_user))
    before = mean_losses(model, data, seed) if c.scale == "gain" else None
    relearned = relearn(model, data, c, seed=seed, out=folder, events=events)
    if before is not None:
        learner.weights = _by_gain(before, mean_losses(model, data, seed), c.innocent_weight)
    start = relearned if c.user_start == "relearned" else pre_path
    _begin(learner, pre_path, start)
    log: list[dict[str, float]] = []
    last, stable, done = set(learner.hard()), 0, 0
    for index in range(c.steps):
        step = Step(index, c.steps, seed)
        done = index + 1
        if c.reset_every and index and index % c.reset_every == 0:
            _begin(learner, pre_path, start)
            learner.user_.begin(learner.user_.life + 1)
        if index % c.interval == 0:
            largest = learner.publisher(*_publisher_batches(data, c, step), step)
            now = set(learner.hard())
            overlap = jaccard(sorted(now), sorted(last))
            log.append(
                {
                    "step": index + 1,
                    "mean": float(learner.mask().float().mean()),
                    "largest": largest,
                    "jaccard": overlap,
                }
            )
            stable, last = (stable + 1 if now == last else 0), now
            if c.patience and stable >= c.patience:
                break
        elif c.balanced:
            learner.user([draw(side, step, f"user {k}", c.batch_size // 2) for k, side in enumerate(sides)], step)
        else:
            learner.user([pooled(both, step, "user", c.batch_size)[:2]], step)
        events.step("mask", done, c.steps)
    soft = learner.mask().float()
    return Selection(
        learner.hard(),
        {name: float(soft[learner.of[name]]) for name in learner.names},
        measure=c.budget,
        rho=c.rho,
        granularity=c.granularity,
        steps=done,
        log=log,
    )


def _by_gain(before: tuple[float, float], after: tuple[float, float], innocent: float) -> tuple[float, float]:
    """Weights that measure each side in its own gain; their mean is that of (1, ``innocent``).

    Raises:
        NumericsError: relearning gained nothing on a side, so there is nothing to measure in.
    """
    gains = [b - a for b, a in zip(before, after, strict=True)]
    sides = [f"{b:.4g} before, {a:.4g} after" for b, a in zip(before, after, strict=True)]
    if not all(math.isfinite(gain) and gain > 0 for gain in gains):
        raise NumericsError(
            "the relearned model is no better on one side, so its gain cannot be the unit of that side",
            found=f"losses: illegal {sides[0]}; innocent {sides[1]}",
            fix="relearned=best (with more pictures, where there are few), another relearn_rate, or scale=raw",
        )
    first, second = 1 / gains[0], innocent / gains[1]
    factor = (1 + innocent) / (first + second)
    return first * factor, second * factor


def _publisher_batches(data: GuardData, c: Learning, step: Step) -> tuple[Batch, Batch]:
    """The publisher's illegal and innocent samples: half and half, or as the pool gives them (§1.5: perhaps none)."""
    if c.balanced:
        half = c.batch_size // 2
        illegal = draw(data.illegal_publisher, step, "illegal", half)
        return illegal, draw(data.innocent_publisher, step, "innocent", half)
    parts = [*data.illegal_publisher, *data.innocent_publisher]
    latents, conditioning, which = pooled(parts, step, "publisher", c.batch_size)
    bad = which < len(data.illegal_publisher)
    rows = [bad.nonzero().flatten(), (~bad).nonzero().flatten()]
    first, second = ((latents[r], conditioning.index(r)) for r in rows)
    return first, second


def _begin(learner: MaskLearner, pre_path: Path, start: Path) -> None:
    """θ_ft is what ``start`` holds, under the mask of now; read tensor by tensor."""
    with torch.no_grad(), safe_open(start, framework="pt") as begun:
        for name, value in learner.params.items():
            value.copy_(begun.get_tensor(name))
    with safe_open(pre_path, framework="pt") as pre:
        learner.blend(pre.get_tensor)


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Overlap of two masks: names in both over names in either; 1 for two empty ones."""
    first, second = set(a), set(b)
    return len(first & second) / len(first | second) if first | second else 1.0
