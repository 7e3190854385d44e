"""iCaRL (Rebuffi et al. 2017): sigmoid distillation, a memory chosen by herding, the nearest mean as classifier."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.memory.selection import herding
from unteach.continual.methods.base import Form, Replay, methods, setting
from unteach.continual.networks import features
from unteach.continual.sources import BothBatches, OldOutputs
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.continual.view import View
from unteach.core.bregman import Softplus


def old_classes(learner: Learner) -> Tensor:
    """Classes seen that this task does not have, bool (C,)."""
    return learner.seen & ~learner.current


class SigmoidLoss(TaskLoss):
    """Binary cross-entropy of the current task's classes against the labels, summed over them, on both batches.

    Args:
        average: divide by the number of classes seen.
    """

    def __init__(self, average: bool) -> None:
        super().__init__(BothBatches())
        self.average = average

    def value(self, view: View) -> Tensor | None:
        """Shape (); ``data_weight`` counts for samples of the current batch only."""
        batch = self.source.batch(view)
        if batch is None:
            return None
        own = view.learner.current
        target = F.one_hot(batch.y, view.learner.classes)[:, own].float()
        losses = F.binary_cross_entropy_with_logits(view.output(batch)[:, own], target, reduction="none").sum(1)
        if self.average:
            losses = losses / view.learner.seen.sum()
        factors = view.factors(batch, view.data_weight)
        return losses.mean() if factors is None else (factors.to(losses) * losses).mean()


class Distillation(Output):
    """α·D_softplus(h, h_old) on the old classes, summed over them, on both batches.

    Args:
        alpha: α.
        average: divide by the number of classes seen.
    """

    def __init__(self, alpha: float, average: bool) -> None:
        super().__init__(Softplus(), BothBatches(), OldOutputs(), alpha, columns=old_classes)
        self.average = average

    def value(self, view: View) -> Tensor | None:
        """Shape (); None before the first task has ended."""
        found = super().value(view)
        return found / view.learner.seen.sum() if found is not None and self.average else found


@methods.add("icarl")
@dataclass(frozen=True, kw_only=True)
class ICaRL(Replay):
    """BCE on new classes + α·D_softplus(h, h_old) on old ones, over the current batch and memory.

    Outside the form: herding (when a task ends) and the nearest class mean (when asked).

    Args:
        alpha: weight of distillation.
        average: average both losses over the classes seen, C_t, as Mammoth does, instead of their sum over classes
            (the paper's): the same step at a learning rate C_t times as large.
    """

    form: ClassVar[Form] = "exact up to a constant"
    boundaries: ClassVar[bool] = True

    policy: Literal["reservoir", "balanced", "ring"] = "balanced"
    alpha: float = setting(1.0, low=0)
    average: bool = False

    def terms(self, learner: Learner) -> list[Term]:
        """The sigmoid loss and distillation."""
        return [SigmoidLoss(self.average), Distillation(self.alpha, self.average)]

    def remember(self, view: View, x: Tensor) -> None:
        """The memory changes only when a task ends."""

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Each class seen keeps an equal share, the best first: new classes by herding, old ones shortened."""
        kept = learner.memory
        assert kept is not None
        share = self.buffer_size // int(learner.seen.sum())
        learner.model.eval()
        x, y, task = [], [], []
        held, data = len(kept), learner.data[learner.task]
        for label in learner.seen.nonzero()[:, 0].tolist():
            if bool(learner.current[label]):
                own = data[0][data[1] == label]
                rows = herding(_features(learner, own), share)
                chosen, of = own[rows], torch.full((len(rows),), learner.task, device=own.device)
            else:
                rows = (kept.y[:held] == label).nonzero()[:, 0][:share]
                chosen, of = kept.x[rows], kept.task[rows]
            x.append(chosen)
            y.append(torch.full((len(chosen),), label, device=learner.device))
            task.append(of)
        kept.replace(torch.cat(x).clone(), torch.cat(y), task=torch.cat(task).clone())
        learner.model.train()

    def scores(self, learner: Learner, x: Tensor) -> Tensor | None:
        """-‖φ - μ_c‖ on features of length 1, μ_c the mean of the class in memory; None while that is empty."""
        kept = learner.memory
        if kept is None or len(kept) == 0:
            return None
        phi, held = _features(learner, kept.x[: len(kept)]), kept.y[: len(kept)]
        sums = phi.new_zeros(learner.classes, phi.shape[1]).index_add_(0, held, phi)
        means = F.normalize(sums, dim=1)
        distance = torch.cdist(F.normalize(features(learner.network, x)[1], dim=1), means)
        return -distance.masked_fill(~torch.isin(torch.arange(learner.classes, device=x.device), held), torch.inf)


@torch.no_grad()
def _features(learner: Learner, x: Tensor) -> Tensor:
    size = learner.settings.eval_batch_size
    parts = [features(learner.network, learner.views(part, None))[1] for part in torch.split(x, size)]
    return F.normalize(torch.cat(parts), dim=1)
