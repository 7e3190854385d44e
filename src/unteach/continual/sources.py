"""What a term of the objective is evaluated on: sources of samples, targets of their outputs, and spaces for both."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unteach.continual.batch import Batch
from unteach.continual.view import View

Space = Callable[[Tensor], Tensor]


class Source(ABC):
    """Where a term's samples come from; sources of equal settings give one step's terms one batch."""

    of_memory: ClassVar[bool] = False
    """Samples of memory are among them."""

    @abstractmethod
    def batch(self, view: View) -> Batch | None:
        """The samples of this step; None where there are none."""


@dataclass(frozen=True)
class CurrentBatch(Source):
    """The current batch."""

    def batch(self, view: View) -> Batch:
        """It."""
        return view.batch


@dataclass(frozen=True)
class FromMemory(Source):
    """A draw from memory.

    Args:
        key: names the draw; terms with another key get an independent one.
    """

    of_memory: ClassVar[bool] = True

    key: str = "a"

    def batch(self, view: View) -> Batch | None:
        """The draw, or None while the memory is empty."""
        return view.draw(self.key)


@dataclass(frozen=True)
class BothBatches(Source):
    """The current batch and a draw from memory in one pass.

    Args:
        key: names the draw.
    """

    of_memory: ClassVar[bool] = True

    key: str = "a"

    def batch(self, view: View) -> Batch | None:
        """Both, or the current batch alone while the memory is empty; None where only an empty memory is asked."""
        return None if view.which == "memory" and view.draw(self.key) is None else view.joined(self.key)


class Target(ABC):
    """What a term compares the network's outputs with."""

    uses_old: ClassVar[bool] = False
    """It needs the network as it was when the last task ended."""

    @abstractmethod
    def of(self, view: View, batch: Batch) -> Tensor | None:
        """(B, C) logits, or (B,) labels, of these samples; None while there is nothing to compare with."""


@dataclass(frozen=True)
class Labels(Target):
    """The labels; with Φ = log-sum-exp the exact limit s → ∞ of z = s·e_y, which is cross-entropy."""

    def of(self, view: View, batch: Batch) -> Tensor:
        """(B,), int64."""
        return batch.y


@dataclass(frozen=True)
class StoredLogits(Target):
    """The logits stored when the sample entered the memory."""

    def of(self, view: View, batch: Batch) -> Tensor | None:
        """(B, C); None of samples stored without."""
        return batch.logits


@dataclass(frozen=True)
class OldOutputs(Target):
    """The outputs of the network as it was when the last task ended."""

    uses_old: ClassVar[bool] = True

    def of(self, view: View, batch: Batch) -> Tensor | None:
        """(B, C); None in the first task."""
        return view.previous(batch)


@dataclass(frozen=True)
class Uniform(Target):
    """No preference: zeros as logits."""

    def of(self, view: View, batch: Batch) -> Tensor:
        """(B, C)."""
        return torch.zeros(len(batch), view.learner.classes, device=batch.y.device)


def logits(u: Tensor) -> Tensor:
    """Space: the outputs themselves."""
    return u


def probabilities(u: Tensor) -> Tensor:
    """Space: softmax of the outputs."""
    return u.softmax(-1)
