"""The memory keeps the logits that the network had: DER, DER++ (Buzzega et al. 2020), FDR (Benjamin et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Replay, methods, setting
from unteach.continual.sources import FromMemory, Labels, StoredLogits, probabilities
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.core.bregman import LogSumExp, MeanSquare, Square


@methods.add("der")
@dataclass(frozen=True, kw_only=True)
class DER(Replay):
    """CE + α·D_{sq/C}(h, z) on memory, z the logits stored when the sample entered.

    Args:
        alpha: weight on the *mean* over classes, as in Mammoth: C times the paper's α.
    """

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

    beta: float = setting(0.5, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """DER's terms, and cross-entropy on another draw."""
        return [*super().terms(learner), Output(LogSumExp(), FromMemory("b"), Labels(), self.beta)]


@methods.add("fdr")
@dataclass(frozen=True, kw_only=True)
class FDR(Replay):
    """CE + α·‖softmax h - softmax z‖² on memory, z the logits of the network when the sample's task ended.

    Samples of the current task are stored with the logits that they had when they entered, until the task ends.
    The square makes it a Bregman divergence; Mammoth takes the norm itself, which is none.

    Args:
        alpha: weight.
    """

    form: ClassVar[Form] = "exact"
    boundaries: ClassVar[bool] = True
    stores_logits: ClassVar[bool] = True

    alpha: float = setting(1.0, low=0)

    def terms(self, learner: Learner) -> list[Term]:
        """The task loss and the distance between probabilities."""
        return [TaskLoss(), Output(Square(), FromMemory("a"), StoredLogits(), self.alpha, space=probabilities)]

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Store the logits of the network as it is now, for this task's samples."""
        kept = learner.memory
        assert kept is not None
        slots = (kept.task[: len(kept)] == learner.task).nonzero()[:, 0]
        learner.model.eval()
        for part in torch.split(slots, learner.settings.eval_batch_size):
            kept.update_logits(part, learner.forward(learner.views(kept.x[part], None)))
        learner.model.train()
