"""Learning without forgetting (Li and Hoiem 2016): the old network's answers on the new data."""

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.sources import CurrentBatch, OldOutputs
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import LogSumExp


@methods.add("lwf")
@dataclass(frozen=True, kw_only=True)
class LwF(Method):
    """CE over the classes seen + α·D_{lse_T}(h, h_old) on the current batch, over old classes.

    The old network sees the same augmented views. D carries the factor T², so α is Mammoth's α/T².

    Args:
        alpha: weight.
        temperature: T.
    """

    form: ClassVar[Form] = "exact up to a constant"
    boundaries: ClassVar[bool] = True

    alpha: float = setting(1.0, low=0)
    temperature: float = setting(2.0, above=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and distillation on the current batch."""
        psi = LogSumExp(temperature=self.temperature)
        return [
            TaskLoss(classes="seen"),
            Output(psi, CurrentBatch(), OldOutputs(), self.alpha, columns=attrgetter("past")),
        ]
