"""A last batch of one sample where batch norm needs two (F12): joined to the batch before, in every scenario."""

from typing import get_args

import pytest
import torch
from tests.continual import tiny
from torch import Tensor, nn

from unteach.continual.engine import Outcome, learn
from unteach.continual.learner import Learner, Training
from unteach.continual.methods import methods
from unteach.continual.plugins import plugins
from unteach.continual.streams import Scenario
from unteach.errors import ConfigError

EACH, BATCH = 17, 8
"""Samples of a task, and of a batch: 8, 8 and 1."""


class Narrow(nn.Module):
    """Batch norm on one value a channel, as ResNets on pictures of 8 x 8 have it; it notes the sizes of batches."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sizes: list[int] = []
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.sizes.append(len(x))
        return self.head(self.body(x))


def ran(method: str, plugin: str | None = None, scenario: Scenario = "class", **settings: int) -> Outcome:
    on = tiny.stream(scenario, each=EACH)
    given = None if plugin is None else plugins.make(plugin)
    training = tiny.training(**{"batch_size": BATCH, "memory_batch_size": 2, **settings})
    return tiny.run(method, given, on=on, network=Narrow(on.classes), training=training)


def sizes(outcome: Outcome) -> list[int]:
    assert isinstance(outcome.model, Narrow)
    return outcome.model.sizes


@pytest.mark.parametrize("method", methods)
def test_every_method_trains(method: str) -> None:
    """F12. The traceback was "Expected more than 1 value per channel when training"."""
    outcome = ran(method)
    assert outcome.rows[-1].task == 1
    assert all(bool(torch.isfinite(param).all()) for param in outcome.learner.params)


@pytest.mark.parametrize("scenario", get_args(Scenario))
@pytest.mark.parametrize("plugin", [None, *plugins])
def test_every_scenario_and_plugin_trains(scenario: Scenario, plugin: str | None) -> None:
    outcome = ran("er", plugin, scenario)
    assert len(outcome.rows) and 9 in sizes(outcome)


def test_the_last_sample_is_in_the_batch_before() -> None:
    """F12. Every sample is seen once a pass, and networks that can take one sample alone go on as they did."""
    assert sizes(ran("fine-tune")) == [8, 9, 8, 9]
    assert sizes(ran("fine-tune", scenario="online")) == [8, 9, 8, 9]
    assert sizes(ran("fine-tune", batch_size=16)) == [17, 17]
    assert sizes(ran("fine-tune", batch_size=15)) == [15, 2, 15, 2]
    steps = [ran("fine-tune"), tiny.run("fine-tune", on=tiny.stream(each=EACH))]
    assert [outcome.passes for outcome in steps] == [4, 6]


def test_gdumb_fits_its_memory_the_same_way() -> None:
    fitted = tiny.run(tiny.method("gdumb", buffer_size=9), on=tiny.stream(each=EACH), network=Narrow())
    assert sizes(fitted)[-2:] == [9, 9] and 1 not in sizes(fitted)


@pytest.mark.parametrize("method", ["er", "gem"])
def test_a_memory_of_one_sample_is_seen_by_the_running_statistics(method: str) -> None:
    outcome = tiny.run(tiny.method(method, buffer_size=1), on=tiny.stream(each=EACH), network=Narrow())
    assert 1 in sizes(outcome)
    assert all(bool(torch.isfinite(param).all()) for param in outcome.learner.params)


def test_a_single_sample_leaves_the_running_statistics_alone() -> None:
    on = tiny.stream()
    learner = Learner(on, Narrow(), tiny.training(), 0, torch.device("cpu"))
    before = [b.clone() for b in learner.model.buffers()]
    x = torch.randn(2, 1, 8, 8)
    one = learner.forward(x[:1])
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.buffers(), strict=True))
    assert all(module.training for module in learner.model.modules())
    torch.testing.assert_close(one, learner.model.eval()(x)[:1])


@pytest.mark.parametrize(("method", "settings"), [("fine-tune", {"batch_size": 1}), ("er", {"memory_batch_size": 1})])
def test_a_batch_size_of_1_is_refused_before_anything_trains(method: str, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"single sample.*{next(iter(settings))} is 1: use 2 or more"):
        ran(method, **settings)
    tiny.run(method, training=tiny.training(**settings))  # two by two values a channel: fine


def test_a_task_of_one_sample_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="the task 'task 0' has one sample"):
        tiny.run("fine-tune", on=tiny.stream(each=1), network=Narrow())


def test_a_resnet_on_small_pictures_online() -> None:
    """F12 as it was reported, with the network that ships."""
    training = Training(epochs=1, batch_size=10)
    on = tiny.stream("online", each=21)
    outcome = learn(on, "fine-tune", network="reduced-resnet18", options={"width": 8}, training=training)
    assert outcome.passes == 4
