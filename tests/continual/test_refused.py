"""What the engine refuses before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.continual import tiny
from torch import Tensor, nn

from unteach.continual import streams
from unteach.continual.engine import learn
from unteach.continual.methods import make
from unteach.continual.plugins import plugins
from unteach.continual.streams import Stream, Task
from unteach.errors import ConfigError, DataError, ModelError, UnteachError


def pictures(n: int = 8, *, shape: tuple[int, ...] = (1, 8, 8), classes: int = 2) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, *shape, dtype=torch.uint8), torch.arange(n) % classes


def one(name: str, classes: int = 2, **changes: Any) -> Stream:
    x, y = pictures()
    task = Task(**{"name": name, "x": x, "y": y, "test_x": x.clone(), "test_y": y.clone(), **changes})
    return Stream("own", "class", (task,), classes, tuple("abcdefgh"[:classes]), (0.5,), (0.5,))


WRONG_DATA: dict[str, tuple[Any, str]] = {
    "no label for a sample": (lambda: one("a", y=pictures(7)[1]), "one label a sample"),
    "no channels": (lambda: one("a", x=torch.zeros(8, 8, 8, dtype=torch.uint8)), "uint8"),
    "test pictures of another size": (lambda: one("a", test_x=pictures(shape=(1, 9, 9))[0]), "different kinds"),
    "a label outside the head": (lambda: one("a", y=torch.arange(8)), "label outside"),
    "a label below 0": (lambda: one("a", y=torch.arange(8) - 1), "0 or more"),
    "labels that are no whole numbers": (lambda: one("a", y=torch.zeros(8)), "int64"),
    "an empty task": (lambda: one("a", x=pictures(0)[0], y=pictures(0)[1]), "no samples"),
    "an empty test": (lambda: one("a", test_x=pictures(0)[0], test_y=pictures(0)[1]), "no samples"),
    "no task": (lambda: Stream("own", "class", (), 2, ("a", "b"), (0.5,), (0.5,)), "no tasks"),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_wrong_data_is_refused(case: str) -> None:
    build, words = WRONG_DATA[case]
    with pytest.raises(DataError, match=words):
        tiny.run("fine-tune", on=build())


@pytest.mark.parametrize("policy", ["balanced", "ring"])
def test_a_buffer_smaller_than_the_classes_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"smaller than the classes.*4 classes.*at least 4"):
        tiny.run(make("er", buffer_size=3, policy=policy))
    assert len(tiny.run(make("er", buffer_size=3)).rows) == 2  # a reservoir has no such share
    assert len(tiny.run(make("er", buffer_size=4, policy=policy)).rows) == 2


def test_a_damaged_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    x, y = pictures(classes=4)
    from safetensors.torch import save_file

    save_file({"x_train": x, "y_train": y, "x_test": x.clone(), "y_test": y.clone()}, path)
    assert len(tiny.run("er", on=streams.load("arrays", path=path, tasks=2)).rows) == 2
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:40], b"", b"\x80\x04K\x01."):
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            streams.load("arrays", path=path, tasks=2)


def test_networks_that_do_not_fit_are_refused() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match=r"4 classes.*wanted \(2, 4\)"):
        tiny.run("fine-tune", network=wide)
    with pytest.raises(ModelError, match="inputs of the stream's shape"):
        tiny.run("fine-tune", network=nn.Sequential(nn.Flatten(), nn.Linear(63, 4)))
    with pytest.raises(ConfigError, match="did you mean 'small-conv'"):
        tiny.run("fine-tune", network="smal-conv")
    with pytest.raises(ConfigError, match="width"):
        tiny.run("fine-tune", options={"wide": 4})


def test_names_and_settings_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        learn(tiny.stream(), "derr++")
    with pytest.raises(ConfigError, match="did you mean"):
        learn(tiny.stream(), "er", plugin="refrehs")
    with pytest.raises(ConfigError, match=r"(?s)epochs must be at least 1.*learning_rate must be above 0"):
        tiny.training(epochs=0, learning_rate=0.0)
    with pytest.raises(UnteachError, match="cannot be combined"):
        make("a-gem + gem")


@pytest.mark.parametrize("method", ["vcl", "vcl + er", "er + vcl", "nvcl + er"])
def test_refresh_with_a_fisher_on_variational_weights_is_refused_before_training(method: str) -> None:
    """house.md, defect 5: a combination trained a whole task first."""
    with pytest.raises(ConfigError, match="no Fisher information"):
        tiny.run(make(method), plugins.make("refresh", gamma=0.01))
    assert tiny.run(make(method), plugins.make("refresh", gamma=0.01, preconditioner="none")).rows


@pytest.mark.parametrize("method", ["fine-tune", "ewc", "a-gem", "gdumb"])
def test_refresh_of_a_memory_that_no_term_reads_is_refused(method: str) -> None:
    """A sister of house.md's defect 1: it would be the host's run without a word."""
    with pytest.raises(ConfigError, match=r"no term of .* reads a memory"):
        tiny.run(make(method), plugins.make("refresh", gamma=0.01, loss="memory"))
