"""What mask learning draws, where it starts, how it moves, when users change, and what it protects: an erased model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import toys
from tests.guard import sets
from torch import Tensor

from unteach.core import seeds, state
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.diffusion.finetune import finetune
from unteach.guard.data import Batch, GuardData
from unteach.guard.manifest import FreezeManifest
from unteach.guard.methods import guards
from unteach.guard.methods import relearn as module
from unteach.guard.methods.freezeasguard import FreezeAsGuard
from unteach.guard.methods.learner import MaskLearner, learn
from unteach.guard.methods.user import User

QUICK: dict[str, Any] = {
    "relearned": "last",
    "relearn_steps": 3,
    "relearn_rate": 1e-3,
    "batch_size": 8,
    "interval": 2,
    "reset_every": 4,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def domains(tiny: Model) -> dict[str, list[Examples]]:
    """Two domains a side, on both levels."""
    words = {"illegal": sets.ILLEGAL, "innocent": sets.INNOCENT}
    return {
        f"{side} {level}": [sets.examples(tiny, word, (word,), 5, f" {level}") for word in words[side]]
        for side in words
        for level in ("user", "publisher")
    }


@pytest.fixture(scope="module")
def data(domains: dict[str, list[Examples]]) -> GuardData:
    order = ("illegal user", "illegal publisher", "innocent user", "innocent publisher")
    return GuardData(*(domains[name] for name in order))


def sources(domains: dict[str, list[Examples]], latents: Tensor) -> Counter[str]:
    """How many of the latents are of which set."""
    known = [(f"{name}/{part.name}", part.latents) for name, parts in domains.items() for part in parts]
    return Counter(next(n for n, rows in known if any(torch.equal(x, y) for y in rows)) for x in latents)


@pytest.mark.parametrize("balanced", [True, False])
def test_each_level_sees_its_own_data_and_both_sides_in_equal_parts(
    tiny: Model, data: GuardData, domains: dict[str, list[Examples]], balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Counter[str]]] = {"relearn": [], "publisher": [], "user": []}
    publisher, user = MaskLearner.publisher, MaskLearner.user

    def published(self: MaskLearner, illegal: Batch, innocent: Batch, step: Any) -> float:
        assert all(n.startswith("illegal") for n in sources(domains, illegal[0]))
        assert all(n.startswith("innocent") for n in sources(domains, innocent[0]))
        seen["publisher"].append(sources(domains, torch.cat([illegal[0], innocent[0]])))
        return publisher(self, illegal, innocent, step)

    def used(self: MaskLearner, batches: Sequence[Batch], step: Any) -> float:
        seen["user"].append(sources(domains, torch.cat([batch[0] for batch in batches])))
        return user(self, batches, step)

    def tuned(model: Model, batches: Any, *args: Any, **more: Any) -> Any:
        def watched(step: Any, items: range) -> Any:
            drawn = batches(step, items)
            seen["relearn"].append(sources(domains, drawn[0]))
            return drawn

        return finetune(model, watched, *args, **more)

    monkeypatch.setattr(MaskLearner, "publisher", published)
    monkeypatch.setattr(MaskLearner, "user", used)
    monkeypatch.setattr(module, "finetune", tuned)
    learn(tiny, data, FreezeAsGuard(steps=8, balanced=balanced, **QUICK))
    assert [len(found) for found in seen.values()] == [3, 4, 4]
    for phase, found in seen.items():
        level = "publisher" if phase == "publisher" else "user"
        names = {f"{s} {level}/{part.name}" for s in ("illegal", "innocent") for part in domains[f"{s} {level}"]}
        assert len(names) == 4 and set(sum(found, Counter())) == names
        for counts in found:
            assert sum(counts.values()) == 8
            if balanced:
                assert counts == dict.fromkeys(names, 2)  # two of each domain, so four of each side
    if not balanced:
        assert any(counts != dict.fromkeys(counts, 2) for counts in seen["user"] + seen["publisher"] + seen["relearn"])


def test_logits_start_equal_in_fp32_whatever_the_seed(tiny: Model) -> None:
    learners = [
        MaskLearner(tiny, FreezeAsGuard(budget=budget), seed) for budget in ("tensors", "flops") for seed in (0, 9)
    ]
    for learner in learners:
        assert learner.x.dtype == torch.float32 and len(learner.x) == 122
        assert len({*learner.x.tolist()}) == 1
        assert torch.allclose(learner.mask(), torch.tensor(0.3))
    assert torch.equal(learners[0].x, learners[1].x) and torch.equal(learners[2].x, learners[3].x)
    one, other = (MaskLearner(tiny, guards.make("official"), seed).x for seed in (0, 9))
    assert one.dtype == torch.bfloat16 and not torch.equal(one, other)


def test_steps_are_normalised_whatever_the_gradients_size(tiny: Model, data: GuardData) -> None:
    inner = [torch.randn(122, generator=seeds.generator(k, "inner")) for k in range(2)]
    found = []
    for scale in (1.0, 1e-6, 1e4):
        learner = MaskLearner(tiny, FreezeAsGuard(mask_rate=0.01, mask_average=0.5), 0)
        learner.difference = {name: torch.zeros_like(value) for name, value in learner.params.items()}
        for g in inner:
            learner.move(scale * g)
        found.append(learner.x)
    for x in found:
        assert torch.allclose(x, found[0], atol=1e-5)
    # The plain formula: a running mean, over its root mean square; a common shift keeps the budget.
    first = 0.5 * inner[0]
    second = 0.5 * first + 0.5 * inner[1]
    expected = -0.01 * sum(g / g.square().mean().sqrt() for g in (first, second))
    moved = found[0] - MaskLearner(tiny, FreezeAsGuard(), 0).x
    assert torch.allclose(moved - moved.mean(), expected - expected.mean(), atol=1e-5)
    assert float(torch.sigmoid(found[0] / 0.2).mean()) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("start", ["relearned", "published"])
def test_a_reset_is_a_new_user_from_the_start_under_the_mask_of_now(
    tiny: Model, data: GuardData, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pre, begin = toys.weights(tiny), User.begin
    learners: list[MaskLearner] = []
    users: list[tuple[float, int]] = []
    step = MaskLearner.publisher

    def published(self: MaskLearner, *args: Any) -> float:
        learners[:] = [self]
        return step(self, *args)

    def begun(self: User, life: int) -> None:
        if life == 0:
            begin(self, life)
            return
        assert self.count == 2 and self.moments and life == self.life + 1
        begin(self, life)
        assert (self.count, self.moments) == (0, {})
        after = state.load(tmp_path / "relearned.safetensors")[0] if start == "relearned" else pre
        (learner,) = learners
        m = learner.mask()
        for name, value in learner.params.items():
            assert torch.allclose(learner.difference[name], pre[name] - after[name], atol=1e-7)
            k = m[learner.of[name]]
            assert torch.allclose(value, k * pre[name] + (1 - k) * after[name], atol=1e-6), name
        users.append((self.rate, self.rank))

    monkeypatch.setattr(User, "begin", begun)
    monkeypatch.setattr(MaskLearner, "publisher", published)
    config = FreezeAsGuard(
        steps=33, user_rates=[1e-3, 3e-3], user_ranks=[0, 2], mask_rate=0.05, user_start=start, **QUICK
    )
    learn(tiny, data, config, out=tmp_path)
    assert len(users) == 8 and len(set(users)) > 2  # drawn anew from the pool
    assert float(learners[0].mask().std()) > 0.01
    learn(tiny, data, FreezeAsGuard(steps=9, **QUICK | {"reset_every": 0}))
    assert len(users) == 8


def test_an_erased_model_is_guarded_as_it_is(tiny: Model, data: GuardData, tmp_path: Path) -> None:
    """Erasure first: θ_pre is what the erased model holds, and the manifest is of that model."""
    plain, config = toys.weights(tiny), FreezeAsGuard(steps=6, **QUICK)
    digest, scores = tiny.digest(fresh=True), learn(tiny, data, config).scores
    with toys.change(tiny).apply(tiny):
        erased = toys.weights(tiny)
        result = learn(tiny, data, config, out=tmp_path)
        stored, _ = state.load(tmp_path / "pre.safetensors")
        changed = {name for name in plain if not torch.equal(stored[name], plain[name])}
        assert changed == set(tiny.cross_attention_kv())
        assert all(
            torch.equal(erased[n], v) and torch.equal(erased[n], stored[n]) for n, v in toys.weights(tiny).items()
        )
        assert result.scores != scores
        manifest = FreezeManifest.from_model(tiny.denoiser, result.frozen, result.scores)
        assert manifest.model == tiny.digest(fresh=True) != digest
    assert FreezeManifest.from_model(tiny.denoiser, result.frozen, result.scores).model == digest
