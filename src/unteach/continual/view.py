"""One step of training as the terms of a method see it: the current batch, draws from memory, outputs."""

from typing import Literal

import torch
from torch import Tensor

from unteach.continual.batch import Batch
from unteach.continual.learner import Learner

Loss = Literal["host", "current", "memory"]
"""Which part of the objective: all of it, the task loss of the current batch, what memory's samples contribute."""


class View:
    """One step as terms see it; made by the engine, forgotten after the step.

    Attributes:
        learner: the run.
        batch: the current batch.
        index: the step, from 0.
        data_weight: factor on the current batch's task loss (re-weighting control).
        which: the part of the objective that is asked for now.
        passes: forward passes with a gradient so far.
        last: logits (B, C) of the current batch from the latest pass, detached; what memory stores.
    """

    def __init__(self, learner: Learner, batch: Batch, index: int, data_weight: float = 1.0) -> None:
        self.learner, self.batch, self.index, self.data_weight = learner, batch, index, data_weight
        self.which: Loss = "host"
        self.passes = 0
        self.last: Tensor | None = None
        self._draws: dict[str, Batch | None] = {}
        self._outputs: dict[Batch, Tensor] = {}
        self._old: dict[Batch, Tensor] = {}

    @property
    def params(self) -> list[Tensor]:
        """The tensors that move, as they are now."""
        return list(self.learner.params)

    def draw(self, key: str = "a") -> Batch | None:
        """A batch from memory, one a key and step, augmented anew; None while the memory is empty."""
        if key not in self._draws:
            self._draws[key] = self.learner.draw(key, self.index)
        return self._draws[key]

    def joined(self, key: str = "a") -> Batch:
        """The current batch and a draw from memory behind each other; without memory, the current batch."""
        name = f"joined {key}"
        if name not in self._draws:
            memory, now = self.draw(key), self.batch
            whole = now
            if memory is not None:
                task = None if now.task is None or memory.task is None else torch.cat([now.task, memory.task])
                whole = Batch(torch.cat([now.x, memory.x]), torch.cat([now.y, memory.y]), task=task, current=len(now.y))
            self._draws[name] = whole
        joined = self._draws[name]
        assert joined is not None
        return joined

    def factors(self, batch: Batch, current: float = 1.0) -> Tensor | None:
        """What each sample's loss counts in the part asked for, (B,); None where all count 1.

        Args:
            batch: the samples; the first ``batch.current`` are of the current batch, the others of memory.
            current: weight of samples of the current batch, where they count at all.
        """
        now = 0.0 if self.which == "memory" else current
        kept = 0.0 if self.which == "current" else 1.0
        if all(f == 1 for f, n in ((now, batch.current), (kept, len(batch) - batch.current)) if n):
            return None
        factors = torch.full((len(batch),), kept, device=batch.y.device)
        factors[: batch.current] = now
        return factors

    def output(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32, with a graph; one pass a batch and position of the weights."""
        known = self._outputs.get(batch)
        if known is None:
            known = self._outputs[batch] = self.learner.forward(batch.x)
            self.passes += 1
            if batch is self.batch:
                self.last = known.detach()
            elif batch.current and batch.current == len(self.batch):
                self.last = known.detach()[: batch.current]
        return known

    def previous(self, batch: Batch) -> Tensor | None:
        """Logits (B, C) of the network as it was when the last task ended; None in the first task."""
        if self.learner.old is None:
            return None
        if batch not in self._old:
            self._old[batch] = self.learner.forward_old(batch.x)
        return self._old[batch]

    def moved(self) -> None:
        """The weights have moved: outputs are worked out anew."""
        self._outputs.clear()

    def columns(self, batch: Batch) -> Tensor | None:
        """Columns of the head that a sample may use, bool (B, C); None for all. Only a task-incremental stream
        masks: each sample sees the classes of its own task."""
        if not self.learner.mask_training or batch.task is None:
            return None
        return self.learner.task_columns[batch.task]
