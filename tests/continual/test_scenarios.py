"""What each scenario tells the learner, against loops written out by hand."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.continual import tiny

from unteach.continual import augment, networks
from unteach.continual.view import View
from unteach.core import seeds
from unteach.errors import ConfigError


def head_moves(scenario: Any, name: str = "fine-tune") -> list[bool]:
    """Whether each row of the head has moved when the first task alone was learned."""
    stream = tiny.stream(scenario)
    outcome = tiny.run(name, on=dataclasses.replace(stream, tasks=stream.tasks[:1]))
    _, last = networks.head(outcome.model)
    _, before = networks.head(networks.build("small-conv", stream.shape, stream.classes, 0, width=4))
    return [not torch.equal(a, b) for a, b in zip(last.weight, before.weight, strict=True)]


def test_a_task_stream_trains_the_outputs_of_its_own_task_alone() -> None:
    assert head_moves("class") == [True] * 4
    assert head_moves("task") == [True, True, False, False]
    assert head_moves("task", "er") == [True, True, False, False]
    stream = tiny.stream("task")
    tiny.assert_weights(tiny.run("fine-tune", on=stream).model, tiny.plain(stream, tiny.training(), masked=True))


def test_samples_from_memory_see_the_classes_of_their_own_task() -> None:
    stream = tiny.stream("task")
    outcome = tiny.run("er", on=stream)
    learner = outcome.learner
    drawn = learner.draw("a", 0)
    assert drawn is not None and drawn.task is not None and set(drawn.task.tolist()) == {0, 1}
    columns = View(learner, drawn, 0).columns(drawn)
    assert columns is not None
    assert columns.tolist() == [[y in stream.tasks[t].classes for y in range(4)] for t in drawn.task.tolist()]


def test_joint_training_of_a_task_stream() -> None:
    outcome = tiny.run("joint", on=tiny.stream("task"))
    (row,) = outcome.rows
    assert row.nll < 10 and outcome.passes == 6


def test_a_domain_stream_shares_its_labels() -> None:
    stream = tiny.stream("domain")
    outcome = tiny.run("er", on=stream)
    assert stream.classes == 2 and outcome.learner.seen.tolist() == [True, True]
    row = outcome.rows[0]
    assert row.class_il == row.task_il == row.class_il_all_heads


def test_online_and_general_streams_are_seen_once() -> None:
    for scenario in ("online", "general"):
        with pytest.raises(ConfigError, match="seen once, found epochs = 2"):
            tiny.run("er", on=tiny.stream(scenario), training=tiny.training(epochs=2))
        assert tiny.run("fine-tune", on=tiny.stream(scenario)).passes == 2 * 3
    tiny.assert_weights(
        tiny.run("fine-tune", on=tiny.stream("online")).model, tiny.plain(tiny.stream(), tiny.training())
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_general_stream_is_seen_in_its_order_as_one(momentum: float) -> None:
    stream = tiny.stream("general")
    model = networks.build("small-conv", stream.shape, stream.classes, 0, width=4)
    settings = tiny.training(momentum=momentum, channels_last=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum)
    step = 0
    for task in stream.tasks:
        for start in range(0, tiny.EACH, 8):
            x = augment.augment(task.x[start : start + 8], "shift", seeds.generator(0, "views", step))
            optimizer.zero_grad()
            out = model(augment.normalise(x, stream.mean, stream.std))
            torch.autograd.backward(F.cross_entropy(out, task.y[start : start + 8]))
            optimizer.step()
            step += 1
    tiny.assert_weights(tiny.run("fine-tune", on=stream, training=settings).model, model)


def test_a_general_stream_tells_no_boundaries() -> None:
    stream = tiny.stream("general")
    assert len(tiny.run("der++", "refresh", on=stream).rows) == 2
    with pytest.raises(ConfigError) as error:
        tiny.run("ewc", on=stream, training=tiny.training(epochs=2))
    assert "'ewc' must be told where tasks end" in str(error.value) and "seen once" in str(error.value)
    with pytest.raises(ConfigError, match=r"der\+\+ \+ online-ewc"):
        tiny.run("der++ + online-ewc", on=stream)
