"""Experience replay and its relatives whose memory term is cross-entropy: ER, ER-ACE."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Replay, methods, setting
from unteach.continual.sources import BothBatches, FromMemory, Labels
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import LogSumExp


@methods.add("er")
@dataclass(frozen=True, kw_only=True)
class ER(Replay):
    """Experience replay: CE + α·D_lse(h, s·e_y) on memory, in the exact limit s → ∞ (cross-entropy).

    Args:
        alpha: weight of the memory's loss (the separate form).
        concatenated: one pass over both batches and the mean over both (Mammoth), which is α = B_M/B at a learning
            rate × B/(B + B_M), so α grows while the memory fills; else two passes, each with batch-norm
            statistics of its own.
    """

    alpha: float = setting(1.0, low=0)
    concatenated: bool = False

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss, and the memory's."""
        if self.concatenated:
            return [TaskLoss(source=BothBatches())]
        return [TaskLoss(), Output(LogSumExp(), FromMemory("a"), Labels(), self.alpha)]


@methods.add("er-ace")
@dataclass(frozen=True, kw_only=True)
class ERACE(Replay):
    """ER with asymmetric cross-entropy (Caccia et al. 2022): the current batch's softmax sees only the classes in it.

    Outside the form: the task loss itself is masked, in the first task too (Mammoth begins with the second, and
    leaves classes still to come in).

    Args:
        alpha: weight of the memory's loss, over all classes.
    """

    form: ClassVar[Form] = "approximate"

    alpha: float = setting(1.0, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The masked task loss, and the memory's cross-entropy."""
        return [TaskLoss(classes="present"), Output(LogSumExp(), FromMemory("a"), Labels(), self.alpha)]
