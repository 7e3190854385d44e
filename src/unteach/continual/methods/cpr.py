"""Classifier-projection regularisation (Cha et al. 2021): keep the answers on the current batch wide. On any host."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unteach.continual.method import Form, Method, methods, setting
from unteach.continual.objective import Output, TaskLoss, Term, current, probabilities, uniform
from unteach.core.bregman import NegEntropy

if TYPE_CHECKING:
    from unteach.continual.learner import Learner


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

    def terms(self, learner: "Learner") -> list[Term]:
        """The task loss and the divergence of the answers from the uniform distribution."""
        return [TaskLoss(), Output(NegEntropy(), current, uniform, self.alpha, space=probabilities)]
