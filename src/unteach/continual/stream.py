"""Streams of tasks: what is learned, in which order, and on what it is tested.

Labels are global: a class has one label in the whole stream, in every scenario. The scenario says what is
told while training and at the test (van de Ven, Tuytelaars & Tolias 2022): *class*, the classes come task by
task; *task*, the same, and the task is told at the test; *domain*, the same labels in every task; *online*,
every sample is seen once; *general*, once and with no boundary between tasks (Buzzega et al. 2020).
"""

import dataclasses
import functools
import itertools
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unteach.core import seeds, state
from unteach.core.registry import near
from unteach.errors import ConfigError, DataError

Scenario = Literal["class", "task", "domain", "online", "general"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)
AUGMENTS = ("none", "shift", "crop", "crop-flip")
"""Kinds of views that a stream may ask for while training."""
MOST_SHOWN = 20
"""Classes that a message lists, at most."""


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
            _check_samples(f"the {part} data of the task '{self.name}'", x, y)
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
        std: as ``mean``.
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


def split_classes(
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    tasks: int | Sequence[Sequence[int | str]],
    *,
    order_seed: int | None = None,
    class_names: Sequence[str] = (),
) -> tuple[Task, ...]:
    """Cut labelled data into tasks of whole classes (class-incremental).

    Args:
        x: (N, ...), with labels ``y`` (N,) that count from 0.
        y: int64 labels.
        test_x: (M, ...), with labels ``test_y`` (M,).
        test_y: int64 labels.
        tasks: a number of tasks, into which the classes go in equal shares; or the classes of each task, by label or
            by name, in the order of their places (see :func:`with_scenario`).
        order_seed: shuffles the order of the classes first; None: as they are numbered, or as they are grouped.
        class_names: for the tasks' names, and to name classes in ``tasks``.

    Raises:
        ConfigError: the classes cannot be shared out equally, or the groups do not hold every class once.
        DataError: see :class:`Task`; among them a class without training or test data, and labels with gaps.
    """
    for part, samples, labels in (("training data", x, y), ("test data", test_x, test_y)):
        _check_samples(f"the {part}", samples, labels)
    count = max([int(y.max()), int(test_y.max()), len(class_names) - 1]) + 1
    for part, labels in (("training", y), ("test", test_y)):
        _check_classes(part, torch.unique(labels).tolist(), count, class_names)
    groups = _groups(tasks, count, order_seed, class_names)
    out = []
    for i, group in enumerate(groups, 1):
        rows, test_rows = (torch.isin(labels, torch.tensor(group)) for labels in (y, test_y))
        name = ", ".join(class_names[label] for label in group) if class_names and len(group) <= 4 else f"task {i}"
        out.append(Task(name, x[rows], y[rows], test_x[test_rows], test_y[test_rows], tuple(group)))
    return tuple(out)


def with_scenario(stream: Stream, scenario: Scenario) -> Stream:
    """The same data under another scenario.

    From *class*, *task* and *online* to each other nothing but the word changes. To *domain*, a label becomes its
    place among the classes of its task, in their order there: first of the group, first place. To *general*, the
    tasks run into each other (:func:`blurred` with its defaults).

    Raises:
        ConfigError: an unknown scenario, or one that the stream cannot be brought to.
    """
    if scenario == stream.scenario:
        return stream
    if scenario == "general":
        return blurred(stream)
    shared = _shares_labels(stream)
    if stream.scenario == "general" or (shared and scenario in ("class", "task")):
        why = "its tasks run into each other" if stream.scenario == "general" else "its tasks share their labels"
        raise ConfigError(
            f"the stream '{stream.name}' cannot be made one of scenario '{scenario}': {why}",
            fix="begin with a stream of scenario 'class'",
        )
    if scenario == "domain" and not shared:
        return _as_domains(stream)
    return dataclasses.replace(stream, scenario=scenario)


def blurred(stream: Stream, seed: int = 0, width: float = 0.25) -> Stream:
    """The stream without boundaries: its samples in an order in which one task fades into the next.

    Sample i of task t (counted from 0) stands at t + u + ``width`` · n, u uniform in [0, 1), n standard normal;
    samples are seen in the order of these places. They are cut into as many equal segments as there were
    tasks, each with the test data of the task in its place, so accuracy is reported as before.

    Args:
        stream: of any scenario.
        seed: of u and n.
        width: of the fading, in tasks; 0: one task after another, shuffled within itself.

    Raises:
        ConfigError: a width that is negative or not finite, or fewer samples than tasks.
    """
    if not 0 <= width < float("inf"):
        raise ConfigError("the width of the fading must be at least 0 and finite", found=width, fix="0.25, say")
    places = []
    for t, task in enumerate(stream.tasks):
        generator = seeds.generator(seed, "blurred stream", t)
        u = torch.rand(len(task.y), generator=generator, dtype=torch.float64)
        places.append(t + u + width * torch.randn(len(task.y), generator=generator, dtype=torch.float64))
    order = torch.cat(places).argsort(stable=True)
    x, y = (torch.cat([getattr(task, part) for task in stream.tasks])[order] for part in ("x", "y"))
    cuts = [round(i * len(y) / len(stream.tasks)) for i in range(len(stream.tasks) + 1)]
    tasks = tuple(
        dataclasses.replace(task, x=x[start:end], y=y[start:end], order=())
        for task, start, end in zip(stream.tasks, cuts, cuts[1:], strict=False)
    )
    return dataclasses.replace(stream, scenario="general", tasks=tasks)


def channel_scale(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of x / 255, x uint8 (N, C, H, W); a constant channel gets std 1."""
    counts = [torch.bincount(x[:, c].flatten(), minlength=256).double() for c in range(x.shape[1])]
    value = torch.arange(256, dtype=torch.float64) / 255
    means = [float((n * value).sum() / n.sum()) for n in counts]
    stds = [float((n * (value - m) ** 2).sum() / n.sum()) ** 0.5 for n, m in zip(counts, means, strict=True)]
    return tuple(round(m, 4) for m in means), tuple(round(s, 4) or 1.0 for s in stds)


def _check_samples(what: str, x: Tensor, y: Tensor) -> None:
    problem: str | None = None
    found: Any = None
    fix = "mend the data before it becomes a task"
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


def _check_classes(part: str, held: list[int], count: int, class_names: Sequence[str]) -> None:
    """Refuse labels with gaps: classes that ``part`` has no data of."""
    if len(held) == count:
        return
    some = set(held)
    empty = list(itertools.islice((label for label in range(count) if label not in some), MOST_SHOWN))
    named = [class_names[label] if label < len(class_names) else label for label in empty]
    more = count - len(held) - len(empty)
    raise DataError(
        f"there is no {part} data of some classes",
        found=f"{named}" + (f" and {more} more" if more else ""),
        fix="give data of every class, or number the classes from 0 without gaps",
    )


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} (N, {', '.join(map(str, x.shape[1:]))})"


def _groups(
    tasks: int | Sequence[Sequence[int | str]], count: int, order_seed: int | None, class_names: Sequence[str]
) -> list[list[int]]:
    """The classes of each task, in the order of their places."""
    if isinstance(tasks, bool) or (isinstance(tasks, int) and not 1 <= tasks <= count):
        raise ConfigError(f"{count} classes make 1 to {count} tasks", found=tasks, fix="give another number of tasks")
    if isinstance(tasks, int):
        if count % tasks:
            fits = [n for n in range(1, count + 1) if count % n == 0]
            ends = [round(count * i / tasks) for i in range(tasks + 1)]
            groups = [list(range(*pair)) for pair in itertools.pairwise(ends)]
            example = f", or the classes of each task, such as {groups}" if count <= MOST_SHOWN else ""
            raise ConfigError(
                f"{count} classes do not go into {tasks} equal tasks", fix=f"tasks may be {fits}{example}"
            )
        order, size = list(range(count)), count // tasks
        sizes = [size] * tasks
    else:
        by_hand = _by_hand(tasks, count, class_names)
        order, sizes = [label for group in by_hand for label in group], [len(group) for group in by_hand]
    if order_seed is not None:
        order = [order[i] for i in seeds.permutation(count, order_seed, "order of classes").tolist()]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _by_hand(tasks: object, count: int, class_names: Sequence[str]) -> list[list[int]]:
    """Groups that were written down, by label or, if they are not all labels, by name."""
    listed = isinstance(tasks, list | tuple) and all(isinstance(group, list | tuple) for group in tasks)
    groups: list[list[Any]] = [list(group) for group in tasks] if listed else []  # type: ignore[attr-defined]
    flat = [label for group in groups for label in group]
    if groups and all(groups):
        if all(type(label) is int for label in flat) and sorted(flat) == list(range(count)):
            return groups
        places = {name: label for label, name in enumerate(class_names)}
        if sorted(map(str, flat)) == sorted(class_names) and len(places) == count:
            return [[places[str(name)] for name in group] for group in groups]
    known = ", ".join(f"{label} '{name}'" for label, name in enumerate(class_names[:MOST_SHOWN]))
    raise ConfigError(
        f"the groups must hold each of the {count} classes once, and none may be empty",
        found=reprlib.repr(tasks),
        fix="write every class into one group, by number or by name" + (f": {known}" if known else ""),
    )


def _shares_labels(stream: Stream) -> bool:
    return sum(len(task.classes) for task in stream.tasks) > len({c for task in stream.tasks for c in task.classes})


def _as_domains(stream: Stream) -> Stream:
    """Labels become places among the classes of their task, first of its order, first place."""
    most = max(len(task.classes) for task in stream.tasks)
    tasks = []
    for task in stream.tasks:
        place = torch.zeros(task.classes[-1] + 1, dtype=torch.int64)
        order = task.order or task.classes
        place[torch.tensor(order)] = torch.arange(len(order))
        tasks.append(dataclasses.replace(task, y=place[task.y], test_y=place[task.test_y], order=()))
    names = tuple(f"place {i}" for i in range(1, most + 1))
    return dataclasses.replace(stream, scenario="domain", tasks=tuple(tasks), classes=most, class_names=names)
