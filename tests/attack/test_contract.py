"""What every attack must do. A new attack is tested by being registered."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import toys
from tests.guard import sets

from unteach.attack import Attack, Measure, Probes, attacks
from unteach.attack.sweep import sweep
from unteach.core.convert import convert
from unteach.core.events import Steps
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.errors import ConfigError, DataError, ModelError, NumericsError
from unteach.records.attack import Curve

QUICK: dict[str, Any] = {"steps": 3, "eval_steps": (1,), "learning_rate": 3e-3, "batch_size": 4}
WAYS: dict[str, list[dict[str, Any]]] = {"relearn": [{"mode": "full"}, {"mode": "lora"}]}
"""Settings of an attack with which it does something else."""
CASES = [(name, way) for name in attacks.names() for way in WAYS.get(name, [{}])]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def attack(request: pytest.FixtureRequest) -> Attack:
    name, way = request.param
    return attacks.make(name, **QUICK, **way)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(model: Model) -> Examples:
    return sets.examples(model, "attack", sets.ILLEGAL, 4)


@pytest.fixture(scope="module")
def probes(model: Model) -> Probes:
    kinds = {"illegal": sets.ILLEGAL, "rest": sets.REST}
    return Probes({name: sets.examples(model, name, words, 2, " probe") for name, words in kinds.items()}, draws=1)


@pytest.fixture(autouse=True)
def untouched(model: Model) -> Iterator[None]:
    """Whatever an attack does, the model is as before afterwards, bit for bit."""
    before, digest = toys.weights(model), model.digest(fresh=True)
    storage = {name: value.data_ptr() for name, value in model.denoiser.named_parameters()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in toys.weights(model).items())
    assert model.digest() == digest and not model.denoiser.training
    assert storage == {name: value.data_ptr() for name, value in model.denoiser.named_parameters()}
    assert not any(p.requires_grad or p.grad is not None for p in model.denoiser.parameters())
    assert not any(m._forward_hooks for m in model.denoiser.modules())


def names(model: Model) -> list[str]:
    return [name for name, _ in model.denoiser.named_parameters()]


def timeless(curve: Curve) -> Curve:
    return replace(curve, seconds=0.0)


def test_the_config_survives_json(attack: Attack) -> None:
    record = json.loads(json.dumps(attack.to_dict()))
    assert attacks.make(record.pop("attack"), **record) == attack
    assert attacks.make(attack.name) == type(attack)()
    assert json.loads(json.dumps(attack.identity())) == attack.identity()


def test_every_setting_tells_cells_apart(attack: Attack) -> None:
    """Settings that change what comes out are part of what a cell is known by."""
    other = {"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "seed": 1, "eval_steps": (2,)}
    identities = [attack.identity(), *(replace(attack, **{key: value}).identity() for key, value in other.items())]
    assert len({json.dumps(each, sort_keys=True) for each in identities}) == 1 + len(other)


def test_the_config_names_every_mistake_at_once(attack: Attack) -> None:
    with pytest.raises(ConfigError) as error:
        attacks.make(attack.name, stepz=1, steps=-1, learning_rate="much", batch_size=0)
    text = str(error.value)
    assert "4 mistakes" in text and "unknown setting 'stepz' (did you mean 'steps'" in text
    assert "steps must be at least 0, found -1" in text and "batch_size must be at least 1" in text
    assert "learning_rate must be a finite number, found 'much'" in text
    with pytest.raises(ConfigError, match=r"eval_steps must lie between 0 and steps \(3\)"):
        replace(attack, eval_steps=(4,))


def test_two_runs_are_equal_and_another_seed_is_another_run(
    attack: Attack, model: Model, data: Examples, probes: Probes
) -> None:
    first, second = (attack.run(model, data, probes) for _ in range(2))
    assert timeless(first) == timeless(second) and not first.diverged
    assert first.at == (0, 1, 3) and set(first.losses) == set(probes.sets)
    assert first.trained_tensors > 0 and first.trained_parameters > 0
    assert first.losses["illegal"][2] != first.losses["illegal"][0]
    other = replace(attack, seed=7).run(model, data, probes)
    assert other.losses["illegal"][0] == first.losses["illegal"][0]  # the probes' noise is not the attack's
    assert other.losses["illegal"][2] != first.losses["illegal"][2]


def test_a_longer_attack_contains_the_shorter(attack: Attack, model: Model, data: Examples, probes: Probes) -> None:
    long, short = attack.run(model, data, probes), replace(attack, steps=1, eval_steps=()).run(model, data, probes)
    assert all(short.losses[name] == long.losses[name][:2] for name in probes.sets)


def test_a_mask_of_everything_leaves_nothing_and_is_nothing_when_ignored(
    attack: Attack, model: Model, data: Examples, probes: Probes
) -> None:
    held = attack.run(model, data, probes, frozen=names(model))
    assert all(len(set(values)) == 1 for values in held.losses.values()) and held.trained_tensors == 0
    assert held.frozen_tensors == len(names(model)) and held.at == (0, 1, 3)
    ignored = attack.run(model, data, probes, frozen=names(model), honoured=False)
    assert ignored.losses == attack.run(model, data, probes).losses and not ignored.honoured


def test_a_frozen_tensor_is_the_same_at_every_look(attack: Attack, model: Model, data: Examples) -> None:
    before, frozen = toys.weights(model), names(model)[::2]

    def measure(model: Model) -> dict[str, float]:
        now = toys.weights(model)
        assert all(torch.equal(now[name], before[name]) for name in frozen)
        return {"moved": float(sum((now[name] - before[name]).abs().sum() for name in now))}

    curve = attack.run(model, data, measure, frozen=frozen)
    assert curve.losses["moved"][0] == 0 < curve.losses["moved"][1] and curve.probes == {"moved": ""}


def test_the_curve_survives_its_file(attack: Attack, model: Model, data: Examples, probes: Probes) -> None:
    curve = attack.run(model, data, probes)
    assert convert(json.loads(json.dumps(asdict(curve))), Curve) == curve
    assert (curve.steps, curve.learning_rate, curve.seed) == (attack.steps, attack.learning_rate, attack.seed)
    assert curve.probes == probes.digests() and curve.data == ("attack", data.digest())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(
    attack: Attack, mode: Any, model: Model, data: Examples, probes: Probes
) -> None:
    with mode():
        curve = attack.run(model, data, probes)
    assert timeless(curve) == timeless(attack.run(model, data, probes))


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def heard(done: int) -> None:
        if done == step:
            raise Stop

    return Steps(heard)


def stopping(calls: int, error: type[Exception]) -> Measure:
    """A measure that fails at a call."""
    done: list[int] = []

    def measure(model: Model) -> dict[str, float]:
        done.append(1)
        if len(done) == calls:
            raise error("stopped by the test")
        return {"one": 1.0}

    return measure


def test_the_model_is_as_before_however_it_ends(attack: Attack, model: Model, data: Examples, probes: Probes) -> None:
    for step in (1, 2, 3):
        with pytest.raises(Stop):
            attack.run(model, data, probes, events=stop_at(step))
    for calls in (1, 2, 3):
        with pytest.raises(Stop):
            attack.run(model, data, stopping(calls, Stop))
        curve = attack.run(model, data, stopping(calls, NumericsError))
        assert curve.diverged and len(curve.at) == calls - 1
    curve = attack.run(model, data, lambda model: {"one": float("nan")})
    assert curve.diverged and curve.at == () and curve.losses == {}


def test_an_interrupted_sweep_is_the_unbroken_one(
    attack: Attack, model: Model, data: Examples, probes: Probes, tmp_path: Path
) -> None:
    grid = [attack, replace(attack, seed=1)]
    masks = {"half": names(model)[::2]}
    seen: list[int] = []

    def heard(done: int) -> None:
        seen.append(done)
        if len(seen) in (2, 8):
            raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            sweep(model, data, probes, grid, masks=masks, out=tmp_path / "a", events=Steps(heard))
    broken = sweep(model, data, probes, grid, masks=masks, out=tmp_path / "a", events=Steps(heard))
    whole = sweep(model, data, probes, grid, masks=masks, out=tmp_path / "b")
    assert [replace(each, seconds=0.0) for each in broken] == [replace(each, seconds=0.0) for each in whole]
    assert len(seen) == 4 * attack.steps + 2 + 3  # two cells were begun twice
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert sweep(model, data, probes, grid, masks=masks, out=tmp_path / "a", events=stop_at(1)) == broken


def test_what_does_not_fit_is_refused(attack: Attack, model: Model, data: Examples, probes: Probes) -> None:
    with pytest.raises(ModelError, match="not in the denoiser"):
        attack.run(model, data, probes, frozen=["conv_in.wait"])
    with pytest.raises(DataError, match="must not share"):
        attack.run(model, data, Probes({"same": data.rows([0])}))
    with pytest.raises(DataError, match="must not share"):
        attack.run(model, data, probes, mask_data=[data.rows([1])])


def test_every_attack_says_what_it_is() -> None:
    for name in [*attacks, *attacks.presets]:
        assert len(attacks.describe(name)) > 10
