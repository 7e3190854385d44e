"""Answers kept wide: label smoothing, and classifier-projection regularization (Cha et al. 2021) on any host."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.sources import CurrentBatch, Uniform, probabilities
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import LogSumExp, NegEntropy


@methods.add("label-smoothing")
@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    """(1 - ε)·CE + ε·D_lse(h, 0): cross-entropy with targets mixed with the uniform distribution.

    CPR with the other order of arguments; a control of it.

    Args:
        epsilon: ε.
    """

    form: ClassVar[Form] = "exact up to a constant"

    epsilon: float = setting(0.1, low=0, high=1)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the divergence to no preference."""
        return [TaskLoss(weight=1 - self.epsilon), Output(LogSumExp(), CurrentBatch(), Uniform(), self.epsilon)]


@methods.add("cpr")
@dataclass(frozen=True, kw_only=True)
class CPR(Method):
    """CE + α·D_negent(softmax h, uniform) on the current batch: -α·H(p) up to the constant α·log C.

    Written "ewc + cpr", "der++ + cpr" it is added to a host.

    Args:
        alpha: β of the paper.
    """

    form: ClassVar[Form] = "exact up to a constant"

    alpha: float = setting(0.1, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the divergence of the answers from the uniform distribution."""
        return [TaskLoss(), Output(NegEntropy(), CurrentBatch(), Uniform(), self.alpha, space=probabilities)]
