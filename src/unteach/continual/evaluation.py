"""One pass over the test sets gives everything: Class-IL, Task-IL and calibration come from the same logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.metrics import calibration_error

Scores = Callable[[Learner, Tensor], Tensor | None]
"""Scores (B, C) to judge by in place of the logits, or None for the logits."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Shares in [0, 1], one entry a task.

    Attributes:
        class_il: answers among the classes of the run's head (``seen`` or ``all``).
        class_il_all_heads: answers among all classes, unseen ones included.
        task_il: the same logits, classes outside the sample's task masked.
        ece: expected calibration error over all test samples of seen tasks, 15 bins, of the run's head.
        nll: mean negative log-likelihood of the same, nats.
    """

    class_il: list[float]
    class_il_all_heads: list[float]
    task_il: list[float]
    ece: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class TaskRow(Evaluation):
    """What was measured after a task.

    Attributes:
        task: the task, from 0.
        seconds: wall time of its training ("train") and of the evaluation ("evaluate").
        diagnostics: the plug-in's.
        warnings: the plug-in's, in words.
    """

    task: int
    seconds: dict[str, float]
    diagnostics: dict[str, float]
    warnings: list[str]


@torch.no_grad()
def evaluate(learner: Learner, scores: Scores) -> Evaluation:
    """Measure the network on every task's test set, in one pass; the model is left in evaluation mode."""
    learner.model.eval()
    columns, seen = learner.task_columns, learner.seen
    allowed = torch.ones_like(seen) if learner.settings.head == "all" or not bool(seen.any()) else seen
    class_il: list[Tensor] = []
    all_heads: list[Tensor] = []
    task_il: list[Tensor] = []
    confidence: list[Tensor] = []
    correct: list[Tensor] = []
    surprise: list[Tensor] = []
    for task, own in zip(learner.stream.tasks, columns, strict=True):
        found, y = _scored(learner, scores, task.test_x), task.test_y.to(learner.device)
        masked = found.masked_fill(~allowed, -torch.inf)
        hits = masked.argmax(-1) == y
        class_il.append(hits.float().mean())
        all_heads.append((found.argmax(-1) == y).float().mean())
        task_il.append((found.masked_fill(~own, -torch.inf).argmax(-1) == y).float().mean())
        known = allowed[y]
        logp = F.log_softmax(masked.double(), -1)
        confidence.append(logp.max(-1).values.exp()[known])
        correct.append(hits[known])
        surprise.append(-logp.gather(1, y[:, None])[:, 0][known])
    conf, hit, nats = torch.cat(confidence), torch.cat(correct), torch.cat(surprise)
    return Evaluation(
        class_il=torch.stack(class_il).tolist(),
        class_il_all_heads=torch.stack(all_heads).tolist(),
        task_il=torch.stack(task_il).tolist(),
        ece=float(calibration_error(conf, hit)),
        nll=float(nats.mean()),
    )


def _scored(learner: Learner, scores: Scores, x: Tensor) -> Tensor:
    parts = []
    for rows in torch.split(x, learner.settings.eval_batch_size):
        batch = learner.views(rows.to(learner.device), None)
        own = scores(learner, batch)
        parts.append(learner.forward(batch) if own is None else own)
    return torch.cat(parts)
