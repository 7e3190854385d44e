"""From labelled data to tasks, and from one scenario to another."""

import dataclasses
import itertools
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unteach.continual.streams.base import Scenario, Stream, Task, check_samples
from unteach.core import seeds
from unteach.errors import ConfigError, DataError

MOST_SHOWN = 20
"""Classes that a message lists, at most."""


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
        class_names: names of the classes, for the tasks' names and to name classes in ``tasks``.

    Raises:
        ConfigError: the classes cannot be shared out equally, or the groups do not hold every class once.
        DataError: see :class:`Task`; among them a class without training or test data, and labels with gaps.
    """
    for part, samples, labels in (("training data", x, y), ("test data", test_x, test_y)):
        check_samples(f"the {part}", samples, labels)
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
        stream: a stream of any scenario.
        seed: seed of u and n.
        width: width of the fading, in tasks; 0: one task after another, shuffled within itself.

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
