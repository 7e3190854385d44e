"""A stream of vectors, a network in double precision, and a look at every step of a real run on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unteach.continual.batch import Batch
from unteach.continual.engine import learn
from unteach.continual.learner import Learner, Training
from unteach.continual.methods import AnyMethod
from unteach.continual.plugins import Plugin
from unteach.continual.plugins.base import PluginState
from unteach.continual.step import StepContext
from unteach.continual.streams import Scenario, Stream, Task
from unteach.core import seeds

FEATURES, CLASSES, EACH, BATCH = 5, 6, 14, 8
"""Two classes and 14 samples a task (batches of 8 and 6), three tasks."""

Gradients = Sequence[Tensor | None]
Samples = tuple[Tensor, Tensor, Tensor]
"""x, y and stored logits."""


class Double(nn.Module):
    """5 → 4 → 6, smooth, in double precision; floats go in."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
        generator = seeds.generator(seed, "tests lab network")
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(0.6 * torch.randn(param.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.double())


def stream(scenario: Scenario = "class", *, tasks: int = 3, narrow: bool = False, same: bool = False) -> Stream:
    """Clouds around one centre a class; ``narrow``: task t lives in the coordinates t and t + 1; ``same``: the same
    two classes in every task."""
    made = []
    for t in range(tasks):
        parts: list[Tensor] = []
        for part, count in enumerate((EACH, 4)):
            y = torch.arange(count) % 2 + (0 if same else 2 * t)
            x = torch.randn(count, FEATURES, generator=seeds.generator(part, "tests lab stream", t))
            x[torch.arange(count), y % FEATURES] += 1.5
            if narrow:
                x[:, [i for i in range(FEATURES) if i not in (t, t + 1)]] = 0
            parts += [x, y]
        made.append(Task(f"task {t}", *parts))
    return Stream("lab", scenario, tuple(made), CLASSES, tuple("abcdef"), (), ())


@dataclass(eq=False)
class Look:
    """One step of a run, before the update."""

    learner: Learner
    host: Any
    gradients: list[Tensor | None]

    @property
    def net(self) -> nn.Module:
        return self.learner.model

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        now: Batch = self.host.view.batch
        return now.x, now.y

    def memory(self, key: str = "a") -> Samples | None:
        """The draw from memory that a term of this key sees in this step."""
        drawn = self.host.view.draw(key)
        return None if drawn is None else (drawn.x, drawn.y, drawn.logits)

    @property
    def seen(self) -> list[int]:
        """Classes of the tasks so far."""
        return sorted({c for task in self.learner.stream.tasks[: self.learner.task + 1] for c in task.classes})

    @property
    def new(self) -> list[int]:
        """Classes of this task."""
        return list(self.learner.stream.tasks[self.learner.task].classes)

    @property
    def old(self) -> list[int]:
        """Classes of earlier tasks alone."""
        return [c for c in self.seen if c not in self.new]


def watch(
    method: AnyMethod,
    step: Callable[[Look], Any] | None = None,
    end: Callable[[Learner], Any] | None = None,
    after: Callable[[Look], Any] | None = None,
    *,
    on: Stream | None = None,
    network: nn.Module | None = None,
    seed: int = 0,
    **training: Any,
) -> Learner:
    """A run of the engine with ``step`` called before and ``after`` after every update, ``end`` after every task."""

    class Looking(PluginState):
        def __init__(self, learner: Learner) -> None:
            self.learner = learner

        def step(self, host: StepContext) -> dict[str, Tensor]:
            self.learner.objective = host.objective  # type: ignore[attr-defined]  # for the tests' looks at its terms
            look = Look(self.learner, host, host.gradient())
            if step is not None:
                step(look)
            host.update(look.gradients)
            if after is not None:
                after(look)
            return {}

        def end_task(self, learner: Any) -> None:
            if end is not None:
                end(learner)

    @dataclass(frozen=True, kw_only=True)
    class Spy(Plugin):
        name = "spy"

        def start(self, learner: Any) -> PluginState:
            return Looking(learner)

    settings = {"epochs": 1, "batch_size": BATCH, "memory_batch_size": 6, "learning_rate": 0.1, **training}
    network = network or Double()
    made = learn(on or stream(), method, network=network, plugin=Spy(), training=Training(**settings), seed=seed)
    return made.learner


def slope(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The gradient, zeros where there is none."""
    found = torch.autograd.grad(loss, list(params), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]


def flat(gradients: Gradients, params: Sequence[Tensor]) -> Tensor:
    """(P,), None as zeros."""
    pairs = zip(gradients, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g.detach()).flatten() for g, p in pairs]).clone()


def distance(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest entry wanted (or to 1e-3 where that is less)."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3))


def identity(
    method: AnyMethod,
    loss: Callable[[Look], Tensor],
    end: Callable[[Learner], Any] | None = None,
    *,
    plain: Callable[[Look], Tensor] | None = None,
    after: Callable[[Look], Any] | None = None,
    within: float = 1e-6,
    **arguments: Any,
) -> Learner:
    """Every step's gradient is that of the literal ``loss``, and in later tasks not that of ``plain`` (cross-entropy
    of the batch alone)."""
    differing: set[int] = set()

    def step(look: Look) -> None:
        params = look.learner.params
        got = flat(look.gradients, params)
        wanted = flat(slope(loss(look), params), params)
        assert distance(got, wanted) < within, (look.learner.task, look.host.index)
        other = (
            torch.nn.functional.cross_entropy(look.net(look.batch[0]), look.batch[1]) if plain is None else plain(look)
        )
        if distance(got, flat(slope(other, params), params)) > 100 * within:
            differing.add(look.learner.task)

    learner = watch(method, step, end, after, **arguments)
    assert {1, 2} <= differing
    return learner


def weights(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.params]
