"""Streams: what a task and a stream refuse, how classes are cut into tasks, scenarios, and the named streams."""

import dataclasses
import gzip
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from unteach.continual.streams import Stream, Task, blurred, channel_scale, load, split_classes, streams, with_scenario
from unteach.continual.streams.builtin import KINDS, PAIRED_STYLES
from unteach.data import digits, emoji
from unteach.errors import ConfigError, DataError


def pictures(labels, seed=0, channels=1):
    """uint8 pictures whose first pixel is the label."""
    y = torch.tensor(labels)
    x = torch.randint(256, (len(y), channels, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    x[:, :, 0, 0] = y[:, None].to(torch.uint8)
    return x, y


def task(labels=(0, 1), name="one", **changes):
    x, y = pictures(list(labels))
    return Task(**({"name": name, "x": x, "y": y, "test_x": x, "test_y": y} | changes))


def toy(tasks=3, per_class=20):
    """A class-incremental stream of two classes a task."""
    x, y = pictures([label for label in range(2 * tasks) for _ in range(per_class)])
    test_x, test_y = pictures(list(range(2 * tasks)), seed=1)
    cut = split_classes(x, y, test_x, test_y, tasks)
    return Stream("toy", "class", cut, 2 * tasks, tuple("abcdefghij"[: 2 * tasks]), (0.5,), (0.25,))


# ------------------------------------------------------------------------------------------ what is refused

FLOATS = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": torch.tensor([0])}, "training data of the task 'one': there must be one label a sample.*2 samples, 1"),
        ({"test_y": torch.tensor([0])}, "test data of the task 'one': there must be one label"),
        ({"x": torch.empty(0, 1, 3, 3, dtype=torch.uint8), "y": torch.empty(0).long()}, "training.*no samples"),
        ({"test_x": torch.empty(0, 1, 3, 3, dtype=torch.uint8), "test_y": torch.empty(0).long()}, "test.*no samples"),
        ({"y": torch.tensor([0, -1])}, "0 or more; found: -1"),
        ({"y": torch.tensor([0.0, 1.0])}, r"int64 \(N,\); found: torch.float32"),
        ({"y": torch.tensor([[0, 1]])}, r"int64 \(N,\)"),
        ({"x": torch.zeros(2, 3, 3, dtype=torch.uint8)}, r"uint8 \(N, C, H, W\); found: uint8 \(N, 3, 3\)"),
        ({"x": torch.zeros(2, 1, 3, 3, dtype=torch.float64)}, "float32.*found: float64"),
        ({"x": torch.zeros(2)}, "float32"),
        ({"x": torch.full((2, 4), torch.nan), "test_x": FLOATS}, "not every number is finite; found: 8"),
        ({"x": FLOATS, "test_x": FLOATS + torch.tensor([0, 0, 0, torch.inf])}, "test.*finite; found: 2"),
        ({"test_x": torch.zeros(2, 1, 4, 3, dtype=torch.uint8)}, "different kinds"),
        ({"x": torch.zeros(2, 1, 3, 3)}, r"different kinds; found: float32 \(N, 1, 3, 3\) and uint8"),
    ],
)
def test_a_task_is_checked(changes, said):
    with pytest.raises(DataError, match=said):
        task(**changes)


FIELDS = {"name": "s", "scenario": "class", "classes": 4, "class_names": tuple("abcd"), "mean": (0.5,), "std": (0.2,)}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (DataError, {"tasks": ()}, "no tasks"),
        (DataError, {"classes": 3, "class_names": tuple("abc")}, r"'two' has a label outside \[0, 3\); found: 3"),
        (DataError, {"class_names": tuple("abc")}, "4 classes; found: 3 names"),
        (DataError, {"tasks": (task(), task(name="two", x=pictures([0, 1], channels=3)[0],
                                            test_x=pictures([0, 1], channels=3)[0]))}, "'one' and 'two'.*kinds"),
        (ConfigError, {"scenario": "clas"}, "did you mean 'class'"),
        (ConfigError, {"augment": "flip"}, "no views are called 'flip'.*crop-flip"),
        (ConfigError, {"mean": ()}, "each of 1 channels"),
        (ConfigError, {"std": (0.0,)}, "std above 0"),
        (ConfigError, {"std": (float("nan"),)}, "std above 0"),
        (ConfigError, {"tasks": (task(x=FLOATS, test_x=FLOATS),)}, "each of 0 channels"),
        (ConfigError, {"tasks": (task(x=FLOATS, test_x=FLOATS),), "mean": (), "std": (), "augment": "shift"}, "views"),
    ],
)  # fmt: skip
def test_a_stream_is_checked(kind, changes, said):
    fields = FIELDS | {"tasks": (task(), task((2, 3), "two"))}
    Stream(**fields)
    with pytest.raises(kind, match=said):
        Stream(**(fields | changes))


def test_what_a_stream_says_of_itself():
    stream = toy()
    assert stream.shape == (1, 3, 3) and [t.classes for t in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert task((3, 1, 1), test_x=pictures([2])[0], test_y=pictures([2])[1]).classes == (1, 2, 3)
    assert stream.boundaries and not blurred(stream).boundaries
    floats = Stream("f", "class", (task(x=FLOATS, test_x=FLOATS),), 2, ("a", "b"), (), ())
    assert floats.shape == (4,)


def test_the_digest_depends_on_everything():
    stream, seen = toy(), set()
    assert stream.digest() == toy().digest() and len(stream.digest()) == 64
    first = stream.tasks[0]
    changed = [stream.__class__(**{f.name: getattr(stream, f.name) for f in dataclasses.fields(stream)} | change)
               for change in ({}, {"name": "n"}, {"scenario": "task"}, {"mean": (0.4,)}, {"std": (0.4,)},
                              {"augment": "shift"}, {"tasks": stream.tasks[::-1]},
                              {"class_names": tuple("abcdex")}, {"tasks": stream.tasks[:2]})]  # fmt: skip
    for part in ("x", "y", "test_x", "test_y"):
        tensor = getattr(first, part).clone()
        tensor.view(-1)[0] = 1
        tensor.view(-1)[1] = 1
        other = dataclasses.replace(first, **{part: tensor})
        changed.append(dataclasses.replace(stream, tasks=(other, *stream.tasks[1:])))
    changed.append(dataclasses.replace(stream, tasks=(dataclasses.replace(first, name="n"), *stream.tasks[1:])))
    seen = {other.digest() for other in changed}
    assert len(seen) == len(changed) == 14 and changed[0].digest() == stream.digest()


# --------------------------------------------------------------------------------------- classes into tasks


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(0, 99)),
    st.lists(st.integers(0, 15), max_size=30),
)
def test_every_sample_goes_into_one_task_in_its_order(tasks, each, order_seed, more):
    count = tasks * each
    x, y = pictures([*range(count), *(label % count for label in more)])
    test_x, test_y = pictures(list(range(count)), seed=2)
    cut = split_classes(x, y, test_x, test_y, tasks, order_seed=order_seed)
    groups = [t.classes for t in cut]
    assert sorted(label for group in groups for label in group) == list(range(count))
    assert {len(group) for group in groups} == {each}
    for group, part in zip(groups, cut, strict=True):
        rows = [i for i in range(len(y)) if int(y[i]) in group]
        assert torch.equal(part.x, x[rows]) and torch.equal(part.y, y[rows])
        assert sorted(part.test_y.tolist()) == list(group)
        assert torch.equal(part.test_x[:, 0, 0, 0].long(), part.test_y)
    if order_seed is None:
        assert [label for group in groups for label in group] == list(range(count))


def test_the_order_of_classes_is_a_function_of_the_seed():
    x, y = pictures(list(range(10)))
    orders = {seed: [t.classes for t in split_classes(x, y, x, y, 5, order_seed=seed)] for seed in (0, 1)}
    assert orders[0] != orders[1]
    assert orders[0] == [t.classes for t in split_classes(x, y, x, y, 5, order_seed=0)]


def test_groups_of_any_size_and_names():
    x, y = pictures([0, 1, 2, 3])
    cut = split_classes(x, y, x, y, [[3], [0, 2, 1]], class_names=["a", "b", "c", "d"])
    assert [t.name for t in cut] == ["d", "a, c, b"] and [t.classes for t in cut] == [(3,), (0, 1, 2)]
    assert [t.name for t in split_classes(x, y, x, y, 2)] == ["task 1", "task 2"]
    sizes = [len(t.classes) for t in split_classes(x, y, x, y, [[3], [0, 2, 1]], order_seed=1)]
    assert sizes == [1, 3]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (3, r"4 classes do not go into 3 equal tasks; to do: tasks may be \[1, 2, 4\]"),
        (0, "1 to 4 tasks; found: 0"),
        (5, "1 to 4 tasks"),
        (True, "1 to 4 tasks"),
        ([[0, 1], [2]], "each of the 4 classes once"),
        ([[0, 1], [2, 3, 3]], "each of the 4 classes once"),
        ([[0, 1, 2, 3], []], "none may be empty"),
        ([0, 1, 2, 3], "each of the 4 classes once"),
        ([[0, 1], [2, [3]]], "each of the 4 classes once"),
        ([[0, 1.0], [2, 3]], "each of the 4 classes once"),
        ([["0", "1"], ["2", "3"]], "each of the 4 classes once"),
        ("0123", "each of the 4 classes once, .*found: '0123'"),
        (2.0, "each of the 4 classes once, .*found: 2.0"),
        (None, "each of the 4 classes once"),
        ([], "each of the 4 classes once"),
    ],
)
def test_wrong_tasks(tasks, said):
    x, y = pictures([0, 1, 2, 3])
    with pytest.raises(ConfigError, match=said):
        split_classes(x, y, x, y, tasks)


def test_a_class_without_data():
    x, y = pictures([0, 1, 2, 3])
    with pytest.raises(DataError, match=r"no training data of some classes; found: \[2\]"):
        split_classes(x[y != 2], y[y != 2], x, y, 2)
    with pytest.raises(DataError, match=r"no test data of some classes; found: \[3\]"):
        split_classes(x, y, x[:3], y[:3], 2)
    with pytest.raises(DataError, match=r"no training data of some classes; found: \['e', 'f'\]"):
        split_classes(x, y, x, y, 2, class_names=list("abcdef"))
    with pytest.raises(DataError, match=r"no training data of some classes.*number the classes from 0"):
        split_classes(x, y * 2**40, x, y, 2)  # F11: labels with gaps, however wide
    with pytest.raises(DataError, match="the training data: there are no samples"):
        split_classes(x[:0], y[:0], x, y, 2)


def test_classes_that_do_not_go_into_equal_tasks_may_be_grouped_by_hand():
    """Five classes, two tasks: the message shows how."""
    x, y = pictures([0, 1, 2, 3, 4])
    with pytest.raises(ConfigError, match=r"tasks may be \[1, 5\], or the classes of each task, such as") as caught:
        split_classes(x, y, x, y, 2)
    shown = json.loads(str(caught.value).split("such as ")[1])
    assert [len(t.classes) for t in split_classes(x, y, x, y, shown)] == [2, 3]


def test_groups_by_name():
    """F8, F11: folders and labels that are called by numbers which are not their places."""
    x, y = pictures([0, 1, 2, 3])
    names = ["3", "7", "42", "ship"]
    for groups in ([["ship", 7], [42, 3]], [["ship", "7"], ["42", "3"]], [[3, 1], [2, 0]]):
        cut = split_classes(x, y, x, y, groups, class_names=names)
        assert [t.name for t in cut] == ["ship, 7", "42, 3"] and [t.order for t in cut] == [(3, 1), (2, 0)]
    with pytest.raises(ConfigError, match="by number or by name: 0 '3', 1 '7', 2 '42', 3 'ship'"):
        split_classes(x, y, x, y, [["ship", 7], [42]], class_names=names)
    # Numbers that could be both are labels.
    assert split_classes(x, y, x, y, [[0, 1], [2, 3]], class_names=["3", "2", "1", "0"])[0].name == "3, 2"


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (9, 16, 4)])
def test_f10_pictures_with_their_channels_last_are_refused(pixels, shape):
    x, y = torch.zeros(8, *shape, dtype=pixels), torch.arange(8) % 4
    said = rf"channels first.*found: .*\(N, {', '.join(map(str, shape))}\).*x.permute\(0, 3, 1, 2\)"
    with pytest.raises(DataError, match=said):
        Task("a", x, y, x, y)
    with pytest.raises(DataError, match=said):
        split_classes(x, y, x, y, 2)
    turned = x.permute(0, 3, 1, 2).contiguous()
    assert len(split_classes(turned, y, turned, y, 2)) == 2


@pytest.mark.parametrize("shape", [(3, 8, 3), (1, 28, 1), (3, 32, 32), (12, 64, 64), (4, 8, 4)])
def test_f10_channels_first_and_many_channels_are_taken(shape):
    x, y = torch.zeros(8, *shape, dtype=torch.uint8), torch.arange(8) % 4
    assert Task("a", x, y, x, y).classes == (0, 1, 2, 3)


# ------------------------------------------------------------------------------------------------ scenarios


@pytest.mark.parametrize("scenario", ["class", "task", "online"])
def test_f9_the_first_of_a_group_is_place_1_in_its_domain(scenario):
    """CIFAR-10 as pairs of vehicle and animal, written down by hand: vehicles are place 1 in every task."""
    pairs = [[0, 2], [1, 3], [8, 4], [9, 5], [6, 7]]
    x, y = pictures([*range(10), *range(10)])
    stream = Stream("pairs", "class", split_classes(x, y, x, y, pairs), 10, tuple("0123456789"), (0.5,), (0.5,))
    domains = with_scenario(with_scenario(stream, scenario), "domain")
    for task, was, pair in zip(domains.tasks, stream.tasks, pairs, strict=True):
        assert [pair[place] for place in task.y.tolist()] == was.y.tolist()
        assert [pair[place] for place in task.test_y.tolist()] == was.test_y.tolist()
    assert with_scenario(domains, "general").classes == 2


def test_f9_a_shuffled_order_of_classes_says_the_places_too():
    x, y = pictures(list(range(10)))
    cut = split_classes(x, y, x, y, 5, order_seed=3)
    assert any(t.order != t.classes for t in cut) and all(sorted(t.order) == list(t.classes) for t in cut)
    stream = Stream("toy", "class", cut, 10, tuple("0123456789"), (0.5,), (0.5,))
    for task, was in zip(with_scenario(stream, "domain").tasks, cut, strict=True):
        assert [was.order[place] for place in task.y.tolist()] == was.y.tolist()


def test_an_order_of_other_classes_is_refused():
    x, y = pictures([0, 1])
    for order in ((0,), (0, 2), (0, 1, 1)):
        with pytest.raises(DataError, match="order of classes of the task 'a'"):
            Task("a", x, y, x, y, order)


@pytest.mark.parametrize("scenario", ["task", "online"])
def test_another_word_for_the_same_data(scenario):
    stream = toy()
    other = with_scenario(stream, scenario)
    assert other.scenario == scenario and other.tasks == stream.tasks
    assert with_scenario(other, "class").digest() == stream.digest()
    assert with_scenario(stream, "class") is stream


def test_domains_of_a_class_stream_are_places_in_the_task():
    stream = with_scenario(toy(), "domain")
    assert stream.classes == 2 and stream.class_names == ("place 1", "place 2")
    for i, (part, was) in enumerate(zip(stream.tasks, toy().tasks, strict=True)):
        assert torch.equal(part.y, was.y - 2 * i) and torch.equal(part.test_y, was.test_y - 2 * i)
        assert torch.equal(part.x, was.x)


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        ("general", "class", "run into each other"),
        ("general", "domain", "run into each other"),
        ("domain", "class", "share their labels"),
        ("domain", "task", "share their labels"),
        ("class", "clas", "no scenario"),
    ],
)
def test_scenarios_that_cannot_be_reached(first, then, why):
    with pytest.raises(ConfigError, match=why):
        with_scenario(with_scenario(toy(), first), then)


def test_domains_may_be_seen_once_or_without_boundaries():
    stream = with_scenario(toy(), "domain")
    assert with_scenario(stream, "online").tasks == stream.tasks
    assert with_scenario(stream, "general").classes == 2


def test_blurred_tasks_fade_into_each_other():
    stream = toy(tasks=4, per_class=200)
    other = blurred(stream, seed=3, width=0.25)
    assert [len(t.y) for t in other.tasks] == [400] * 4
    assert all(a.test_x is b.test_x and a.test_y is b.test_y for a, b in zip(other.tasks, stream.tasks, strict=True))
    # The same samples with their labels, each once.
    rows = [sorted((bytes(x.numpy()), int(y)) for t in s.tasks for x, y in zip(t.x, t.y, strict=True))
            for s in (stream, other)]  # fmt: skip
    assert rows[0] == rows[1]
    # In every tenth of the order the mean label grows; at a former boundary both tasks are seen.
    seen = torch.cat([t.y for t in other.tasks])
    tenths = seen.float().view(10, -1).mean(1)
    assert (tenths.diff() > 0).all()
    assert set((seen[380:420] // 2).tolist()) >= {0, 1}
    assert 0 < int((seen[:400] // 2 != 0).sum()) < 150


def test_the_width_of_the_fading():
    stream = toy(tasks=3)
    sharp, wide = blurred(stream, width=0), blurred(stream, width=50.0)
    assert [sorted(t.y.tolist()) for t in sharp.tasks] == [sorted(t.y.tolist()) for t in stream.tasks]
    assert not torch.equal(sharp.tasks[0].y, stream.tasks[0].y)  # shuffled within the task
    assert all(set(t.y.tolist()) == set(range(6)) for t in wide.tasks)
    assert blurred(stream, 1).digest() == blurred(stream, 1).digest() != blurred(stream, 2).digest()
    for width in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="at least 0 and finite"):
            blurred(stream, width=width)


def test_unequal_tasks_become_equal_segments():
    parts = (task([0] * 7), task([1] * 3, "two"))
    other = blurred(dataclasses.replace(toy(tasks=1), tasks=parts), width=0)
    assert [t.y.tolist() for t in other.tasks] == [[0] * 5, [0] * 2 + [1] * 3]


def test_channel_scale():
    x = pictures(list(range(50)), channels=2)[0]
    x[:, 1] = 51
    mean, std = channel_scale(x)
    plain = x[:, 0].double() / 255
    assert mean == (round(float(plain.mean()), 4), 0.2) and std == (round(float(plain.std(correction=0)), 4), 1.0)


# ------------------------------------------------------------------------------------------- named streams


def bounds(stream):
    return [(len(t.y), len(t.test_y)) for t in stream.tasks]


def test_digits():
    stream = load("digits")
    assert (stream.shape, stream.classes, stream.scenario, stream.augment) == ((1, 8, 8), 10, "class", "none")
    assert stream.tasks[4].name == "eight, nine" and len(stream.tasks) == 5
    assert sum(n for n, _ in bounds(stream)) == 1438 and sum(n for _, n in bounds(stream)) == 359
    assert torch.equal(torch.cat([t.y for t in stream.tasks]).bincount(), digits.digits().y.bincount())
    assert stream.digest().startswith("37362ce1f30734e2")


def test_no_icon_of_the_test_of_emoji_class_is_seen_in_training():
    stream, canvas = load("emoji-class"), emoji.grid()
    assert (stream.shape, stream.classes, len(stream.tasks)) == ((3, 32, 32), 60, 10)
    assert bounds(stream) == [(6 * 7 * 4, 6 * 4)] * 10
    assert stream.class_names == tuple(info.name for info in canvas.objects)
    # Whose icon a view shows: that of the style with the nearest of many drawings, apart from the background.
    x, y, test_x, test_y = (torch.cat([getattr(t, part) for t in stream.tasks]) for part in PARTS)
    generator = torch.Generator().manual_seed(0)
    for label in range(0, 60, 9):
        drawn = emoji.draw(canvas.icons[label].repeat(40, 1, 1, 1), generator)
        held = canvas.style_index(PAIRED_STYLES[label % 2])
        for views, want in ((x[y == label], set(range(8)) - {held}), (test_x[test_y == label], {held})):
            nearest = torch.cdist(figure(views.float() / 255), figure(drawn)).argmin(1) % 8
            assert sorted(nearest.tolist()) == sorted(4 * list(want))


PARTS = ("x", "y", "test_x", "test_y")


def figure(views):
    return (views - views[:, :, :1, :1]).flatten(1)


def test_emoji_domain_tests_names_that_are_not_learned():
    stream, full = load("emoji-domain"), emoji.full()
    assert (stream.shape, stream.classes, stream.scenario) == ((3, 32, 32), 10, "domain")
    assert [t.name for t in stream.tasks] == list(full.styles) and bounds(stream) == [(188, 63)] * 8
    assert all(t.classes == tuple(range(10)) for t in stream.tasks)
    # From picture back to name: the rows of the full set that look like this in every style.
    where = [{bytes(image.numpy().tobytes()): row for row, image in enumerate(full.images[:, s])} for s in range(8)]
    names = []
    for part in ("x", "test_x"):
        columns = [[where[s].get(x.numpy().tobytes()) for x in getattr(t, part)] for s, t in enumerate(stream.tasks)]
        colour = columns[0]  # a set in colour draws every name differently
        assert not any(None in column for column in columns) and len(set(colour)) == len(colour)
        names.append({full.names[row] for row in colour})
    assert not names[0] & names[1] and len(names[0]) == 188 and len(names[1]) == 63
    assert {"keycap-9", "santa-claus"} < names[1] and stream.class_names == tuple(KINDS)
    assert stream.digest().startswith("d49eb63919d2674c")


@pytest.mark.parametrize("name", ["emoji-class", "emoji-domain"])
def test_emoji_at_half_the_size(name):
    small, large = load(name, size=16), load(name)
    assert small.shape == (3, 16, 16) and bounds(small) == bounds(large)
    for a, b in zip(small.tasks[:2], large.tasks[:2], strict=True):
        mean = b.x.float().view(len(b.x), 3, 16, 2, 16, 2).mean((3, 5))
        assert (a.x.float() - mean).abs().max() <= 0.5 and torch.equal(a.y, b.y)
    for size in (8, True, "16", None):
        with pytest.raises(ConfigError, match="16 x 16"):
            load(name, size=size)


@pytest.mark.parametrize("name", ["digits", "emoji-class", "emoji-domain"])
def test_built_in_streams_in_every_scenario(name):
    own = load(name)
    assert own.digest() == load(name).digest() != load(name, order_seed=1).digest()
    for scenario in ("online", "general", "domain"):
        assert load(name, scenario=scenario).scenario == scenario


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("digit", {}, "did you mean 'digits'"),
        ("digits", {"task": 5}, "unknown option 'task' .did you mean 'tasks'"),
        ("digits", {"path": "x", "order_seed": 0.5}, "2 mistakes"),
        ("digits", {"order_seed": True}, "whole number"),
        ("digits", {"tasks": 3}, "equal tasks"),
        ("digits", {"scenario": "tasks"}, "did you mean 'task'"),
        ("cifar10", {}, "'path' is needed"),
        ("cifar10", {"path": 5}, "path must be text, found 5"),
    ],
)
def test_wrong_names_and_options(name, options, said):
    with pytest.raises(ConfigError, match=said):
        load(name, **options)


def idx(data):
    return struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape) + data.tobytes()


@pytest.fixture
def disk(tmp_path):
    """Toy files of every format."""
    random = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        for kind, data in (("images-idx3", random.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n) % 10)):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(data.astype(np.uint8))))
    for head, names, count in (
        (1, [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"], 10),
        (2, ["train.bin", "test.bin"], 100),
    ):
        for name in names:
            body = random.integers(0, 256, (count, head + 3072), dtype=np.uint8)
            body[:, head - 1] = np.arange(count)
            (tmp_path / name).write_bytes(body.tobytes())
    for i in range(10):
        for part in ("train", "test"):
            (tmp_path / part / f"c{i}").mkdir(parents=True)
            Image.new("RGB", (9, 9), (20 * i, 50, 50)).save(tmp_path / part / f"c{i}" / "a.png")
    tiny = tmp_path / "tiny-imagenet-200"
    (tiny / "val" / "images").mkdir(parents=True)
    for i in range(10):
        (tiny / "train" / f"n{i}" / "images").mkdir(parents=True)
        for file in (tiny / "train" / f"n{i}" / "images" / "a.JPEG", tiny / "val" / "images" / f"{i}.JPEG"):
            Image.new("RGB", (64, 64), (9 * i, 0, 0)).save(file)
    (tiny / "wnids.txt").write_text("\n".join(f"n{i}" for i in range(10)))
    (tiny / "words.txt").write_text("\n".join(f"n{i}\tthing {i}" for i in range(10)))
    (tiny / "val" / "val_annotations.txt").write_text("\n".join(f"{i}.JPEG\tn{i}\t0" for i in range(10)))
    x, y = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10)
    save_file({"x_train": x, "y_train": y, "x_test": x, "y_test": y.clone()} | {"x_test": x.clone()}, tmp_path / "a.st")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "tasks", "classes", "shape", "augment", "mean", "std"),
    [
        ("fashion-mnist", "", 5, 10, (1, 28, 28), "none", (0.286,), (0.353,)),
        ("cifar10", "", 5, 10, (3, 32, 32), "crop-flip", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2615)),
        ("cifar100", "", 10, 100, (3, 32, 32), "crop-flip", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ("tiny-imagenet", "", 10, 10, (3, 64, 64), "crop-flip", (0.4802, 0.448, 0.3975), (0.277, 0.2691, 0.2821)),
        ("folder", "", 5, 10, (3, 32, 32), "none", (0.3529, 0.1961, 0.1961), (0.2253, 1.0, 1.0)),
        ("arrays", "a.st", 5, 10, (4,), "none", (), ()),
    ],
)
def test_streams_from_files(disk, name, file, tasks, classes, shape, augment, mean, std):
    stream = load(name, path=str(disk / file))
    assert (len(stream.tasks), stream.classes, stream.shape) == (tasks, classes, shape)
    assert (stream.scenario, stream.augment, stream.mean, stream.std) == ("class", augment, mean, std)
    other = load(name, path=disk / file, tasks=2, order_seed=3, scenario="online")
    assert len(other.tasks) == 2 and other.scenario == "online"
    assert [label for t in other.tasks for label in t.classes] != list(range(classes))
    with pytest.raises(DataError, match="there is no"):
        load(name, path=disk / "nowhere")


def test_options_of_folders_and_arrays(disk):
    assert load("folder", path=disk, size=8, augment="crop").shape == (3, 8, 8)
    with pytest.raises(ConfigError, match="float data has no views"):
        load("arrays", path=disk / "a.st", augment="crop")


def test_every_stream_is_listed():
    assert streams.names() == [
        "arrays", "cifar10", "cifar100", "digits", "emoji-class", "emoji-domain", "fashion-mnist", "folder",
        "tiny-imagenet",
    ]  # fmt: skip
    assert all(streams[name].__doc__ for name in streams)
