"""Plug-ins wrap one training step of any host method: what they see of the step, and what they are.

The plain step is ``host.update(host.gradient())``. A plug-in may look at gradients elsewhere, change them, or
move the weights before it lets the host's optimiser step.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from unteach.core.registry import Registry
from unteach.core.settings import Settings, make, setting
from unteach.errors import CheckpointError

__all__ = [
    "Example",
    "Host",
    "Learner",
    "Loss",
    "Plugin",
    "Running",
    "make_plugin",
    "plugin_presets",
    "plugins",
    "setting",
]

Loss = Literal["host", "current", "memory"]
"""Which loss: the host's whole objective, the current batch's task loss alone, the memory terms alone."""


class Host(Protocol):
    """One training step of the host method, as a plug-in sees it."""

    @property
    def params(self) -> Sequence[nn.Parameter]:
        """The parameters that move, in the model's order."""

    @property
    def names(self) -> Sequence[str]:
        """Their names."""

    @property
    def lr(self) -> float:
        """The optimiser's learning rate in this step, η."""

    @property
    def index(self) -> int:
        """The step, counted over the whole run from 0."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def task(self) -> int:
        """The task, from 0."""

    @property
    def has_memory(self) -> bool:
        """Whether a memory term is active in this step."""

    def gradient(self, loss: Loss = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        """The gradient at the parameters as they are now, in tensors that the caller may keep or change.

        All calls in one step see the same batch and the same draws from the memory. With ``frozen_stats`` the
        running statistics of batch norm are left alone.
        """

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """The host optimiser's step (with its clipping) at the parameters as they are now."""

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on (seed, purpose, step) alone."""


class Example(Protocol):
    """What a plug-in reads of a batch."""

    @property
    def x(self) -> Tensor:
        """Normalised inputs, (B, ...)."""

    @property
    def y(self) -> Tensor:
        """Labels, int64 (B,)."""


class Learner(Protocol):
    """What a plug-in reads of the run, when it starts and at the end of a task."""

    @property
    def model(self) -> nn.Module:
        """The network that is being trained."""

    @property
    def params(self) -> Sequence[nn.Parameter]:
        """The parameters that move, in the model's order."""

    @property
    def names(self) -> Sequence[str]:
        """Their names."""

    @property
    def lr(self) -> float:
        """The optimiser's learning rate as it is now, η."""

    @property
    def task(self) -> int:
        """The task, from 0."""

    def batches(self, purpose: str, *, augment: bool = False, limit: int | None = None) -> Iterator[Example]:
        """The current task's training data in a fixed order, at most ``limit`` samples."""

    def generator(self, purpose: str, *index: int) -> torch.Generator:
        """A CPU generator that depends on (seed, purpose, index) alone."""


@dataclass(frozen=True, kw_only=True)
class Plugin(Settings, ABC):
    """A plug-in and its settings; immutable, so that :meth:`start` gives each run a state of its own.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    kind: ClassVar[str] = "plug-in"

    @abstractmethod
    def start(self, learner: Learner) -> "Running":
        """The state of one run."""

    def data_weight(self, lr: float) -> float:
        """Factor on the current batch's task loss (not on the memory terms) at learning rate ``lr``."""
        return 1.0

    def lr_factor(self) -> float:
        """Factor on the host's learning rate, for the whole run."""
        return 1.0


class Running(ABC):
    """A plug-in at work in one run."""

    @abstractmethod
    def step(self, host: Host) -> Mapping[str, Tensor]:
        """Do the whole training step, the host's update included.

        Returns:
            Diagnostics, shape () each, on the parameters' device; empty where the step was the host's own.
        """

    def end_task(self, learner: Learner) -> None:  # noqa: B027 (most plug-ins have nothing to do)
        """Called when a task's training has ended, with the task's data still at hand; may wait for the device."""

    def summary(self) -> dict[str, float]:
        """The diagnostics of the task that has ended, or so far of a stream that has no ends of tasks."""
        return {}

    def warnings(self) -> list[str]:
        """What the user should know, in whole sentences; to be read after the start and after :meth:`end_task`."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What an unbroken run would know at this step and a resumed one does not."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            CheckpointError: the state is of another plug-in or of other settings.
        """
        if state:
            raise CheckpointError(
                "the checkpoint holds the state of another plug-in",
                found=", ".join(sorted(state)[:5]),
                fix="resume with the settings that the run was started with",
            )


plugins: Registry[type[Plugin]] = Registry("plug-in")
"""Every plug-in, by name."""

plugin_presets: Registry[tuple[str, Mapping[str, Any]]] = Registry("plug-in preset")
"""Named settings: preset name to (plug-in name, the settings that differ from its defaults)."""


def make_plugin(name: object, /, **settings: Any) -> Plugin:
    """The plug-in or preset of this name, with ``settings`` laid over its own.

    Raises:
        ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
    """
    return make("plug-in", plugins, plugin_presets, name, settings)
