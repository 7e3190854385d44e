"""Relearning attacks: masks that hold, masks that are ignored, paired curves, and a model that is left as it was."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from tests import toys
from tests.guard import sets

from unteach.attack import Probes, Relearn
from unteach.attack.probes import probe_losses
from unteach.attack.relearn import trainable
from unteach.core import seeds, state
from unteach.core.convert import convert
from unteach.core.loop import Step
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.diffusion.finetune import Finetune, finetune
from unteach.errors import ConfigError, DataError, ModelError
from unteach.records.attack import Curve, recovery

FAST: dict[str, Any] = {"steps": 4, "learning_rate": 3e-3, "batch_size": 4}
CALL = ("frozen", "honoured", "mask_data")


def relearn(
    model: Model, data: Examples, *, probes: Mapping[str, Examples], measure: Any = None, **given: Any
) -> Curve:
    """An attack with the settings among ``given``, looked at by ``measure`` or with one draw of noise."""
    settings = {key: value for key, value in given.items() if key not in CALL}
    call = {key: value for key, value in given.items() if key in CALL}
    return Relearn.build(settings).run(model, data, measure or Probes(probes, draws=1), **call)


def unprotected(curve: Curve) -> Curve:
    """With the mask and the clock left out: equal for an attacker who ignores a mask and one without."""
    return replace(curve, honoured=True, frozen=state.fingerprint([]), frozen_tensors=0, seconds=0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tiny: Model) -> Examples:
    return sets.examples(tiny, "attack", sets.ILLEGAL, 6)


@pytest.fixture(scope="module")
def probes(tiny: Model) -> dict[str, Examples]:
    kinds = {"illegal": sets.ILLEGAL, "innocent": sets.INNOCENT, "rest": sets.REST}
    return {name: sets.examples(tiny, name, words, 3, " probe") for name, words in kinds.items()}


def names(model: Model) -> list[str]:
    return [name for name, _ in model.denoiser.named_parameters()]


class Watched(Probes):
    """Probes that keep the weights with which the last measurement was made."""

    def __call__(self, model: Model) -> dict[str, float]:
        self.__dict__["seen"] = toys.weights(model)
        return super().__call__(model)


def after(model: Model, data: Examples, *, probes: Mapping[str, Examples], **given: Any) -> tuple[Curve, Any]:
    """The curve, and the weights (with the factors merged) with which the last measurement was made."""
    watched = Watched(probes, draws=1)
    return relearn(model, data, probes=probes, measure=watched, **given), watched.__dict__["seen"]


def test_without_a_mask_it_is_plain_fine_tuning_bit_for_bit(
    tiny: Model, data: Examples, probes: dict[str, Examples]
) -> None:
    before = toys.weights(tiny)
    _, found = after(tiny, data, probes=probes, eval_steps=(1, 3), seed=5, **FAST)
    finetune(tiny, data.batches, Finetune(steps=4, batch_size=4, learning_rate=3e-3), seed=5)
    plain = toys.weights(tiny)
    with torch.no_grad():
        for name, value in tiny.denoiser.named_parameters():
            value.copy_(before[name])
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert all(not torch.equal(before[name], plain[name]) for name in plain)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_mask_of_everything_changes_nothing(
    tiny: Model, data: Examples, probes: dict[str, Examples], mode: Any
) -> None:
    curve = relearn(tiny, data, frozen=names(tiny), mode=mode, probes=probes, eval_steps=(2,), **FAST)
    assert curve.at == (0, 2, 4) and curve.trained_tensors == curve.trained_parameters == 0
    assert all(len(set(values)) == 1 for values in curve.losses.values())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_frozen_tensors_keep_every_bit_and_the_model_is_restored(
    tiny: Model, data: Examples, probes: dict[str, Examples], mode: Any
) -> None:
    before, digest = toys.weights(tiny), tiny.digest(fresh=True)
    frozen = set(names(tiny)[::3])
    curve, found = after(tiny, data, frozen=frozen, mode=mode, probes=probes, **FAST)
    still = {name for name in before if torch.equal(found[name], before[name])}
    if mode == "full":
        assert still == frozen
        assert curve.trained_parameters == sum(before[n].numel() for n in before if n not in frozen)
    else:
        owners = {name.rpartition(".")[0] for name in frozen}
        adapted = {
            n for n in before if n.endswith("weight") and before[n].ndim > 1 and n.rpartition(".")[0] not in owners
        }
        assert set(before) - still == adapted and curve.trained_tensors == len(adapted)
        assert adapted == set(trainable(tiny, frozen, "lora"))
        assert curve.rank == 4
    assert all(torch.equal(value, before[name]) for name, value in toys.weights(tiny).items())
    assert tiny.digest() == digest and not any(p.requires_grad for p in tiny.denoiser.parameters())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_who_ignores_the_mask_is_the_unprotected_attacker(
    tiny: Model, data: Examples, probes: dict[str, Examples], mode: Any
) -> None:
    """The expected failure: open weights are not protected."""
    kept = {"mode": mode, "probes": probes, **FAST}
    plain, weights = after(tiny, data, **kept)
    ignoring, same = after(tiny, data, frozen=names(tiny)[:60], honoured=False, **kept)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert unprotected(ignoring) == unprotected(plain) and ignoring != plain
    assert recovery(ignoring, plain, "illegal") == 1.0
    assert relearn(tiny, data, frozen=names(tiny)[:60], **kept).losses != plain.losses


def test_it_relearns_the_concept_and_a_shorter_attack_is_a_prefix(
    tiny: Model, data: Examples, probes: dict[str, Examples]
) -> None:
    settings = FAST | {"steps": 30, "batch_size": 8}
    long = relearn(tiny, data, probes=probes, eval_steps=(10,), **settings)
    short = relearn(tiny, data, probes=probes, **settings | {"steps": 10})
    assert long.at == (0, 10, 30) and short.at == (0, 10)
    assert all(long.losses[name][:2] == short.losses[name] for name in probes)
    assert long.loss("illegal") < 0.9 * long.loss("illegal", 0)
    half = relearn(tiny, data, frozen=names(tiny)[::2], probes=probes, eval_steps=(10,), **settings)
    assert half.losses["illegal"][0] == long.losses["illegal"][0]  # the same noise: curves are paired
    share = recovery(half, long, "illegal")
    assert share is not None and 0 < share < 1
    expected = (half.loss("illegal", 0) - half.loss("illegal", 30)) / (long.loss("illegal", 0) - long.loss("illegal"))
    assert share == pytest.approx(expected)


def test_recovery_says_nothing_where_nothing_was_learned(
    tiny: Model, data: Examples, probes: dict[str, Examples]
) -> None:
    still = relearn(tiny, data, probes=probes, **FAST | {"learning_rate": 0.0})
    assert still.losses["rest"][0] == still.losses["rest"][1] and recovery(still, still, "rest") is None
    other = relearn(tiny, data, probes=probes, **FAST)
    with pytest.raises(ConfigError, match="learning_rate"):
        recovery(still, other, "rest")
    with pytest.raises(ConfigError, match="probes illegal"):
        other.loss("people")
    assert recovery(other, other, "rest", 3) is None


def test_a_divergence_is_part_of_the_record(tiny: Model, data: Examples, probes: dict[str, Examples]) -> None:
    before = toys.weights(tiny)
    curve = relearn(tiny, data, probes=probes, **FAST | {"learning_rate": 1e30})
    assert curve.diverged and curve.at == (0,) and all(len(v) == 1 for v in curve.losses.values())
    assert all(torch.equal(value, before[name]) for name, value in toys.weights(tiny).items())
    assert recovery(curve, curve, "illegal") is None
    assert convert(asdict(curve), Curve) == curve


def test_probe_losses_are_the_plain_formula(tiny: Model, data: Examples) -> None:
    found = probe_losses(tiny, data, seed=9, draws=2)
    assert found.shape == (12,) and torch.equal(found, probe_losses(tiny, data, seed=9, draws=2))
    assert not torch.equal(found, probe_losses(tiny, data, seed=8, draws=2))
    expected = torch.zeros(12)
    for draw in range(2):
        step = Step(draw, 2, 9)
        order = seeds.permutation(12, 9, "probe order", draw)
        t = tiny.schedule.spread(step, range(12), 12)[order]
        noise = step.randn("probe noise", tiny.latent_shape, range(12))
        for i in range(12):
            noisy = tiny.noise(data.latents[i : i + 1], noise[i : i + 1], t[i : i + 1])
            with torch.no_grad():
                out = tiny.predict(noisy, t[i : i + 1], data.conditioning.index([i]))
            expected[i] += ((out - noise[i]) ** 2).mean() / 2
    assert torch.allclose(found.float(), expected, atol=1e-5)


def test_data_must_be_disjoint(tiny: Model, data: Examples, probes: dict[str, Examples]) -> None:
    with pytest.raises(DataError, match="must not share"):
        relearn(tiny, data, probes=probes | {"same": data.rows([0])}, **FAST)
    for shared in (data.rows([1]), probes["rest"].rows([1])):
        with pytest.raises(DataError, match="must not share"):
            relearn(tiny, data, probes=probes, mask_data=[shared], **FAST)


@pytest.mark.parametrize("wrong", [{"eval_steps": (9,)}, {"probes": {}}, {"mode": "half"}])
def test_settings_are_checked(tiny: Model, data: Examples, probes: dict[str, Examples], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"an attack needs|the attack 'relearn': (eval_steps|mode) must"):
        relearn(tiny, data, **{"probes": probes, **FAST, **wrong})


def test_unknown_names_are_refused(tiny: Model, data: Examples, probes: dict[str, Examples]) -> None:
    with pytest.raises(ModelError, match="not in the denoiser"):
        relearn(tiny, data, frozen=["conv_in.wait"], probes=probes, **FAST)
