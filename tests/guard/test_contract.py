"""What every guard keeps to; whoever registers one gets these tests without writing any."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import toys
from tests.guard import sets

from unteach.core.convert import convert
from unteach.core.events import Events
from unteach.diffusion import Model
from unteach.errors import ConfigError
from unteach.guard.budget import costs
from unteach.guard.data import GuardData
from unteach.guard.manifest import FreezeManifest
from unteach.guard.methods import Guard, Guarded, Job, guards
from unteach.guard.policy import mask_of
from unteach.records.mask import Mask

EVERY = pytest.mark.parametrize("name", [*guards, *guards.presets])
FEW: dict[str, Any] = {
    "steps": 4, "relearn_steps": 3, "relearn_rate": 1e-3, "relearn_batch": 4, "batch_size": 4, "scale": "raw",
    "relearned": "last", "samples": 2,
}  # fmt: skip


def quick(name: str, **more: Any) -> Guard:
    """As little of it as can be: of these settings those that it has."""
    known = {field.name for field in dataclasses.fields(type(guards.make(name)))}
    return guards.make(name, **{key: value for key, value in {**FEW, **more}.items() if key in known})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tiny: Model) -> GuardData:
    return sets.guard_data(tiny, 3)


def same(a: Guarded, b: Guarded) -> bool:
    assert a.mask is not None and b.mask is not None
    one, other = (vars(x.mask) | {"frozen": set(x.mask.frozen)} for x in (a, b) if x.mask is not None)
    return one == other


@EVERY
def test_its_settings_come_back_from_plain_data(name: str) -> None:
    guard = guards.make(name)
    values = guard.to_dict()
    assert values.pop("guard") == guard.name in guards
    assert guards.make(guard.name, **values) == guard and hash(guard) == hash(guards.make(name))
    assert guards.describe(name) and convert(values, dict[str, Any]) == values


@EVERY
def test_wrong_settings_are_listed_at_once(name: str) -> None:
    wrong = {
        "colour": 1,
        **{key: -1 for key in ("rho", "samples", "relearn_steps") if key in guards.make(name).to_dict()},
    }
    with pytest.raises(ConfigError) as error:
        guards.make(name, **wrong)
    assert all(key in str(error.value) for key in wrong)
    with pytest.raises(ConfigError, match="did you mean"):
        guards.make(name[:-1] + "_")


@EVERY
def test_it_is_deterministic_and_leaves_the_model_as_it_was(
    tiny: Model, data: GuardData, name: str, tmp_path: Path
) -> None:
    before, digest = toys.weights(tiny), tiny.digest(fresh=True)
    first = quick(name).run(tiny, data, Job(seed=3))
    assert all(torch.equal(before[n], v) for n, v in toys.weights(tiny).items()) and tiny.digest() == digest
    assert not any(p.requires_grad or p._post_accumulate_grad_hooks for p in tiny.denoiser.parameters())
    assert same(first, quick(name).run(tiny, data, Job(seed=3, out=tmp_path)))
    if quick(name).trains:
        assert same(first, quick(name).run(tiny, data, Job(seed=3, out=tmp_path)))  # with what is there


@EVERY
@pytest.mark.parametrize("budget", ["tensors", "parameters", "flops"])
def test_the_budget_is_kept(tiny: Model, data: GuardData, name: str, budget: Any) -> None:
    guard = quick(name, rho=0.2, budget=budget)
    mask = guard.run(tiny, data, Job()).mask
    assert mask is not None and set(mask.frozen) <= set(toys.weights(tiny))
    if mask.rho is None or not getattr(guard, "project", True):
        return  # what was asked for is no share, or a penalty keeps it about (the released code)
    cost = costs(tiny, budget)
    assert (mask.measure, mask.rho) == (budget, 0.2)
    used, limit = sum(cost[n] for n in mask.frozen), math.floor(0.2 * sum(cost.values()) + 1e-9)
    assert used == limit if budget == "tensors" else used <= limit


@EVERY
def test_its_mask_is_a_record_and_a_manifest(tiny: Model, data: GuardData, name: str, tmp_path: Path) -> None:
    guard = quick(name)
    made = guard.run(tiny, data, Job()).mask
    assert made is not None
    mask = mask_of(tiny, made, guard, name=name, illegal=["a"], innocent=["b"], digests=data.digests())
    again = Mask.load(mask.save(tmp_path))
    assert again == mask and set(again.frozen) == set(made.frozen) and again.name == name
    assert again.method == {"name": name, **guard.to_dict()} and again.budget.rho == made.rho
    manifest = FreezeManifest.of(again.manifest)
    assert FreezeManifest.load(manifest.save(tmp_path / "manifest.json")) == manifest


@pytest.mark.parametrize("name", [name for name in (*guards, *guards.presets) if guards.make(name).trains])
def test_interrupted_is_unbroken(tiny: Model, data: GuardData, name: str, tmp_path: Path) -> None:
    before, guard = toys.weights(tiny), quick(name)
    whole, seen = guard.run(tiny, data, Job(seed=1)), list[str]()

    class Stop(Events):
        def step(self, stage: str, done: int, total: int) -> None:
            seen.append(stage)
            if len(seen) in (2, 7):  # in the relearning, and in what comes after it
                raise KeyboardInterrupt

    for _ in range(2):
        try:
            guard.run(tiny, data, Job(1, tmp_path, Stop()))
        except KeyboardInterrupt:
            assert all(torch.equal(before[n], v) for n, v in toys.weights(tiny).items())
    assert same(whole, guard.run(tiny, data, Job(1, tmp_path)))


@EVERY
def test_its_cost_is_said_before(tiny: Model, data: GuardData, name: str) -> None:
    before, guard = toys.weights(tiny), quick(name)
    cost = guard.cost(tiny, data)
    assert (cost.steps > 0) == (cost.seconds > 0) == guard.trains
    assert ("no training" in cost.text()) != guard.trains
    assert all(torch.equal(before[n], v) for n, v in toys.weights(tiny).items())
    assert not any(p.requires_grad for p in tiny.denoiser.parameters())
