"""Samples in use: what is trained on in one step, drawn from a memory, or measured."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples; two batches are equal only if they are one object.

    Attributes:
        x: (B, ...), as the network sees them (float, augmented, normalised), or as a memory stores them.
        y: (B,), int64, labels in the whole head.
        logits: (B, C), the network's outputs when each sample was stored; None where nothing was stored.
        task: (B,), int64, the task each sample came with.
        slots: (B,), int64, rows of the memory (see :meth:`~unteach.continual.memory.buffer.Memory.update_logits`);
            None for the current batch.
        index: (B,), int64, position of each sample in its stream, -1 where none was given; None for the current batch.
        current: how many of the first samples are of the current batch.
    """

    x: Tensor
    y: Tensor
    logits: Tensor | None = None
    task: Tensor | None = None
    slots: Tensor | None = None
    index: Tensor | None = None
    current: int = 0

    def __len__(self) -> int:
        return len(self.y)
