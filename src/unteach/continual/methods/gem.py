"""A-GEM and GEM: no step against the gradient of the memory.

A-GEM's step is ER's with a weight that depends on the state, α_t = max(0, -<g, g_M>)/‖g_M‖² (refresh.md §1.3).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from unteach.continual.batch import Batch
from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Replay, methods, setting
from unteach.continual.terms import Rule
from unteach.continual.view import View
from unteach.core import seeds
from unteach.core.surgery import agem
from unteach.core.vectors import flat, shaped


@dataclass(frozen=True, kw_only=True)
class _Episodic(Replay):
    """A memory of equally many samples of every task that has ended."""

    form: ClassVar[Form] = "exact"
    boundaries: ClassVar[bool] = True

    def remember(self, view: View, x: Tensor) -> None:
        """Nothing is kept before the task ends."""

    def end_task(self, learner: Learner) -> None:
        """Keep a random share of the task's samples."""
        assert learner.memory is not None
        x, y = learner.data[learner.task]
        share = max(1, self.buffer_size // len(learner.data))
        rows = seeds.permutation(len(y), learner.seed, "episodic", learner.task)[:share].to(x.device)
        learner.memory.insert(x[rows], y[rows], task=learner.task, step=learner.task)


def _memory_gradient(view: View, batch: Batch) -> list[Tensor | None]:
    out, allowed = view.output(batch), view.columns(batch)
    loss = F.cross_entropy(out if allowed is None else out.masked_fill(~allowed, -torch.inf), batch.y)
    return list(torch.autograd.grad(loss, view.learner.params, allow_unused=True))


class _AGEM(Rule):
    def apply(self, view: View, gradients: list[Tensor | None]) -> list[Tensor | None]:
        batch = view.draw("reference")
        return gradients if batch is None else agem(gradients, _memory_gradient(view, batch))


@methods.add("a-gem")
@dataclass(frozen=True, kw_only=True)
class AGEM(_Episodic):
    """Averaged gradient episodic memory (Chaudhry et al. 2019): no step against the memory's gradient."""

    def rule(self, learner: Learner) -> Rule:
        """Project where the two fight."""
        return _AGEM()


class _GEM(Rule):
    def __init__(self, margin: float, size: int) -> None:
        self.margin, self.size = margin, size

    def apply(self, view: View, gradients: list[Tensor | None]) -> list[Tensor | None]:
        learner = view.learner
        rows = []
        for task in range(learner.task):
            batch = learner.draw(f"gem {task}", view.index, self.size, task)
            if batch is not None:
                rows.append(flat(_memory_gradient(view, batch), learner.params))
        if not rows:
            return gradients
        g, memories = flat(gradients, learner.params), torch.stack(rows)
        if bool((memories @ g >= 0).all()):
            return gradients
        return shaped(g + gem_multipliers(memories, g, self.margin) @ memories, gradients, learner.params)


def gem_multipliers(memories: Tensor, g: Tensor, margin: float = 0.0) -> Tensor:
    """The multipliers v (k,) of GEM's quadratic programme: min ½‖g + vᵀG‖² with v ≥ margin (Lopez-Paz 2017, eq. 12).

    Args:
        memories: G, (k, P), one gradient a task.
        g: (P,).
        margin: least multiplier.
    """
    gram = (memories @ memories.T).double().cpu()
    gram += torch.eye(len(gram), dtype=gram.dtype) * (1e-9 * gram.diagonal().mean() + 1e-30)
    root = torch.linalg.cholesky(gram)
    linear = (memories @ g).double().cpu() + gram @ torch.full((len(gram),), margin, dtype=gram.dtype)
    target = -torch.linalg.solve_triangular(root, linear[:, None], upper=False)[:, 0]
    found, _ = nnls(root.T.numpy(), np.asarray(target))
    return (torch.from_numpy(found) + margin).to(g)


@methods.add("gem")
@dataclass(frozen=True, kw_only=True)
class GEM(_Episodic):
    """Gradient episodic memory (Lopez-Paz and Ranzato 2017): no step against any old task's gradient.

    Args:
        margin: least multiplier; above 0 it favours old tasks.
        samples: samples of each old task's memory a step.
    """

    margin: float = setting(0.0, low=0)
    samples: int = setting(64, low=1)

    def rule(self, learner: Learner) -> Rule:
        """Solve the quadratic programme where a constraint is broken."""
        return _GEM(self.margin, self.samples)
