"""GDumb (Prabhu et al. 2020): keep a balanced memory, learn from nothing else. A control of every replay method."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Replay, methods, setting
from unteach.continual.terms import TaskLoss, Term


@methods.add("gdumb")
@dataclass(frozen=True, kw_only=True)
class GDumb(Replay):
    """No step while the stream goes by; when a task ends, a fresh network is trained on the memory alone.

    Outside the form: the objective of the stream is empty. Plug-ins have nothing to wrap.

    Args:
        fit_epochs: passes over the memory, each time.
        fit_lr: learning rate of SGD with momentum 0.9, falling to 0 along a cosine.
    """

    form: ClassVar[Form] = "outside"
    boundaries: ClassVar[bool] = True

    policy: Literal["reservoir", "balanced", "ring"] = "balanced"
    fit_epochs: int = setting(40, low=1)
    fit_lr: float = setting(0.03, above=0)

    def terms(self, learner: Learner) -> list[Term]:
        """A task loss of weight 0."""
        return [TaskLoss(weight=0)]

    def end_task(self, learner: Learner) -> None:
        """Train from scratch on the memory."""
        kept = learner.memory
        assert kept is not None
        learner.restart()
        optimizer = torch.optim.SGD(learner.params, lr=self.fit_lr, momentum=0.9)
        sizes = learner.sizes(len(kept))
        steps = self.fit_epochs * len(sizes)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        learner.model.train()
        for epoch in range(self.fit_epochs):
            generator = learner.generator("gdumb", learner.task, epoch)
            order = torch.randperm(len(kept), generator=generator).to(learner.device)
            for rows in torch.split(order, sizes):
                out = learner.forward(learner.views(kept.x[rows], generator))
                if learner.mask_training:
                    out = out.masked_fill(~learner.task_columns[kept.task[rows]], -torch.inf)
                loss = F.cross_entropy(out, kept.y[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                plan.step()
        for param in learner.params:
            param.grad = None
