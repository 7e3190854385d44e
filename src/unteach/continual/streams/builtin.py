"""Named streams: three that ship with the package, and the usual ones from files on disk.

``load("digits")``, ``load("cifar100", path=..., tasks=20, order_seed=0, scenario="online")``. Normalisation
constants and views of CIFAR and Tiny ImageNet are those of Mammoth (Buzzega et al. 2020).
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unteach.continual.streams.base import Scenario, Stream, Task, channel_scale
from unteach.continual.streams.scenarios import split_classes, with_scenario
from unteach.core import seeds
from unteach.core.registry import Registry, near
from unteach.data import digits as packed
from unteach.data import emoji, files
from unteach.data.files import Labelled
from unteach.errors import ConfigError

Tasks = int | Sequence[Sequence[int | str]]
"""A number of tasks, or the classes of each task, by label or by name."""

streams: Registry[Callable[..., Stream]] = Registry("stream")

VIEWS = 4
"""Views of an icon in "emoji-class", in training and in the test."""

PAIRED_STYLES = ("noto", "blob")
"""Two versions of one font: in "emoji-class" every object is tested in one of them, in turn."""

KINDS: Mapping[str, tuple[str, str]] = {
    "face": ("face-(?!hat|hand|costume).*", ".*"),
    "clock face": ("time", ".*-(oclock|thirty)"),
    "heart": ("heart", "(?!love-letter).*"),
    "hand": ("hand-(?!prop).*|hands", ".*"),
    "keycap": ("keycap", ".*"),
    "Japanese button": ("alphanum", "japanese-.*"),
    "mammal": ("animal-mammal", ".*"),
    "land vehicle": ("transport-ground", ".*"),
    "building": ("place-building|place-religious", ".*"),
    "person": ("person|person-(role|gesture|fantasy|symbol)", ".*"),
}
"""The classes of "emoji-domain": patterns of Unicode's sub-group and of the name, both for the whole of it.

They are the ten of 29 such kinds that a small network tells apart best, by cross-validation within the
training names; the names of the test took no part in the choice.
"""

MOST_NAMES = 32
"""A kind with more names is cut to so many, so that no kind outweighs the others."""


def load(name: str, *, scenario: Scenario | None = None, **options: Any) -> Stream:
    """The stream of this name.

    Args:
        name: a name in :data:`streams`.
        scenario: another scenario than the stream's own (see
            :func:`~unteach.continual.streams.with_scenario`).
        options: the arguments of the stream's function; ``path`` for data on disk.

    Raises:
        ConfigError: no such stream or option, or an option out of range.
        DataError: the files are missing, damaged or of another format.
        MissingExtraError: the files need a package that is not installed.
    """
    problems = misfits(name, options)
    seed = options.get("order_seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        problems.append(f"order_seed must be a whole number or none, found {seed!r}")
    if not isinstance(options.get("path", ""), str | Path):
        problems.append(f"path must be text, found {options['path']!r:.80}")
    if problems:
        raise ConfigError.many(problems, where=f"the stream '{name}'")
    stream = streams[name](**options)
    return stream if scenario is None else with_scenario(stream, scenario)


def misfits(name: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names of a stream's options, one sentence each.

    Raises:
        ConfigError: no such stream.
    """
    known = inspect.signature(streams[name]).parameters
    needed = [key for key, parameter in known.items() if parameter.default is inspect.Parameter.empty]
    return [
        *(f"unknown option '{key}' ({near(str(key), known)})" for key in options if key not in known),
        *(f"the option '{key}' is needed" for key in needed if key not in options),
    ]


@streams.add("digits")
def digits(tasks: Tasks = 5, order_seed: int | None = None) -> Stream:
    """Handwritten digits, 1 x 8 x 8: 1438 to learn from, 359 for the test; 5 tasks of 2 classes."""
    return _by_class("digits", packed.digits(), tasks, order_seed)


@streams.add("emoji-class")
def emoji_class(tasks: Tasks = 10, order_seed: int | None = None, size: int = 32) -> Stream:
    """EmojiCanvas's 60 objects as classes, 3 x 32 x 32; 10 tasks of 6.

    Every object is learned in seven styles and tested in the eighth: in "noto" (objects at an even place) or in
    "blob" (odd), two drawings of the same object in two versions of one font. So no icon of the test is
    seen in training, while every style is. An icon gives 4 views, a little scaled and shifted, on white or a
    pale background: 1680 pictures to learn from, 240 (of 60 icons) for the test. Of several ways to hold out
    styles this one was taken because a small network can learn it; held-out styles without a paired one are harder.
    """
    side = _size(size)
    x, y, test_x, test_y, names = _objects()
    data = Labelled(_shrink(x, side), y, _shrink(test_x, side), test_y, names)
    return _by_class("emoji-class", data, tasks, order_seed, augment="shift")


@streams.add("emoji-domain")
def emoji_domain(order_seed: int | None = None, size: int = 32) -> Stream:
    """Ten kinds of emoji in eight styles, 3 x 32 x 32: a task is a style, the labels are the same in all.

    The test is on names that are not seen in training, in any style: a quarter of each kind's names. 188
    names to learn and 63 for the test in every task. ``order_seed`` shuffles the order of the styles.
    """
    side = _size(size)
    full = emoji.full()
    rows, labels = _kinds()
    x, test_x = (_shrink(full.images[part], side).transpose(0, 1).contiguous() for part in rows)
    order = list(range(len(full.styles)))
    if order_seed is not None:
        order = seeds.permutation(len(order), order_seed, "order of styles").tolist()
    tasks = tuple(Task(full.styles[s], x[s], labels[0], test_x[s], labels[1]) for s in order)
    mean, std = channel_scale(x.flatten(0, 1))
    return Stream("emoji-domain", "domain", tasks, len(KINDS), tuple(KINDS), mean, std, "shift")


@streams.add("fashion-mnist")
def fashion_mnist(path: str | Path, tasks: Tasks = 5, order_seed: int | None = None) -> Stream:
    """Fashion-MNIST, 1 x 28 x 28; 5 tasks of 2 classes."""
    return _by_class("fashion-mnist", files.fashion_mnist(path), tasks, order_seed, ((0.2860,), (0.3530,)))


@streams.add("cifar10")
def cifar10(path: str | Path, tasks: Tasks = 5, order_seed: int | None = None) -> Stream:
    """CIFAR-10, 3 x 32 x 32; 5 tasks of 2 classes."""
    scale = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
    return _by_class("cifar10", files.cifar10(path), tasks, order_seed, scale, "crop-flip")


@streams.add("cifar100")
def cifar100(path: str | Path, tasks: Tasks = 10, order_seed: int | None = None) -> Stream:
    """CIFAR-100, 3 x 32 x 32; 10 tasks of 10 classes."""
    scale = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return _by_class("cifar100", files.cifar100(path), tasks, order_seed, scale, "crop-flip")


@streams.add("tiny-imagenet")
def tiny_imagenet(path: str | Path, tasks: Tasks = 10, order_seed: int | None = None) -> Stream:
    """Tiny ImageNet, 3 x 64 x 64; 10 tasks of 20 classes."""
    scale = (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)
    return _by_class("tiny-imagenet", files.tiny_imagenet(path), tasks, order_seed, scale, "crop-flip")


@streams.add("folder")
def folder(
    path: str | Path, tasks: Tasks = 5, order_seed: int | None = None, size: int = 32, augment: str = "none"
) -> Stream:
    """Pictures in train/CLASS/* and test/CLASS/*, 3 x ``size`` x ``size``, normalised by their own statistics."""
    return _by_class("folder", files.image_folder(path, size), tasks, order_seed, augment=augment)


@streams.add("arrays")
def arrays(path: str | Path, tasks: Tasks = 5, order_seed: int | None = None, augment: str = "none") -> Stream:
    """Tensors of a safetensors file; uint8 is normalised by its own statistics, float data is taken as it is."""
    return _by_class("arrays", files.arrays(path), tasks, order_seed, augment=augment)


def _by_class(
    name: str,
    data: Labelled,
    tasks: Tasks,
    order_seed: int | None,
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    augment: str = "none",
) -> Stream:
    """A class-incremental stream; without ``scale``, mean and std are those of all its training pictures."""
    cut = split_classes(*data[:4], tasks, order_seed=order_seed, class_names=data.class_names)
    if scale is None:
        scale = channel_scale(data.x) if data.x.dtype == torch.uint8 else ((), ())
    return Stream(name, "class", cut, len(data.class_names), data.class_names, *scale, augment)


@functools.cache
def _objects() -> Labelled:
    """The views of "emoji-class"."""
    canvas = emoji.grid()
    objects, styles = canvas.pairs()
    held = torch.tensor([canvas.style_index(name) for name in PAIRED_STYLES])[objects % len(PAIRED_STYLES)] == styles
    parts: list[Tensor] = []
    for part, rows in (("training", ~held), ("test", held)):
        chosen, drawn = objects[rows].repeat(VIEWS), styles[rows].repeat(VIEWS)
        views = canvas.views(chosen, drawn, seeds.generator(0, "emoji-class views", part))
        parts += [(views * 255).round().to(torch.uint8), chosen]
    return Labelled.of(parts, [info.name for info in canvas.objects])


@functools.cache
def _kinds() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows of the full set for training and test, and their labels."""
    full = emoji.full()
    rows: tuple[list[int], list[int]] = [], []
    labels: tuple[list[int], list[int]] = [], []
    for label, (kind, (group, name)) in enumerate(KINDS.items()):
        own = [
            row
            for row, pair in enumerate(zip(full.subcategories, full.names, strict=True))
            if re.fullmatch(group, pair[0]) and re.fullmatch(name, pair[1])
        ]
        drawn = [own[i] for i in seeds.permutation(len(own), 0, "emoji-domain names", kind).tolist()][:MOST_NAMES]
        held = round(len(drawn) / 4)
        for part, chosen in enumerate((drawn[held:], drawn[:held])):
            rows[part].extend(chosen)
            labels[part].extend([label] * len(chosen))
    made = [torch.tensor(part) for part in (*rows, *labels)]
    return (made[0], made[1]), (made[2], made[3])


def _size(size: int) -> int:
    if isinstance(size, bool) or size not in (16, 32):
        raise ConfigError("the emoji are 32 x 32 or, averaged down, 16 x 16 pixels", found=size, fix="size 32 or 16")
    return size


def _shrink(images: Tensor, side: int) -> Tensor:
    """uint8 pictures (..., 32, 32), averaged down to ``side``."""
    if side == images.shape[-1]:
        return images
    flat = images.flatten(0, -4).float()
    small = F.avg_pool2d(flat, images.shape[-1] // side).round().to(torch.uint8)
    return small.view(*images.shape[:-2], side, side)
