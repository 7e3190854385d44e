"""Training the judges: batches, losses, interrupted is unbroken, and what lowers "none"."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tools.canvas.negatives import NO_OBJECT
from tools.canvas.train_judges import RECIPES, Recipe, batch, doubt, train

from unteach.canvas import model_path
from unteach.canvas.judges import load
from unteach.core.events import Steps
from unteach.data.emoji import grid

NAMES = ("cnn", "patch")


@pytest.mark.parametrize("name", NAMES)
def test_doubt_adds_to_the_logit_of_none(name: str) -> None:
    net = load(model_path() / "judges" / f"{name}.safetensors").net
    images = grid().views(*(t[::40] for t in grid().pairs()))
    before = net(images)
    doubt(net, 0.7, -0.2)
    for old, new, amount in zip(before, net(images), (0.7, -0.2), strict=True):
        old, new = (x[:, -1:] - x[:, :-1] for x in (old, new))
        assert torch.allclose(new - old, torch.full_like(old, amount), atol=1e-4)


TOY = Recipe(network="patch", steps=4, batch=8, negatives=32, seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_training_batch(name: str) -> None:
    seen = batch(grid(), replace(RECIPES[name], batch=10, negatives=32), 0)
    assert seen.images.shape == (42, 3, 32, 32)
    assert 0 <= float(seen.images.min()) <= float(seen.images.max()) <= 1
    assert (seen.objects == NO_OBJECT).tolist() == [False] * 10 + [True] * 32
    other = batch(grid(), replace(RECIPES[name], batch=10, negatives=32), 1)
    assert not torch.equal(seen.images, other.images)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_training_is_unbroken_training(name: str, tmp_path: Path) -> None:
    recipe = replace(TOY, network=name)
    unbroken = train(recipe)

    def stop(done: int) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(recipe, out=tmp_path, save_every=2, events=Steps(stop))
    resumed = train(recipe, out=tmp_path, save_every=2)
    for key, value in unbroken.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[key]), key


def test_training_learns() -> None:
    objects, styles = grid().pairs()
    table, _ = train(replace(TOY, steps=30, batch=48)).probabilities(grid().views(objects, styles))
    # "None" is the answer until a class is learned well, so early learning shows in the order of the classes.
    right = (table[:, :-1].argmax(dim=1) == objects).float().mean()
    assert float(right) > 10 / 60
