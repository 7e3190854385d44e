"""A stream of a few pictures and a network of a few weights, and how runs on them are compared and broken off."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unteach.continual import augment, engine, networks
from unteach.continual.engine import Outcome, learn
from unteach.continual.learner import Training
from unteach.continual.methods import AnyMethod, make
from unteach.continual.streams import Scenario, Stream, Task, with_scenario
from unteach.core import seeds

EACH = 24
"""Samples to learn from, a task: three batches of 8."""


def stream(scenario: Scenario = "class", *, tasks: int = 2, seed: int = 0, each: int = EACH) -> Stream:
    """Pictures 1 x 8 x 8 of noise whose brightness tells the class; two classes a task, views by shifting."""
    made = []
    for t in range(tasks):
        generator = seeds.generator(seed, "tests tiny stream", t)
        parts: list[Tensor] = []
        for count in (each, 8):
            y = torch.arange(count) % 2 + 2 * t
            noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
            parts += [(noise + 180 * y[:, None, None, None] // (2 * tasks)).to(torch.uint8), y]
        made.append(Task(f"task {t}", *parts))
    names = tuple(f"class {i}" for i in range(2 * tasks))
    return with_scenario(Stream("tiny", "class", tuple(made), 2 * tasks, names, (0.4,), (0.3,), "shift"), scenario)


def training(**settings: Any) -> Training:
    return Training(**{"epochs": 1, "batch_size": 8, "memory_batch_size": 8, "learning_rate": 0.05, **settings})


def method(name: str, **settings: Any) -> AnyMethod:
    """The method with a memory and a training from it that fit the stream."""
    parts = [make(part).to_dict() for part in name.split(" + ")]
    small = {"buffer_size": 8, "fit_epochs": 2}
    fitting = {key: value for key, value in small.items() if any(key in part for part in parts)}
    return make(name, **{**fitting, **settings})


def run(name: str | AnyMethod, plugin: Any = None, *, on: Stream | None = None, **arguments: Any) -> Outcome:
    """A run on the conv net of width 4; ``arguments`` as of ``learn``."""
    given = {"network": "small-conv", "training": training(), **arguments}
    if given["network"] == "small-conv":
        given.setdefault("options", {"width": 4})
    return learn(on or stream(), method(name) if isinstance(name, str) else name, plugin=plugin, **given)


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """What was measured, without the seconds."""
    return [{key: value for key, value in vars(row).items() if key != "seconds"} for row in outcome.rows]


def kept(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of a nested state, by its place."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in kept(item, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in kept(item, f"{path}/{i}").items()}
    return {path: value}


def assert_same(a: Outcome, b: Outcome) -> None:
    """Equal bit for bit: weights, statistics, memory, optimizer, terms, rule, old network, measurements."""
    states = []
    for outcome in (a, b):
        weights = {name: value.detach() for name, value in outcome.learner.model.state_dict().items()}
        states.append(kept({"weights": weights, **outcome.learner.state_dict(), **outcome.objective.state_dict()}))
    first, second = states
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
        assert same, key
    assert rows(a) == rows(b) and a.passes == b.passes


def differs(a: Outcome, b: Outcome) -> bool:
    pairs = zip(a.learner.params, b.learner.params, strict=True)
    return any(not torch.equal(x, y) for x, y in pairs)


class Enough(Exception):
    """The run was broken off."""


@contextmanager
def broken_off(before: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs within stop with :class:`Enough` before the step ``before`` (from 0) is done."""
    real = engine.Trainer.step

    def step(self: Any, now: Any) -> Any:
        if now.index == before:
            raise Enough
        return real(self, now)

    with patch.context() as patched, pytest.raises(Enough):
        patched.setattr(engine.Trainer, "step", step)
        yield


def resumed(name: str, plugin: Any, out: Path, patch: pytest.MonkeyPatch, *, before: int, every: int) -> Outcome:
    """A run that is broken off before a step and goes on from its last checkpoint."""
    arguments: dict[str, Any] = {"out": out, "save_every": every, "training": training(epochs=2, momentum=0.9)}
    with broken_off(before, patch):
        run(name, plugin, **arguments)
    return run(name, plugin, **arguments)


def plain(stream: Stream, settings: Training, seed: int = 0, *, masked: bool = False) -> nn.Module:
    """Plain training of one task after the other, written out."""
    model, layout = networks.build("small-conv", stream.shape, stream.classes, seed, width=4), torch.contiguous_format
    if settings.channels_last:
        layout = torch.channels_last
        model.to(memory_format=layout)  # type: ignore[call-overload]
    step = 0
    for t, task in enumerate(stream.tasks):
        optimizer = torch.optim.SGD(
            model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )
        for epoch in range(settings.epochs):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.lr_decay ** sum(epoch >= m for m in settings.milestones)
            order = seeds.permutation(len(task.y), seed, "order", t, epoch)
            for start in range(0, len(order), settings.batch_size):
                rows = order[start : start + settings.batch_size]
                x = augment.augment(task.x[rows], stream.augment, seeds.generator(seed, "views", step))
                out = model(augment.normalise(x, stream.mean, stream.std).contiguous(memory_format=layout))
                if masked:
                    others = [c for c in range(stream.classes) if c not in task.classes]
                    out = out.index_fill(1, torch.tensor(others), -torch.inf)
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(out, task.y[rows]))
                if settings.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                optimizer.step()
                step += 1
    return model.eval()


def assert_weights(model: nn.Module, expected: nn.Module) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
