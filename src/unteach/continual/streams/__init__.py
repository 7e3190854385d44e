"""Streams of tasks: what they are, how data is cut into them, and the named ones."""

from unteach.continual.streams.base import SCENARIOS, Scenario, Stream, Task, channel_scale
from unteach.continual.streams.builtin import load, misfits, streams
from unteach.continual.streams.scenarios import blurred, split_classes, with_scenario

__all__ = [
    "SCENARIOS",
    "Scenario",
    "Stream",
    "Task",
    "blurred",
    "channel_scale",
    "load",
    "misfits",
    "split_classes",
    "streams",
    "with_scenario",
]
