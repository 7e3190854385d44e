"""Masks to compare a learned one with: the same kind (names of frozen tensors), the same exact budget.

freezeasguard.md §6.3 lists them. A learned mask says something only where it beats random masks that match it in
parameters and layer types.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unteach.core import masks, seeds
from unteach.core.loop import Step
from unteach.core.registry import Registry
from unteach.diffusion.examples import Examples, mixed
from unteach.diffusion.families import layers
from unteach.diffusion.model import Model
from unteach.errors import ConfigError
from unteach.guard.budget import Budget, costs
from unteach.guard.data import GuardData, losses
from unteach.guard.learn import Learned


@dataclass(frozen=True, eq=False)
class Case:
    """What masks are built from; each baseline says which of it it needs.

    Attributes:
        model: what will be published, holding θ_pre.
        rho: share to freeze; by ``masks.by_score``, so the largest that fits, tensor by tensor in order of score.
        budget: share of what.
        seed: of random choices.
        relearned: θ_ft by name, after fine-tuning on the mask's data.
        data: the mask's data; saliency is measured on the publisher's level.
        learned: the mask to invert or to match.
        samples: images a class for saliency.
    """

    model: Model
    rho: float
    budget: Budget = "tensors"
    seed: int = 0
    relearned: Mapping[str, Tensor] | None = None
    data: GuardData | None = None
    learned: Learned | None = None
    samples: int = 64

    def params(self) -> dict[str, nn.Parameter]:
        """The denoiser's parameters by name."""
        return dict(self.model.denoiser.named_parameters())

    def top(self, scores: Mapping[str, float]) -> set[str]:
        """The highest scores within the budget."""
        measure: masks.Measure = "tensors" if self.budget == "tensors" else "parameters"
        return masks.by_score(scores, costs(self.model, self.budget), self.rho, measure)


baselines: Registry[Callable[[Case], set[str]]] = Registry("mask")
"""Name to builder, case -> names of the frozen tensors."""


@baselines.add("none")
def none(case: Case) -> set[str]:
    """Nothing is frozen, whatever rho."""
    return set()


@baselines.add("random")
def random(case: Case) -> set[str]:
    """A random order of the tensors, cut at the budget; needs nothing but the seed."""
    return case.top(_shuffled(case))


@baselines.add("cross-attention-kv")
def cross_attention_kv(case: Case) -> set[str]:
    """Cross-attention keys and values first, in random order, then random others until the budget is used."""
    return case.top(_first(case, set(case.model.cross_attention_kv())))


@baselines.add("mid-up")
def mid_up(case: Case) -> set[str]:
    """Tensors of the middle and up blocks first, in random order, then random others until the budget is used."""
    table = case.model.conventions.layers(case.params())
    members = {name for name, layer in table.items() if layer.part.startswith(("mid_", "up_"))}
    if not members:
        kind = type(case.model.denoiser).__name__
        raise ConfigError("'mid-up' is about a U-Net's middle and up blocks", found=f"a {kind}, which has none")
    return case.top(_first(case, members))


@baselines.add("magnitude")
def magnitude(case: Case) -> set[str]:
    """What moves most in relearning: mean |θ_ft - θ_pre| over a tensor's entries; needs ``relearned``."""
    after = case.relearned
    if after is None:
        raise _lacks("magnitude", "relearned")
    return case.top({n: float((after[n].to(v) - v.detach()).abs().mean()) for n, v in case.params().items()})


@baselines.add("gradient-saliency")
def gradient_saliency(case: Case) -> set[str]:
    """Mean |gradient| of the illegal loss over that of the innocent loss; needs ``data``."""
    return case.top(_ratio(case, squared=False))


@baselines.add("fisher-saliency")
def fisher_saliency(case: Case) -> set[str]:
    """Mean squared per-sample gradient, illegal over innocent (diagonal Fisher); needs ``data``."""
    return case.top(_ratio(case, squared=True))


@baselines.add("gradient-share")
def gradient_share(case: Case) -> set[str]:
    """Where illegal data puts more of its gradient than innocent data does; needs ``data``.

    A step of AdamW moves every entry by about the rate, so a tensor's part in the first fall of the loss is its share
    of Σ|mean gradient|; ordered by the illegal share less the innocent one. One look at the gradient, no learning.
    """
    if case.data is None:
        raise _lacks("gradient-share", "data")
    sizes = {name: value.numel() for name, value in case.params().items()}
    sides = []
    for word, parts in (("illegal", case.data.illegal_publisher), ("innocent", case.data.innocent_publisher)):
        sums = {name: v * sizes[name] for name, v in _saliency(case, mixed(word, parts), False).items()}
        whole = max(sum(sums.values()), 1e-30)
        sides.append({name: value / whole for name, value in sums.items()})
    return case.top({name: sides[0][name] - sides[1][name] for name in sizes})


@baselines.add("inverted")
def inverted(case: Case) -> set[str]:
    """The tensors that ``learned`` would freeze last, within the budget."""
    if case.learned is None:
        raise _lacks("inverted", "learned")
    return case.top({name: -score for name, score in case.learned.scores.items()})


@baselines.add("random-tensors")
def random_tensors(case: Case) -> set[str]:
    """As many tensors as ``learned`` freezes, at random: exact in tensors; rho is not used."""
    if case.learned is None:
        raise _lacks("random-tensors", "learned")
    order = _shuffled(case)
    return set(sorted(order, key=lambda name: order[name])[: len(case.learned.frozen)])


@baselines.add("random-matched")
def random_matched(case: Case) -> set[str]:
    """At random, with ``learned``'s layer-type histogram and parameters; see :func:`matched`; rho is not used."""
    if case.learned is None:
        raise _lacks("random-matched", "learned")
    return matched(case.params(), case.learned.frozen, case.seed)


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
        seed: of the draw.
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


_TYPES = ("cross-attention", "self-attention", "feed-forward", "transformer", "resnet")


def layer_type(name: str, ndim: int) -> str:
    """The kind of layer (freezeasguard.md §1.1) and whether it is a weight or a vector (bias, norm)."""
    kind = layers([name])[name].kind
    return f"{kind if kind in _TYPES else 'other'} {'weight' if ndim > 1 else 'vector'}"


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


def _shuffled(case: Case) -> dict[str, float]:
    """A random score for each tensor: its place in a random order."""
    names = list(case.params())
    order = seeds.permutation(len(names), case.seed, "random mask").tolist()
    return dict(zip(names, map(float, order), strict=True))


def _first(case: Case, members: set[str]) -> dict[str, float]:
    scores = _shuffled(case)
    return {name: score + (len(scores) if name in members else 0) for name, score in scores.items()}


def _ratio(case: Case, *, squared: bool) -> dict[str, float]:
    if case.data is None:
        raise _lacks("saliency", "data")
    illegal = _saliency(case, mixed("illegal", case.data.illegal_publisher), squared)
    innocent = _saliency(case, mixed("innocent", case.data.innocent_publisher), squared)
    return {name: value / max(innocent[name], 1e-30) for name, value in illegal.items()}


def _saliency(case: Case, examples: Examples, squared: bool) -> dict[str, float]:
    """Mean over a tensor's entries of |mean gradient|, or of the mean squared gradient, over single samples.

    Noise and timesteps are the same for every set, so the ratio compares data alone.
    """
    params = case.params()
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for value in params.values():
        value.requires_grad_(True)
    try:
        for k in range(case.samples):
            step = Step(k, case.samples, case.seed)
            row = step.randint("saliency rows", len(examples), [0])
            (loss,) = losses(case.model, [(examples.latents[row], examples.conditioning.index(row))], step, "saliency")
            grads = torch.autograd.grad(loss.mean(), list(params.values()), allow_unused=True)
            for name, grad in zip(params, grads, strict=True):
                if grad is not None:
                    total[name] += grad.square() if squared else grad
    finally:
        for value in params.values():
            value.requires_grad_(False)
    return {name: float(value.abs().mean()) / case.samples for name, value in total.items()}


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


def _lacks(name: str, what: str) -> ConfigError:
    return ConfigError(f"the mask '{name}' needs '{what}' in its case", fix=f"pass Case(..., {what}=...)")
