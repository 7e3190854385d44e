"""The two ends of the scale: fine-tune (the task loss alone) and joint training; label smoothing as a term."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.sources import CurrentBatch, Uniform
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import LogSumExp


@methods.add("fine-tune")
@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Plain training, task after task: α = β = 0. The lower control."""

    name: ClassVar[str] = "fine-tune"

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss."""
        return [TaskLoss()]


@methods.add("joint")
@dataclass(frozen=True, kw_only=True)
class Joint(Method):
    """Training on all tasks' data at once: the upper control, not a continual learner.

    Args:
        cumulative: train after every task on all data so far (the reference of intransigence), going on from
            the weights before; else once, on everything, after the last task.
    """

    name: ClassVar[str] = "joint"
    boundaries: ClassVar[bool] = True

    cumulative: bool = False

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss."""
        return [TaskLoss()]

    def stages(self, tasks: int) -> list[list[int]]:
        """All tasks at the last stage, or at every stage those so far."""
        if self.cumulative:
            return [list(range(task + 1)) for task in range(tasks)]
        return [[] for _ in range(tasks - 1)] + [list(range(tasks))]


@methods.add("label-smoothing")
@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    """(1 - ε)·CE + ε·D_lse(h, 0): cross-entropy with targets mixed with the uniform distribution.

    CPR with the other order of arguments; a control of it.

    Args:
        epsilon: ε.
    """

    name: ClassVar[str] = "label-smoothing"
    form: ClassVar[Form] = "exact up to a constant"

    epsilon: float = setting(0.1, low=0, high=1)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the divergence to no preference."""
        return [TaskLoss(weight=1 - self.epsilon), Output(LogSumExp(), CurrentBatch(), Uniform(), self.epsilon)]
