"""Streams of tasks: what is learned, in which order, and on what it is tested.

Labels are global: a class has one label in the whole stream, in every scenario. The scenario says what is
told while training and at the test (van de Ven, Tuytelaars & Tolias 2022): *class*, the classes come task by
task; *task*, the same, and the task is told at the test; *domain*, the same labels in every task; *online*,
every sample is seen once; *general*, once and with no boundary between tasks (Buzzega et al. 2020).
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unteach.core import state
from unteach.core.registry import near
from unteach.errors import ConfigError, DataError

Scenario = Literal["class", "task", "domain", "online", "general"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)
AUGMENTS = ("none", "shift", "crop", "crop-flip")
"""Kinds of views that a stream may ask for while training."""


@dataclass(frozen=True, eq=False)
class Task:
    """One task: samples to learn from and samples to be tested on.

    Args:
        name: what the task is called in tables.
        x: uint8 (N, C, H, W) in 0..255, or float32 (N, ...), taken as it is.
        y: int64 (N,), labels of the whole stream.
        test_x: like ``x``, (M, ...).
        test_y: like ``y``, (M,).
        order: the task's classes in the order in which they were written down, which says their places in scenario
            "domain"; (): as they are numbered.

    Raises:
        DataError: no samples, another shape or type, labels below 0, a float that is not finite, pictures with their
            channels last, an order of other classes.
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.x, self.y), ("test", self.test_x, self.test_y)):
            check_samples(f"the {part} data of the task '{self.name}'", x, y)
        if self.x.dtype != self.test_x.dtype or self.x.shape[1:] != self.test_x.shape[1:]:
            raise DataError(
                f"training and test data of the task '{self.name}' are of different kinds",
                found=f"{_kind(self.x)} and {_kind(self.test_x)}",
                fix="give both the same type and the same shape of a sample",
            )
        if self.order and tuple(sorted(self.order)) != self.classes:
            raise DataError(
                f"the order of classes of the task '{self.name}' does not hold each of its classes once",
                found=f"{self.order}, classes {self.classes}",
                fix="leave it out, or write every class of the task once",
            )

    @functools.cached_property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur, in training or in the test, sorted."""
        return tuple(sorted({*self.y.tolist(), *self.test_y.tolist()}))


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in the order in which they are learned.

    Args:
        name: what the stream is called.
        scenario: what is told; see this module's first lines.
        tasks: the tasks; all samples are of one shape and type.
        classes: number of labels; every label is in [0, classes).
        class_names: one name a label.
        mean: per channel, of x / 255; () for float data.
        std: standard deviation, as ``mean``.
        augment: views while training: "none", "shift", "crop" or "crop-flip"; "none" for float data.

    Raises:
        ConfigError: an unknown scenario or kind of views, or settings that do not fit each other.
        DataError: tasks that do not fit each other or the number of classes.
    """

    name: str
    scenario: Scenario
    tasks: tuple[Task, ...]
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise ConfigError(f"no scenario is called {self.scenario!r}", fix=near(str(self.scenario), SCENARIOS))
        if self.augment not in AUGMENTS:
            raise ConfigError(f"no views are called {self.augment!r}", fix=near(str(self.augment), AUGMENTS))
        if not self.tasks:
            raise DataError(f"the stream '{self.name}' has no tasks", fix="give it at least one")
        first = self.tasks[0]
        for task in self.tasks:
            if task.x.dtype != first.x.dtype or task.x.shape[1:] != first.x.shape[1:]:
                raise DataError(
                    f"the tasks '{first.name}' and '{task.name}' are of different kinds",
                    found=f"{_kind(first.x)} and {_kind(task.x)}",
                    fix="give all tasks the same type and the same shape of a sample",
                )
            if task.classes[-1] >= self.classes:
                raise DataError(
                    f"the task '{task.name}' has a label outside [0, {self.classes})",
                    found=task.classes[-1],
                    fix="number the classes from 0, or raise `classes`",
                )
        if len(self.class_names) != self.classes:
            raise DataError(
                f"the stream '{self.name}' has {self.classes} classes",
                found=f"{len(self.class_names)} names",
                fix="give one name a class",
            )
        self._check_scale()

    def _check_scale(self) -> None:
        pictures = self.tasks[0].x.dtype == torch.uint8
        channels = self.shape[0] if pictures else 0
        if len(self.mean) != channels or len(self.std) != channels or not all(s > 0 for s in self.std):
            raise ConfigError(
                f"the stream '{self.name}' needs a mean and a std above 0 for each of {channels} channels",
                found=f"mean {self.mean}, std {self.std}",
                fix="give one number a channel (of x / 255); () for float data",
            )
        if not pictures and self.augment != "none":
            raise ConfigError(
                f"float data has no views, and the stream '{self.name}' asks for '{self.augment}'",
                fix="set augment to 'none', or give uint8 pictures",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample: (C, H, W) for pictures."""
        return tuple(self.tasks[0].x.shape[1:])

    @property
    def boundaries(self) -> bool:
        """Whether the learner is told where tasks begin and end; only "general" does not tell."""
        return self.scenario != "general"

    def digest(self) -> str:
        """SHA-256 (hex) over every setting, name, sample and label."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tasks"}
        parts = ("x", "y", "test_x", "test_y")
        data = [[task.name, state.digest({part: getattr(task, part) for part in parts})] for task in self.tasks]
        return state.fingerprint([settings, data])


def channel_scale(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of x / 255, x uint8 (N, C, H, W); a constant channel gets std 1."""
    counts = [torch.bincount(x[:, c].flatten(), minlength=256).double() for c in range(x.shape[1])]
    value = torch.arange(256, dtype=torch.float64) / 255
    means = [float((n * value).sum() / n.sum()) for n in counts]
    stds = [float((n * (value - m) ** 2).sum() / n.sum()) ** 0.5 for n, m in zip(counts, means, strict=True)]
    return tuple(round(m, 4) for m in means), tuple(round(s, 4) or 1.0 for s in stds)


def check_samples(what: str, x: Tensor, y: Tensor) -> None:
    """Refuse samples and labels that cannot be a task's: shapes, types, labels below 0, numbers that are not finite."""
    problem: str | None = None
    found: Any = None
    fix = "correct the data before it becomes a task"
    if x.dtype == torch.uint8 and x.ndim != 4:
        problem, found = "pictures must be uint8 (N, C, H, W)", _kind(x)
    elif x.dtype not in (torch.uint8, torch.float32) or x.ndim < 2:
        problem, found = "samples must be uint8 (N, C, H, W) or float32 (N, ...)", _kind(x)
    elif _channels_last(x):
        problem, found = "pictures must have their channels first, (N, C, H, W)", _kind(x)
        fix = f"give x.permute(0, 3, 1, 2).contiguous(): {x.shape[3]} channels of {x.shape[1]} x {x.shape[2]}"
    elif y.dtype != torch.int64 or y.ndim != 1:
        problem, found = "labels must be int64 (N,)", f"{y.dtype} {tuple(y.shape)}"
    elif len(x) != len(y):
        problem, found = "there must be one label a sample", f"{len(x)} samples, {len(y)} labels"
    elif x.numel() == 0:
        problem, found = "there are no samples", tuple(x.shape)
    elif int(y.min()) < 0:
        problem, found = "labels must be 0 or more", int(y.min())
    elif x.dtype == torch.float32 and not bool(torch.isfinite(x).all()):
        problem, found = "not every number is finite", f"{int((~torch.isfinite(x)).sum())} that are not"
    if problem is not None:
        raise DataError(f"{what}: {problem}", found=found, fix=fix)


def _channels_last(x: Tensor) -> bool:
    """Whether 4-dimensional samples look like (N, H, W, C): 1, 3 or 4 numbers last, and more than that elsewhere."""
    return x.ndim == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} (N, {', '.join(map(str, x.shape[1:]))})"
