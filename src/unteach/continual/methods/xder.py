"""X-DER (Boschini et al. 2022), as far as the one form allows."""

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.memory.buffer import Memory
from unteach.continual.methods.base import Form, methods, setting
from unteach.continual.methods.der import DERPlusPlus
from unteach.continual.sources import FromMemory, Labels, StoredLogits
from unteach.continual.terms import Output, TaskLoss, Term
from unteach.continual.view import View
from unteach.core import seeds
from unteach.core.bregman import LogSumExp, MeanSquare


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
        fill: the memory is a reservoir, filled at every step with the logits of that step, or filled when a task
            ends, balanced over classes, with logits of that moment, as in the released code.
        memory_heads: columns of the memory's cross-entropy: all, or those of earlier tasks alone, as in the released
            code (with ``fill`` "task end" only).
    """

    form: ClassVar[Form] = "approximate"
    boundaries: ClassVar[bool] = True

    gamma: float = setting(0.85, low=0)
    threshold: Literal["gamma", "own"] = "gamma"
    heads: Literal["new", "new and future"] = "new"
    fill: Literal["while training", "task end"] = "while training"
    memory_heads: Literal["all", "past"] = "all"

    def mistakes(self) -> list[str]:
        """Past heads alone cannot give the labels of the current task; a ring has no room for a task's share."""
        found = super().mistakes()
        if self.memory_heads == "past" and self.fill != "task end":
            found.append("memory_heads 'past' needs fill 'task end', or the memory holds samples of the current task")
        if self.fill == "task end" and self.policy == "ring":
            found.append("fill 'task end' shares the memory out itself: use policy 'reservoir' or 'balanced'")
        return found

    def terms(self, learner: Learner) -> list[Term]:
        """The masked task loss and DER++'s memory terms."""
        heads = attrgetter("past") if self.memory_heads == "past" else None
        return [
            TaskLoss(classes="current"),
            Output(MeanSquare(), FromMemory("a"), StoredLogits(), self.alpha),
            Output(LogSumExp(), FromMemory("b"), Labels(), self.beta, columns=heads),
        ]

    def remember(self, view: View, x: Tensor) -> None:
        """Offer the batch to the memory, unless that is filled when the task ends."""
        if self.fill == "while training":
            super().remember(view, x)

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Implant this task's logits into older samples, scaled below what they say of their own class."""
        kept = learner.memory
        assert kept is not None and kept.logits is not None
        learner.model.eval()
        if self.fill == "task end":
            self._refill(learner, kept)
        old = (kept.task[: len(kept)] != learner.task).nonzero()[:, 0]
        heads = learner.current if self.heads == "new" else learner.current | ~learner.seen
        for part in torch.split(old, learner.settings.eval_batch_size):
            new = learner.forward(learner.views(kept.x[part], None))
            kept.update_logits(part, self.implant(kept.logits[part], new, kept.y[part], heads))
        learner.model.train()

    def implant(self, z: Tensor, new: Tensor, y: Tensor, heads: Tensor) -> Tensor:
        """Logits z (B, C) with those of ``new`` (B, C) at ``heads``, bool (C,), scaled by their largest, a sample."""
        own, new = z.gather(1, y[:, None]), new[:, heads].to(z)
        cap, most = self.gamma * own, new.max(1, keepdim=True).values
        lower = torch.where(most * cap > 0, cap / most, 0)  # both below 0: a factor above 1 lowers them
        made = z.clone()
        made[:, heads] = new * torch.where(most > (cap if self.threshold == "gamma" else own), lower, 1)
        return made

    def _refill(self, learner: Learner, kept: Memory) -> None:
        """Each class of each earlier task keeps an equal share, its first samples; this task's get what is free."""
        assert kept.logits is not None
        classes = learner.task_columns[: learner.task + 1].sum()
        held, share, rows = len(kept), self.buffer_size // int(classes), []
        for task in range(learner.task):
            for label in learner.task_columns[task].nonzero()[:, 0]:
                mine = (kept.y[:held] == label) & (kept.task[:held] == task)
                rows.append(mine.nonzero()[:, 0][:share])
        old = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64, device=learner.device)
        x, y = learner.data[learner.task]
        order = seeds.permutation(len(y), learner.seed, "x-der", learner.task).to(x.device)
        own = learner.current.nonzero()[:, 0]
        each, more = divmod(self.buffer_size - len(old), len(own))
        lucky = seeds.permutation(len(own), learner.seed, "x-der shares", learner.task).tolist()
        chosen = torch.cat([order[y[order] == c][: each + (lucky[i] < more)] for i, c in enumerate(own)])
        parts = torch.split(chosen, learner.settings.eval_batch_size)
        z = torch.cat([learner.forward(learner.views(x[part], None)) for part in parts]).to(kept.logits)
        past = learner.past & ~learner.current
        if bool(past.any()):
            z = self.implant(z, z, y[chosen], past)
        kept.replace(
            torch.cat([kept.x[old], x[chosen]]),
            torch.cat([kept.y[old], y[chosen]]),
            task=torch.cat([kept.task[old], torch.full_like(chosen, learner.task)]),
            logits=torch.cat([kept.logits[old], z]),
        )


# The released code but for what docs/paper-settings.md lists: contrastive preparation, hinges, updates while training.
methods.preset("x-der-official", "x-der", threshold="own", heads="new and future", fill="task end", memory_heads="past")
