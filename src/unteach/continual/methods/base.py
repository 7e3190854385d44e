"""What a method of continual learning is: settings, a list of terms, and where needed a rule on the gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unteach.continual.learner import Learner
from unteach.continual.memory.buffer import Memory
from unteach.continual.terms import Rule, TaskLoss, Term
from unteach.continual.view import View
from unteach.core.registry import Methods
from unteach.core.settings import Settings, setting

__all__ = ["Form", "Method", "Replay", "methods", "setting"]

Form = Literal["exact", "exact up to a constant", "exact given the weights", "limit", "approximate", "outside"]
"""How a method stands to the one objective (refresh.md §1.3)."""

methods: Methods["Method"] = Methods("method")
"""Every method of continual learning and its presets, by name."""


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """A method and its settings. ``terms`` is all that most methods need.

    Class attributes:
        form: how the method stands to the one objective.
        boundaries: it must be told where tasks begin and end.
    """

    kind: ClassVar[str] = "method"
    form: ClassVar[Form] = "exact"
    boundaries: ClassVar[bool] = False

    def terms(self, learner: Learner) -> list[Term]:
        """The terms of the objective, made once a run; they carry the method's state. Here the task loss alone."""
        return [TaskLoss()]

    def rule(self, learner: Learner) -> Rule | None:
        """A rule on the gradient, or None."""
        return None

    def memory(self, learner: Learner) -> Memory | None:
        """The memory, or None."""
        return None

    def remember(self, view: View, x: Tensor) -> None:
        """Called after each step with the current batch as stored (``x``, not augmented): fill the memory."""

    def end_task(self, learner: Learner) -> None:
        """Called when a task has ended, after the terms' own: herding, training from memory."""

    def stages(self, tasks: int) -> list[list[int]]:
        """Which tasks' data is trained on at each stage; stage t is evaluated as "after task t" if it trains."""
        return [[task] for task in range(tasks)]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The module that is trained, made of the network (variational methods put another around it)."""
        return network

    def optimizer(self, learner: Learner) -> torch.optim.Optimizer | None:
        """An optimizer of the method's own, or None for the run's."""
        return None

    def scores(self, learner: Learner, x: Tensor) -> Tensor | None:
        """Scores (B, C) to judge by in place of the logits (nearest mean), or None."""
        return None

    @property
    def label(self) -> str:
        """Its name, for a table."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """A method with a memory that is filled while training.

    Args:
        buffer_size: samples kept.
        policy: how they are chosen.
    """

    stores_logits: ClassVar[bool] = False

    renamed: ClassVar[Mapping[str, str]] = {"buffer": "buffer_size"}
    buffer_size: int = setting(200, low=1)
    policy: Literal["reservoir", "balanced", "ring"] = "reservoir"

    def memory(self, learner: Learner) -> Memory:
        """A memory of ``buffer_size`` samples, as they come in the stream."""
        x = learner.stream.tasks[0].x
        return Memory(
            self.buffer_size,
            tuple(x.shape[1:]),
            classes=learner.classes,
            dtype=x.dtype,
            policy=self.policy,
            logits=self.stores_logits,
            seed=learner.seed,
            device=learner.device,
        )

    def remember(self, view: View, x: Tensor) -> None:
        """Offer the current batch to the memory, with its logits where the method stores them."""
        learner = view.learner
        assert learner.memory is not None
        kept = None
        if self.stores_logits:
            kept = view.last if view.last is not None else learner.forward(view.batch.x).detach()
        learner.memory.insert(x, view.batch.y, task=learner.task, logits=kept, step=view.index)
