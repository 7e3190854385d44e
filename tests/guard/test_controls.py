"""Masks to compare with: exact budgets, exact matching, determinism, and that each is what it says."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import toys
from tests.guard import sets

from unteach.core import seeds, state
from unteach.core.loop import Step
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.errors import ConfigError
from unteach.guard.budget import costs, highest, layer_type
from unteach.guard.data import GuardData, losses, relabelled
from unteach.guard.methods import Job, Selection, guards
from unteach.guard.methods.controls import magnitude, matched, random_tensors
from unteach.guard.methods.freezeasguard import FreezeAsGuard
from unteach.guard.methods.learner import learn


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tiny: Model) -> GuardData:
    return sets.guard_data(tiny, 4)


@pytest.fixture(scope="module")
def learned(tiny: Model) -> Selection:
    """A mask as a learned one is: 36 of the 122 tensors, and every tensor's score."""
    scores = {n: float(torch.rand((), generator=seeds.generator(1, n))) for n in toys.weights(tiny)}
    return Selection(tuple(n for n in scores if n in set(sorted(scores, key=lambda n: -scores[n])[:36])), scores)


FREE = ["cross-attention-kv", "fisher-saliency", "gradient-saliency", "gradient-share", "mid-up", "random"]
"""Guards with a budget that learn nothing."""


def chosen(model: Model, data: GuardData, name: str, seed: int = 0, **settings: Any) -> set[str]:
    few = {"samples": 3} if name not in ("cross-attention-kv", "mid-up", "random") else {}
    mask = guards.make(name, **few, **settings).run(model, data, Job(seed)).mask
    assert mask is not None
    return set(mask.frozen)


def test_the_registry() -> None:
    others = ["freezeasguard", "inverted", "magnitude", "none", "random-matched", "random-tensors"]
    assert guards.names() == sorted([*FREE, *others]) and guards.presets.names() == ["official"]


@pytest.mark.parametrize("budget", ["tensors", "parameters", "flops"])
@pytest.mark.parametrize("name", FREE)
def test_the_budget_is_exact_and_masks_are_deterministic(tiny: Model, data: GuardData, name: str, budget: Any) -> None:
    cost = costs(tiny, budget)
    for rho in (0.0, 0.3, 1.0):
        mask = chosen(tiny, data, name, rho=rho, budget=budget)
        used, limit = sum(cost[n] for n in mask), math.floor(rho * sum(cost.values()) + 1e-9)
        assert used == limit if budget == "tensors" else used <= limit
        left = [cost[n] for n in cost if n not in mask]
        assert not left or rho == 0 or used + min(left) > limit
    assert mask == set(cost)
    once = chosen(tiny, data, name, budget=budget)
    assert once == chosen(tiny, data, name, budget=budget)


def test_random_masks_differ_by_seed_and_cover_everything(tiny: Model, data: GuardData, learned: Selection) -> None:
    params = dict(tiny.denoiser.named_parameters())
    for draw in (
        lambda seed: chosen(tiny, data, "random", seed),
        lambda seed: random_tensors(list(params), learned.frozen, seed),
        lambda seed: matched(params, learned.frozen, seed),
    ):
        drawn = [draw(seed) for seed in range(20)]
        assert len({frozenset(mask) for mask in drawn}) == 20
        assert len(set.union(*drawn)) > 100
        assert drawn[3] == draw(3)


def test_fixed_places_come_first(tiny: Model, data: GuardData) -> None:
    kv = set(tiny.cross_attention_kv())
    assert len(kv) == 6
    assert kv < chosen(tiny, data, "cross-attention-kv")
    assert chosen(tiny, data, "cross-attention-kv", rho=0.04) < kv
    up = {n for n in toys.weights(tiny) if n.startswith("up_blocks.")}
    assert chosen(tiny, data, "mid-up") < up < chosen(tiny, data, "mid-up", rho=0.9)
    nothing = guards.make("none").run(tiny, data, Job()).mask
    assert nothing is not None and not nothing.frozen


def test_magnitude_is_the_mean_absolute_change(tiny: Model) -> None:
    params = toys.weights(tiny)
    few = ["conv_in.bias", "conv_out.weight"]
    after = {n: v + (1.0 if n in few else 0.1) for n, v in params.items()}
    after["conv_in.weight"] = after["conv_in.weight"].clone()
    after["conv_in.weight"].view(-1)[0] += 5.0  # a large sum of squares, a small mean
    assert set(highest(tiny, magnitude(params, after), 2 / 122, "tensors")) == set(few)


def test_magnitude_compares_with_the_relearned_model(tiny: Model, data: GuardData, tmp_path: Path) -> None:
    settings = {"relearn_steps": 4, "relearn_rate": 1e-3, "batch_size": 4, "relearned": "last"}
    mask = guards.make("magnitude", **settings).run(tiny, data, Job(0, tmp_path)).mask
    after, _ = state.load(tmp_path / "relearned.safetensors")
    change = {n: float((after[n] - v).abs().mean()) for n, v in toys.weights(tiny).items()}
    assert mask is not None and set(mask.frozen) == set(sorted(change, key=lambda n: -change[n])[:36])


def test_inverted_has_the_lowest_scores(tiny: Model, data: GuardData) -> None:
    quick = {"steps": 2, "relearn_steps": 1, "batch_size": 2, "scale": "raw"}
    learned, mask = (guards.make(n, **quick).run(tiny, data, Job()).mask for n in ("freezeasguard", "inverted"))
    assert learned is not None and mask is not None
    low = sorted(learned.scores, key=lambda n: (learned.scores[n], n))[:36]
    assert set(mask.frozen) == set(low) and not set(mask.frozen) & set(learned.frozen)
    assert {guards.make(n, **quick).run(tiny, data, Job()).mask.rho for n in ("inverted", "random-tensors")} == {
        0.3,
        None,
    }


def summed(model: Model, examples: Examples, squared: bool) -> dict[str, torch.Tensor]:
    """Gradients, or their squares, of three samples, one at a time."""
    params = dict(model.denoiser.named_parameters())
    total = {n: torch.zeros_like(v) for n, v in params.items()}
    for k in range(3):
        step = Step(k, 3, 0)
        row = step.randint("saliency rows", len(examples), [0])
        for value in params.values():
            value.requires_grad_(True)
        loss = losses(model, [(examples.latents[row], examples.conditioning.index(row))], step, "saliency")[0]
        for n, g in zip(params, torch.autograd.grad(loss.sum(), list(params.values())), strict=True):
            total[n] += g**2 if squared else g
    return total


def test_gradient_share_is_the_difference_of_shares_of_the_mean_gradient(tiny: Model, data: GuardData) -> None:
    params = dict(tiny.denoiser.named_parameters())
    shares: list[dict[str, float]] = []
    for examples in (data.illegal_publisher[0], data.innocent_publisher[0]):
        total = summed(tiny, examples, squared=False)
        sizes = {n: float(v.abs().sum()) for n, v in total.items()}
        shares.append({n: v / sum(sizes.values()) for n, v in sizes.items()})
    tiny.denoiser.requires_grad_(False)
    best = sorted(params, key=lambda n: shares[1][n] - shares[0][n])[:36]
    assert len(chosen(tiny, data, "gradient-share") & set(best)) >= 35  # two equal scores may change places


@pytest.mark.parametrize("squared", [False, True])
def test_saliency_is_the_ratio_of_plain_gradients(tiny: Model, data: GuardData, squared: bool) -> None:
    params = dict(tiny.denoiser.named_parameters())
    sums: list[dict[str, torch.Tensor]] = []
    for examples in (data.illegal_publisher[0], data.innocent_publisher[0]):
        sums.append(summed(tiny, examples, squared))
    tiny.denoiser.requires_grad_(False)
    ratio = {n: float(sums[0][n].abs().mean() / sums[1][n].abs().mean()) for n in params}
    best = set(sorted(ratio, key=lambda n: -ratio[n])[:36])
    found = chosen(tiny, data, "fisher-saliency" if squared else "gradient-saliency")
    assert len(found & best) >= 35  # two equal ratios may change places
    assert not any(p.requires_grad for p in tiny.denoiser.parameters())


def test_matching_is_exact_in_types_and_near_in_parameters(tiny: Model, learned: Selection) -> None:
    params, like = dict(tiny.denoiser.named_parameters()), learned.frozen
    total = sum(v.numel() for v in params.values())

    def histogram(names: Any) -> Counter[str]:
        return Counter(layer_type(n, params[n].ndim) for n in names)

    goal = sum(params[n].numel() for n in like)
    for seed in range(10):
        mask = matched(params, like, seed)
        assert histogram(mask) == histogram(like)
        assert abs(sum(params[n].numel() for n in mask) - goal) <= 0.01 * total
        exact = matched(params, like, seed, tries=0, tolerance=0)  # falls back to equal sizes
        assert histogram(exact) == histogram(like)
        assert sum(params[n].numel() for n in exact) == goal
    assert len(random_tensors(list(params), like, 0)) == len(like)
    assert matched(params, (), 0) == set()
    assert matched(params, tuple(params), 0) == set(params)


@pytest.mark.parametrize(
    ("name", "ndim", "kind"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 2, "cross-attention weight"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias", 1, "self-attention vector"),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", 2, "feed-forward weight"),
        ("mid_block.attentions.0.transformer_blocks.0.norm2.weight", 1, "transformer vector"),
        ("mid_block.attentions.0.proj_in.weight", 4, "transformer weight"),
        ("up_blocks.1.resnets.0.conv_shortcut.weight", 4, "resnet weight"),
        ("up_blocks.0.upsamplers.0.conv.bias", 1, "other vector"),
    ],
)
def test_layer_types(name: str, ndim: int, kind: str) -> None:
    assert layer_type(name, ndim) == kind


def test_wrong_labels(tiny: Model) -> None:
    data = sets.guard_data(tiny, 6)
    swapped = relabelled(data, 0, "swap")
    assert swapped.illegal_user is data.innocent_user and swapped.innocent_publisher is data.illegal_publisher

    def ids(data: GuardData) -> list[set[str]]:
        lists = (data.illegal_user, data.innocent_user, data.illegal_publisher, data.innocent_publisher)
        return [{i for part in parts for i in part.ids} for parts in lists]

    before = ids(data)
    dealt = [ids(relabelled(data, seed)) for seed in range(3)]
    for found in dealt:
        assert [len(part) for part in found] == [len(part) for part in before]
        for level in (0, 2):
            assert found[level] | found[level + 1] == before[level] | before[level + 1]
            assert found[level] & before[level] and found[level] & before[level + 1]
    assert dealt[0] != dealt[1] and dealt[0] == ids(relabelled(data, 0))
    same = GuardData(data.illegal_user, data.illegal_user, data.innocent_user, data.innocent_user, shared=True)
    found = ids(relabelled(same, 0))
    assert found[0] == found[2] and found[1] == found[3] and not found[0] & found[1]
    quick = FreezeAsGuard(steps=2, relearn_steps=1, batch_size=2)
    assert len(learn(tiny, relabelled(data, 0), quick).frozen) == 36
    with pytest.raises(ConfigError, match="wrong by"):
        relabelled(data, 0, "rotate")
