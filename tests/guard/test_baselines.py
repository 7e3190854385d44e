"""Masks to compare with: exact budgets, exact matching, determinism, and that each is what it says."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests import toys
from tests.guard import sets
from unteach.guard.baselines import Case, baselines, layer_type, matched, relabelled
from unteach.guard.config import make
from unteach.guard.learn import Learned, learn

from unteach.core import seeds
from unteach.core.loop import Step
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.errors import ConfigError
from unteach.guard.budget import costs
from unteach.guard.data import GuardData, losses


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def case(tiny: Model) -> Case:
    """A case with everything in it."""
    pre = toys.weights(tiny)
    after = {n: v + 0.1 * torch.randn(v.shape, generator=seeds.generator(0, n)) for n, v in pre.items()}
    scores = {n: float(torch.rand((), generator=seeds.generator(1, n))) for n in pre}
    frozen = tuple(n for n in pre if n in set(sorted(scores, key=lambda n: -scores[n])[:36]))
    learned = Learned(frozen, scores, {n: v.numel() for n, v in pre.items()}, make(), 0, 1)
    return Case(tiny, 0.3, relearned=after, data=sets.guard_data(tiny, 4), learned=learned, samples=3)


BUDGETED = [
    "cross-attention-kv", "fisher-saliency", "gradient-saliency", "gradient-share", "inverted", "magnitude", "mid-up",
    "random",
]  # fmt: skip


def test_the_registry() -> None:
    assert baselines.names() == sorted([*BUDGETED, "none", "random-matched", "random-tensors"])


@pytest.mark.parametrize("budget", ["tensors", "parameters", "flops"])
@pytest.mark.parametrize("name", BUDGETED)
def test_the_budget_is_exact_and_masks_are_deterministic(case: Case, name: str, budget: Any) -> None:
    cost = costs(case.model, budget)
    for rho in (0.0, 0.3, 1.0):
        mask = baselines[name](replace(case, rho=rho, budget=budget))
        used, limit = sum(cost[n] for n in mask), math.floor(rho * sum(cost.values()) + 1e-9)
        assert used == limit if budget == "tensors" else used <= limit
        left = [cost[n] for n in cost if n not in mask]
        assert not left or rho == 0 or used + min(left) > limit
    assert mask == set(cost)
    once = baselines[name](replace(case, budget=budget))
    assert once == baselines[name](replace(case, budget=budget))


def test_random_masks_differ_by_seed_and_cover_everything(case: Case) -> None:
    for name in ("random", "random-tensors", "random-matched"):
        drawn = [baselines[name](replace(case, seed=seed)) for seed in range(20)]
        assert len({frozenset(mask) for mask in drawn}) == 20
        assert len(set.union(*drawn)) > 100
        assert drawn[3] == baselines[name](replace(case, seed=3))


def test_fixed_places_come_first(case: Case) -> None:
    kv = set(case.model.cross_attention_kv())
    assert len(kv) == 6
    assert kv < baselines["cross-attention-kv"](case)
    assert baselines["cross-attention-kv"](replace(case, rho=0.04)) < kv
    up = {n for n in case.params() if n.startswith("up_blocks.")}
    assert baselines["mid-up"](case) < up < baselines["mid-up"](replace(case, rho=0.9))
    assert baselines["none"](case) == set()


def test_magnitude_is_the_mean_absolute_change(case: Case) -> None:
    assert case.relearned is not None
    params = case.params()
    chosen = ["conv_in.bias", "conv_out.weight"]
    after = {n: v.detach() + (1.0 if n in chosen else 0.1) for n, v in params.items()}
    after["conv_in.weight"] = after["conv_in.weight"].clone()
    after["conv_in.weight"].view(-1)[0] += 5.0  # a large sum of squares, a small mean
    assert baselines["magnitude"](replace(case, relearned=after, rho=2 / 122)) == set(chosen)


def test_inverted_has_the_lowest_scores(case: Case) -> None:
    assert case.learned is not None
    mask = baselines["inverted"](case)
    low = sorted(case.learned.scores, key=lambda n: case.learned.scores[n])[:36]  # type: ignore[union-attr]
    assert mask == set(low) and not mask & set(case.learned.frozen)


def summed(case: Case, examples: Examples, squared: bool) -> dict[str, torch.Tensor]:
    """Gradients, or their squares, of the case's three samples, one at a time."""
    params = case.params()
    total = {n: torch.zeros_like(v) for n, v in params.items()}
    for k in range(3):
        step = Step(k, 3, 0)
        row = step.randint("saliency rows", len(examples), [0])
        for value in params.values():
            value.requires_grad_(True)
        loss = losses(case.model, [(examples.latents[row], examples.conditioning.index(row))], step, "saliency")[0]
        for n, g in zip(params, torch.autograd.grad(loss.sum(), list(params.values())), strict=True):
            total[n] += g**2 if squared else g
    return total


def test_gradient_share_is_the_difference_of_shares_of_the_mean_gradient(case: Case) -> None:
    assert case.data is not None
    params = case.params()
    shares: list[dict[str, float]] = []
    for examples in (case.data.illegal_publisher[0], case.data.innocent_publisher[0]):
        total = summed(case, examples, squared=False)
        sizes = {n: float(v.abs().sum()) for n, v in total.items()}
        shares.append({n: v / sum(sizes.values()) for n, v in sizes.items()})
    case.model.denoiser.requires_grad_(False)
    best = sorted(params, key=lambda n: shares[1][n] - shares[0][n])[:36]
    assert len(baselines["gradient-share"](case) & set(best)) >= 35  # two equal scores may change places


@pytest.mark.parametrize("squared", [False, True])
def test_saliency_is_the_ratio_of_plain_gradients(case: Case, squared: bool) -> None:
    assert case.data is not None
    params = case.params()
    sums: list[dict[str, torch.Tensor]] = []
    for examples in (case.data.illegal_publisher[0], case.data.innocent_publisher[0]):
        sums.append(summed(case, examples, squared))
    case.model.denoiser.requires_grad_(False)
    ratio = {n: float(sums[0][n].abs().mean() / sums[1][n].abs().mean()) for n in params}
    best = set(sorted(ratio, key=lambda n: -ratio[n])[:36])
    found = baselines["fisher-saliency" if squared else "gradient-saliency"](case)
    assert len(found & best) >= 35  # two equal ratios may change places
    assert not any(p.requires_grad for p in case.model.denoiser.parameters())


def test_matching_is_exact_in_types_and_near_in_parameters(case: Case) -> None:
    assert case.learned is not None
    params, like = case.params(), case.learned.frozen
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
    assert len(baselines["random-tensors"](case)) == len(like)
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
    quick = make(steps=2, relearn_steps=1, batch_size=2)
    assert len(learn(tiny, relabelled(data, 0), quick).frozen) == 36
    with pytest.raises(ConfigError, match="wrong by"):
        relabelled(data, 0, "rotate")


@pytest.mark.parametrize("name", ["magnitude", "gradient-saliency", "inverted", "random-tensors", "random-matched"])
def test_what_is_missing_is_said(tiny: Model, name: str) -> None:
    with pytest.raises(ConfigError, match=r"needs '(relearned|data|learned)'"):
        baselines[name](Case(tiny, 0.3))
