"""Classifier-projection regularisation (Cha et al. 2021): keep the answers on the current batch wide. On any host."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.sources import CurrentBatch, Uniform, probabilities
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import NegEntropy


@methods.add("cpr")
@dataclass(frozen=True, kw_only=True)
class CPR(Method):
    """CE + α·D_negent(softmax h, uniform) on the current batch: -α·H(p) up to the constant α·log C.

    Written "ewc + cpr", "der++ + cpr" it is added to a host.

    Args:
        alpha: β of the paper.
    """

    name: ClassVar[str] = "cpr"
    form: ClassVar[Form] = "exact up to a constant"

    alpha: float = setting(0.1, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the divergence of the answers from the uniform distribution."""
        return [TaskLoss(), Output(NegEntropy(), CurrentBatch(), Uniform(), self.alpha, space=probabilities)]
