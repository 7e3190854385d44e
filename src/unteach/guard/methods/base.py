"""What every guard is: a frozen, checked configuration with a name, and ``run``: from a model and data to a mask.

A guard is one file of this folder: its settings next to what it does, and one line that registers it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from unteach.core.events import SILENT, Events
from unteach.core.registry import Methods
from unteach.core.settings import Settings, setting
from unteach.core.text import duration
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.guard.budget import highest
from unteach.guard.data import GuardData
from unteach.records.mask import Granularity, Measure

__all__ = ["Cost", "Guard", "Guarded", "Job", "Scored", "Selection", "guards"]

guards: Methods["Guard"] = Methods("guard")
"""Every guard by name, and their presets."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What a guard freezes of a denoiser, and how it came to that.

    Attributes:
        frozen: names of the tensors.
        scores: soft mask of every tensor in [0, 1], higher is frozen first; empty where nothing was learned.
        measure: share of what was asked for.
        rho: the share that was asked for; None when the number of tensors was.
        granularity: what was frozen as one.
        steps: learning steps that were done.
        log: one record a publisher step: mean mask, largest |g|, Jaccard with the hard mask a step before.
    """

    frozen: Collection[str]
    scores: Mapping[str, float] = field(default_factory=dict)
    measure: Measure = "tensors"
    rho: float | None = None
    granularity: Granularity = "tensor"
    steps: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Guarded:
    """What a guard gives.

    Attributes:
        mask: what those who fine-tune may not train.
        delta: a change of the weights that are published.
    """

    mask: Selection | None = None
    delta: WeightDelta | None = None


@dataclass(frozen=True)
class Job:
    """How a guard is to be made.

    Attributes:
        seed: root of all draws.
        out: folder of checkpoints, so that the same job goes on; a temporary one when None.
        events: told what is done.
    """

    seed: int = 0
    out: Path | None = None
    events: Events = SILENT


@dataclass(frozen=True)
class Cost:
    """What a guard will cost at most: training steps, and seconds on this machine."""

    steps: int = 0
    seconds: float = 0.0

    def text(self) -> str:
        """In words."""
        if not self.steps:
            return "no training is needed"
        return f"at most {self.steps} training steps: about {duration(self.seconds)}"


@dataclass(frozen=True, kw_only=True)
class Guard(Settings, ABC):
    """A guard and its settings; immutable, checked as a whole when it is made.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    kind: ClassVar[str] = "guard"
    trains: ClassVar[bool] = False
    """Whether it fine-tunes the model on the data, which few pictures do not suffice for."""

    @abstractmethod
    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Guard ``model.denoiser``, which is bit for bit as before on return.

        Args:
            model: what will be published.
            data: what must not be learned and what must, on the two levels.
            job: seed, folder and events.
        """

    def cost(self, model: Model, data: GuardData) -> Cost:
        """What :meth:`run` costs; nothing where no training is needed."""
        return Cost()


@dataclass(frozen=True, kw_only=True)
class Scored(Guard, ABC):
    """Freezes what scores highest, tensor by tensor within an exact budget.

    Args:
        rho: share to freeze.
        budget: share of what: tensors, parameters, or FLOPs of weight gradients.
    """

    rho: float = setting(0.3, low=0, high=1)
    budget: Measure = "tensors"

    @abstractmethod
    def scores(self, model: Model, data: GuardData, job: Job) -> dict[str, float]:
        """Score of every tensor of the denoiser; arguments as in :meth:`run`."""

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Freeze the highest scores."""
        chosen = highest(model, self.scores(model, data, job), self.rho, self.budget)
        return Guarded(Selection(chosen, measure=self.budget, rho=self.rho))
