"""X-DER (Boschini et al. 2022), as far as the one form allows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from unteach.continual.method import Form, methods, setting
from unteach.continual.methods.der import DERPlusPlus
from unteach.continual.objective import Output, TaskLoss, Term, labels, memory, stored
from unteach.core.bregman import LogSumExp, MeanSquare

if TYPE_CHECKING:
    from unteach.continual.learner import Learner


@methods.add("x-der")
@dataclass(frozen=True, kw_only=True)
class XDER(DERPlusPlus):
    """DER++ whose stored logits are kept up to date: when a task ends, each older sample gets that task's logits.

    Inside the form: sq on memory with edited targets, cross-entropy on memory, the current batch's cross-entropy
    over its own task's classes. Outside it, and left out: the contrastive preparation of future heads and the hinge
    that keeps past and future logits below the present ones.

    Args:
        gamma: implanted logits are at most gamma × the stored logit of the sample's own class, or 0 where no factor
            ≥ 0 brings them below it.
        threshold: they are scaled where they pass gamma × that logit ("gamma"), or only where they pass the logit
            itself, as in the released code ("own").
        heads: which logits are implanted when a task ends: the task's ("new"), or those of the classes still to
            come with them, as in the released code ("new and future").
    """

    name: ClassVar[str] = "x-der"
    form: ClassVar[Form] = "approximate"
    boundaries: ClassVar[bool] = True

    gamma: float = setting(0.85, low=0)
    threshold: Literal["gamma", "own"] = "gamma"
    heads: Literal["new", "new and future"] = "new"

    def terms(self, learner: "Learner") -> list[Term]:
        """The masked task loss and DER++'s memory terms."""
        return [
            TaskLoss(classes="current"),
            Output(MeanSquare(), memory("a"), stored, self.alpha),
            Output(LogSumExp(), memory("b"), labels, self.beta),
        ]

    @torch.no_grad()
    def end_task(self, learner: "Learner") -> None:
        """Implant this task's logits into older samples, scaled below what they say of their own class."""
        kept = learner.memory
        assert kept is not None and kept.logits is not None
        old = (kept.task[: len(kept)] != learner.task).nonzero()[:, 0]
        heads = learner.current if self.heads == "new" else learner.current | ~learner.seen
        learner.model.eval()
        for part in torch.split(old, learner.settings.eval_batch):
            z = kept.logits[part].clone()
            new = learner.forward(learner.views(kept.x[part], None))[:, heads].to(z)
            own = z.gather(1, kept.y[part][:, None])
            cap = self.gamma * own
            most = new.max(1, keepdim=True).values
            lower = torch.where(most * cap > 0, cap / most, 0)  # both below 0: a factor above 1 lowers them
            factor = torch.where(most > (cap if self.threshold == "gamma" else own), lower, 1)
            z[:, heads] = new * factor
            kept.update_logits(part, z)
        learner.model.train()
