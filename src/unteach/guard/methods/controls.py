"""Masks to compare a learned one with: the same kind (names of frozen tensors), the same exact budget.

freezeasguard.md §6.3 lists them. A learned mask says something only where it beats random masks that match it in
parameters and layer types.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from unteach.core import seeds
from unteach.diffusion.model import Model
from unteach.errors import ConfigError
from unteach.guard.budget import highest, layer_type
from unteach.guard.data import GuardData
from unteach.guard.methods.base import Guard, Guarded, Job, Scored, Selection, guards
from unteach.guard.methods.learner import learn
from unteach.guard.methods.learning import Learning
from unteach.guard.methods.relearn import Relearning, relearn, unchanged

__all__ = ["magnitude", "matched", "random_tensors"]


@guards.add("none")
@dataclass(frozen=True, kw_only=True)
class Nothing(Guard):
    """Nothing is frozen."""

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Freeze nothing."""
        return Guarded(Selection(()))


@guards.add("random")
@dataclass(frozen=True, kw_only=True)
class Random(Scored):
    """A random order of the tensors, cut at the budget; needs nothing but the seed."""

    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """A tensor's place in the order."""
        return _shuffled(_names(model), job.seed)


@guards.add("cross-attention-kv")
@dataclass(frozen=True, kw_only=True)
class CrossAttentionKV(Scored):
    """Cross-attention keys and values first, in random order, then random others until the budget is used."""

    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """A tensor's place in the order."""
        return _first(_names(model), set(model.cross_attention_kv()), job.seed)


@guards.add("mid-up")
@dataclass(frozen=True, kw_only=True)
class MidUp(Scored):
    """Tensors of the middle and up blocks first, in random order, then random others until the budget is used."""

    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """A tensor's place in the order.

        Raises:
            ConfigError: the denoiser is no U-Net.
        """
        table = model.conventions.layers(_names(model))
        members = {name for name, layer in table.items() if layer.part.startswith(("mid_", "up_"))}
        if not members:
            kind = type(model.denoiser).__name__
            raise ConfigError("'mid-up' is about a U-Net's middle and up blocks", found=f"a {kind}, which has none")
        return _first(_names(model), members, job.seed)


@guards.add("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude(Relearning, Scored):
    """What moves most in relearning: mean |θ_ft - θ_pre| over a tensor's entries."""

    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """Relearn, and compare."""
        with unchanged(model, job.out) as (folder, before):
            relearn(model, data, self, seed=job.seed, out=folder, events=job.events)
            with safe_open(before, framework="pt") as file:
                after = dict(model.denoiser.named_parameters())
                return magnitude({name: file.get_tensor(name) for name in after}, after)


@guards.add("inverted")
@dataclass(frozen=True, kw_only=True)
class Inverted(Learning):
    """The tensors that a learned mask would freeze last, within the budget."""

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Learn, and freeze the lowest scores."""
        learned = learn(model, data, self, seed=job.seed, out=job.out, events=job.events)
        chosen = highest(model, {n: -score for n, score in learned.scores.items()}, self.rho, self.budget)
        return Guarded(Selection(chosen, measure=self.budget, rho=self.rho))


@guards.add("random-tensors")
@dataclass(frozen=True, kw_only=True)
class RandomTensors(Learning):
    """As many tensors as a learned mask freezes, at random: exact in tensors; rho is only the learned mask's."""

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Learn, and draw as many."""
        learned = learn(model, data, self, seed=job.seed, out=job.out, events=job.events)
        return Guarded(Selection(random_tensors(_names(model), learned.frozen, job.seed), measure=self.budget))


@guards.add("random-matched")
@dataclass(frozen=True, kw_only=True)
class RandomMatched(Learning):
    """At random, with a learned mask's layer-type histogram and parameters; rho is only the learned mask's."""

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Learn, and draw what matches."""
        learned = learn(model, data, self, seed=job.seed, out=job.out, events=job.events)
        chosen = matched(dict(model.denoiser.named_parameters()), learned.frozen, job.seed)
        return Guarded(Selection(chosen, measure=self.budget))


def magnitude(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean |after - before| over the entries of each tensor."""
    return {n: float((value.detach() - before[n].to(value)).abs().mean()) for n, value in after.items()}


def random_tensors(names: Collection[str], like: Collection[str], seed: int) -> set[str]:
    """As many of the names as ``like`` has, at random."""
    order = _shuffled(names, seed)
    return set(sorted(order, key=lambda name: order[name])[: len(like)])


def matched(
    params: Mapping[str, Tensor], like: Collection[str], seed: int, *, tolerance: float = 0.01, tries: int = 20000
) -> set[str]:
    """A random mask with as many tensors of each layer type as ``like``, and nearly as many parameters.

    It starts from a random draw within each type; random exchanges within a type that bring the number of parameters
    nearer to that of ``like`` are kept until it is within ``tolerance`` of all the model's parameters. When ``tries``
    exchanges do not suffice, the draw is within equal type *and size* instead, which matches exactly.

    Args:
        params: name to tensor of the whole denoiser.
        like: names of the mask to match.
        seed: root of the draw.
        tolerance: share of the model's parameters.
        tries: exchanges to try.
    """
    generator = seeds.generator(seed, "matched mask")
    sizes = {name: value.numel() for name, value in params.items()}
    kinds = {name: layer_type(name, value.ndim) for name, value in params.items()}
    goal = sum(sizes[name] for name in like)
    slack = tolerance * sum(sizes.values())
    chosen = _draw_within(kinds, like, generator)
    gap = sum(sizes[name] for name in chosen) - goal
    members = _by_kind(kinds)
    inside = sorted(chosen)
    for _ in range(tries if inside else 0):
        if abs(gap) <= slack:
            break
        place = int(torch.randint(len(inside), (), generator=generator))
        others = members[kinds[inside[place]]]
        new = others[int(torch.randint(len(others), (), generator=generator))]
        change = sizes[new] - sizes[inside[place]]
        if new not in chosen and abs(gap + change) < abs(gap):
            chosen.remove(inside[place])
            chosen.add(new)
            inside[place] = new
            gap += change
    if abs(gap) <= slack:
        return chosen
    return _draw_within({name: f"{kinds[name]} {sizes[name]}" for name in params}, like, generator)


def _names(model: Model) -> list[str]:
    return [name for name, _ in model.denoiser.named_parameters()]


def _shuffled(names: Collection[str], seed: int) -> dict[str, float]:
    """A random score for each tensor: its place in a random order."""
    order = seeds.permutation(len(names), seed, "random mask").tolist()
    return dict(zip(names, map(float, order), strict=True))


def _first(names: Collection[str], members: set[str], seed: int) -> dict[str, float]:
    scores = _shuffled(names, seed)
    return {name: score + (len(scores) if name in members else 0) for name, score in scores.items()}


def _by_kind(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        found.setdefault(kind, []).append(name)
    return found


def _draw_within(kinds: Mapping[str, str], like: Collection[str], generator: torch.Generator) -> set[str]:
    """As many names of each kind as ``like`` has, at random."""
    chosen: set[str] = set()
    for kind, names in _by_kind(kinds).items():
        count = sum(1 for name in like if kinds[name] == kind)
        order = torch.randperm(len(names), generator=generator).tolist()
        chosen |= {names[i] for i in order[:count]}
    return chosen
