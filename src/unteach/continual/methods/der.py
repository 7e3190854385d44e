"""Dark experience replay (Buzzega et al. 2020): the memory keeps the logits that the network had."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Replay, methods, setting
from unteach.continual.sources import FromMemory, Labels, StoredLogits
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import LogSumExp, MeanSquare


@methods.add("der")
@dataclass(frozen=True, kw_only=True)
class DER(Replay):
    """CE + α·D_{sq/C}(h, z) on memory, z the logits stored when the sample entered.

    Args:
        alpha: weight on the *mean* over classes, as in Mammoth: C times the paper's α.
    """

    name: ClassVar[str] = "der"
    stores_logits: ClassVar[bool] = True

    alpha: float = setting(0.3, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the distance to stored logits."""
        return [TaskLoss(), Output(MeanSquare(), FromMemory("a"), StoredLogits(), self.alpha)]


@methods.add("der++")
@dataclass(frozen=True, kw_only=True)
class DERPlusPlus(DER):
    """DER with a second, independent draw from memory under cross-entropy, weight β.

    Args:
        beta: weight of that term.
    """

    name: ClassVar[str] = "der++"

    beta: float = setting(0.5, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """DER's terms, and cross-entropy on another draw."""
        return [*super().terms(learner), Output(LogSumExp(), FromMemory("b"), Labels(), self.beta)]
