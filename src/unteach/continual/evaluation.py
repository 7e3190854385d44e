"""One pass over the test sets gives everything: Class-IL, Task-IL and calibration come from the same logits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from unteach.continual.learner import Learner


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


@torch.no_grad()
def evaluate(learner: "Learner") -> Evaluation:
    """Measure the network on every task's test set, in one pass; the model is left in evaluation mode."""
    from unteach.continual.metrics import calibration_error

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
        scores, y = _scores(learner, task.test_x), task.test_y.to(learner.device)
        masked = scores.masked_fill(~allowed, -torch.inf)
        hits = masked.argmax(-1) == y
        class_il.append(hits.float().mean())
        all_heads.append((scores.argmax(-1) == y).float().mean())
        task_il.append((scores.masked_fill(~own, -torch.inf).argmax(-1) == y).float().mean())
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


def _scores(learner: "Learner", x: Tensor) -> Tensor:
    size, found = learner.settings.eval_batch, []
    for start in range(0, len(x), size):
        batch = learner.views(x[start : start + size].to(learner.device), None)
        own = learner.method.scores(learner, batch)
        found.append(learner.forward(batch) if own is None else own)
    return torch.cat(found)
