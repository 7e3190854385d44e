"""Relearning on a user's few pictures: the best state is kept, over- and underfitting are told apart (U4)."""

import io
from pathlib import Path

import pytest
import torch
from tests import toys
from tests.guard import sets
from torch import Tensor

from unteach.core import seeds
from unteach.core.events import Lines, Steps
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.diffusion.finetune import Finetune, finetune
from unteach.errors import NumericsError
from unteach.guard.data import GuardData, mean_losses
from unteach.guard.methods import relearn as module
from unteach.guard.methods.freezeasguard import FreezeAsGuard
from unteach.guard.methods.learner import learn
from unteach.guard.methods.relearn import Watch, relearn

COLOUR, ACCIDENT = (torch.tensor(signs).view(4, 1, 1) for signs in ([1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]))


def pictures(model: Model, words: tuple[str, ...], count: int, part: str, accident: float = 0.0) -> Examples:
    """Pictures of one colour in noise; ``accident`` is what only these have in common, as few pictures always do."""
    names = [f"{word}{part} {k}" for word in words for k in range(count)]
    noise = torch.stack([torch.randn(model.latent_shape, generator=seeds.generator(0, name)) for name in names])
    captions = [f"a {word}" for word in words for _ in range(count)]
    latents = COLOUR + accident * ACCIDENT + 0.3 * noise
    return Examples(part, latents, model.encode(captions), tuple(names), tuple(captions))


def of_a_user(model: Model, accident: float) -> GuardData:
    """8 pictures a side: 4 to train on, 4 to judge by."""
    sides = (sets.ILLEGAL, sets.INNOCENT)
    parts = [pictures(model, words, 2, part, accident * (part == " user")) for words in sides for part in (" user", "")]
    return GuardData([parts[0]], [parts[1]], [parts[2]], [parts[3]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, dict[str, Tensor]]:
    """A model that draws this colour already, but for the accidents of a user's pictures."""
    model = sets.tiny(tmp_path_factory.mktemp("tiny"))
    before = pictures(model, (*sets.ILLEGAL, *sets.INNOCENT), 8, " before")
    finetune(model, before.batches, Finetune(steps=60, batch_size=8, learning_rate=1e-2))
    return model, toys.weights(model)


@pytest.fixture
def model(trained: tuple[Model, dict[str, Tensor]]) -> Model:
    model, weights = trained
    with torch.no_grad():
        for name, value in model.denoiser.named_parameters():
            value.copy_(weights[name])
    return model


def settings(relearn_steps: int, rate: float, **more: object) -> FreezeAsGuard:
    return FreezeAsGuard(**{"relearn_steps": relearn_steps, "relearn_rate": rate, "batch_size": 8, **more})


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """The watches that were made."""
    made: list[Watch] = []

    class Kept(Watch):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(module, "Watch", Kept)
    return made


def test_u4_overfitting_keeps_the_best_state_and_stops(model: Model, watched: list[Watch], tmp_path: Path) -> None:
    data, said = of_a_user(model, 0.8), io.StringIO()
    relearn(model, data, settings(20, 3e-4), seed=0, out=tmp_path, events=Lines(out=said))
    (watch,) = watched
    best, last = watch.step, watch.checks[-1][0]
    assert 0 < best < last < 20  # the last state is worse, and it stopped before the end
    losses = {0: watch.before, **{step: pair for step, *pair in watch.checks}}
    gains = {step: min(1 - a / b for a, b in zip(pair, watch.before, strict=True)) for step, pair in losses.items()}
    assert gains[best] == max(gains.values()) > 0 and gains[last] < gains[best]
    assert mean_losses(model, data, 0) == tuple(losses[best])  # the model holds it
    told = [line for line in said.getvalue().splitlines() if not line.startswith("  relearning")]
    assert len(told) == 1 and f"step {best} of 20 is best" in told[0] and f"stopped at {last}" in told[0]


def test_u4_the_message_tells_overfitting_from_underfitting(model: Model, tmp_path: Path) -> None:
    start = toys.weights(model)
    cases = {
        "by heart": (2.0, settings(10, 3e-3), "more pictures .*below 0.003; more relearn_steps do not help"),
        "hardly learned": (2.0, settings(2, 1e-9), "relearn_steps above 2 or relearn_rate above 1e-09"),
        "rose, too": (0.0, settings(4, 1.0), "set relearn_rate below 1"),
    }
    for words, (accident, config, advice) in cases.items():
        with torch.no_grad():
            for name, value in model.denoiser.named_parameters():
                value.copy_(start[name])
        with pytest.raises(NumericsError, match=f"no better on held-out pictures.*{words}.*{advice}") as error:
            learn(model, of_a_user(model, accident), config, out=tmp_path / words)
        assert "illegal" in str(error.value) and "on those it trains on" in str(error.value)
        assert all(torch.equal(value, start[name]) for name, value in toys.weights(model).items())
    # Raw losses need no gain: then the last state is what there is, as in the released code.
    assert learn(model, of_a_user(model, 2.0), settings(4, 3e-3, scale="raw", steps=2)).steps == 2


def test_an_interrupted_relearning_goes_on_with_its_best_state(
    model: Model, watched: list[Watch], tmp_path: Path
) -> None:
    data, config, start = of_a_user(model, 0.0), settings(104, 3e-4, batch_size=2), toys.weights(model)

    def stop(done: int) -> None:
        if done == 102:  # a checkpoint was written at 100
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relearn(model, data, config, seed=0, out=tmp_path, events=Steps(stop, "relearning"))
    with torch.no_grad():
        for name, value in model.denoiser.named_parameters():
            value.copy_(start[name])
    first = watched[0]
    steps: list[int] = []
    relearn(model, data, config, seed=0, out=tmp_path, events=Steps(steps.append, "relearning"))
    second = watched[1]
    assert steps == [101, 102, 103, 104]
    assert second.checks[: len(first.checks)] == first.checks and second.checks[-1][0] == 104
    assert mean_losses(model, data, 0) == next(tuple(pair) for step, *pair in second.checks if step == second.step)


def test_a_finished_relearning_is_read(model: Model, watched: list[Watch], tmp_path: Path) -> None:
    data, start = of_a_user(model, 0.5), toys.weights(model)
    for _ in range(2):
        with torch.no_grad():
            for name, value in model.denoiser.named_parameters():
                value.copy_(start[name])
        relearn(model, data, settings(3, 1e-4, scale="raw"), seed=0, out=tmp_path)
        kept = toys.weights(model)
    assert len(watched) == 1 and not all(torch.equal(kept[name], start[name]) for name in kept)
