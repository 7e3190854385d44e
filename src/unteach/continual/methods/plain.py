"""The two ends of the scale: fine-tune (the task loss alone) and joint training."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.continual.methods.base import Method, methods


@methods.add("fine-tune")
@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Plain training, task after task: α = β = 0. The lower control."""


@methods.add("joint")
@dataclass(frozen=True, kw_only=True)
class Joint(Method):
    """Training on all tasks' data at once: the upper control, not a continual learner.

    Args:
        cumulative: train after every task on all data so far (the reference of intransigence), going on from
            the weights before; else once, on everything, after the last task.
    """

    boundaries: ClassVar[bool] = True

    cumulative: bool = False

    def stages(self, tasks: int) -> list[list[int]]:
        """All tasks at the last stage, or at every stage those so far."""
        if self.cumulative:
            return [list(range(task + 1)) for task in range(tasks)]
        return [[] for _ in range(tasks - 1)] + [list(range(tasks))]
