"""Plug-ins wrap one training step of any host method: what they are, and their state in one run.

A plug-in may look at gradients elsewhere, change them, or move the weights before it lets the host's optimizer step
(:class:`~unteach.continual.step.StepContext`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.step import StepContext
from unteach.core.registry import Methods
from unteach.core.settings import Settings, setting
from unteach.errors import CheckpointError

__all__ = ["GradientPlugin", "Gradients", "Plugin", "PluginState", "plugins", "setting"]

plugins: Methods["Plugin"] = Methods("plug-in")
"""Every plug-in and its presets, by name."""

Gradients = list[Tensor | None]
"""One entry a parameter; None where the loss does not reach it."""


@dataclass(frozen=True, kw_only=True)
class Plugin(Settings, ABC):
    """A plug-in and its settings; immutable, so that :meth:`start` gives each run a state of its own.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    kind: ClassVar[str] = "plug-in"

    @abstractmethod
    def start(self, learner: Learner) -> "PluginState":
        """The state of one run."""

    def data_weight(self, lr: float) -> float:
        """Factor on the current batch's task loss (not on the memory terms) at learning rate ``lr``."""
        return 1.0

    def lr_factor(self) -> float:
        """Factor on the host's learning rate, for the whole run."""
        return 1.0


class PluginState(ABC):
    """A plug-in at work in one run."""

    @abstractmethod
    def step(self, context: StepContext) -> Mapping[str, Tensor]:
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


class _Stateless(PluginState):
    """A step that is a function of the context alone."""

    def __init__(self, function: Callable[[StepContext], Gradients]) -> None:
        self._function = function

    def step(self, context: StepContext) -> Mapping[str, Tensor]:
        """The host's update with the gradient that the function gives."""
        context.update(self._function(context))
        return {}


@dataclass(frozen=True, kw_only=True)
class GradientPlugin(Plugin):
    """A plug-in that only changes which gradient the host descends."""

    def start(self, learner: Learner) -> PluginState:
        """There is no state."""
        return _Stateless(self.gradient)

    @abstractmethod
    def gradient(self, context: StepContext) -> Gradients:
        """The gradient to descend; the parameters are as they were when this returns."""
