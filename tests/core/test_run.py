"""A folder belongs to one configuration: it goes on, grows, or refuses with what differs."""

import json
from pathlib import Path
from typing import Any, Self

import pytest

from unteach.core.run import CONFIG, COST, Run, same, seconds_spent
from unteach.errors import CheckpointError, ConfigError

CONFIGURATION = {"method": "doco", "settings": {"steps": 5, "lr": 1e-4}, "concepts": [{"target": "bomb"}], "seeds": [0]}


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(int(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(str(self.value))


def run(folder: Path, **changes: Any) -> Run:
    return Run(folder, {**CONFIGURATION, **changes}, grows=("seeds",), stages=("work", "number.txt"))


def test_the_same_configuration_goes_on_and_a_stage_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Number:
        made.append(1)
        return Number(7)

    for known in (False, True):
        here = run(tmp_path / "out")
        assert (here.known, here.begun(), here.finished()) == (known, known, known)
        with here.working():
            assert here.stage("number.txt", Number, make).value == 7
    assert made == [1] and json.loads((tmp_path / "out" / CONFIG).read_text()) == CONFIGURATION
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([CONFIG, COST, "number.txt"])


def test_another_configuration_is_refused_with_every_difference_and_nothing_changes(tmp_path: Path) -> None:
    with run(tmp_path).working():
        (tmp_path / "work").touch()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError) as error:
        run(tmp_path, settings={"steps": 6, "lr": 1e-4}, concepts=[{"target": "skull"}])
    assert "concepts[0].target was 'bomb', is now 'skull'; settings.steps was 5, is now 6" in str(error.value)
    assert "lr" not in str(error.value) and str(tmp_path) in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_lists_that_may_grow_do_and_do_not_shrink(tmp_path: Path) -> None:
    with run(tmp_path).working():
        (tmp_path / "work").touch()
    with run(tmp_path, seeds=[1, 0]).working():
        pass
    assert json.loads((tmp_path / CONFIG).read_text())["seeds"] == [1, 0]
    with pytest.raises(CheckpointError, match="seeds"):
        run(tmp_path, seeds=[0])


def test_only_the_decisive_keys_count() -> None:
    same("there", {"a": 1, "device": "cpu"}, {"a": 1, "device": "cuda"}, keys=("a",))
    with pytest.raises(CheckpointError, match=r"there holds another evaluation.*a was 1, is now 2"):
        same("there", {"a": 1}, {"a": 2}, what="evaluation")
    with pytest.raises(CheckpointError, match="found: no configuration"):
        same("there", None, {})


def test_refused_before_anything_was_made_the_folder_is_as_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError), run(out).working():
        raise ConfigError("wrong after all")
    assert not out.exists()
    with pytest.raises(ConfigError), run(out).working():
        (out / "work").touch()
        raise ConfigError("wrong in the middle")
    assert run(out).known and seconds_spent(out) is not None


def test_stages_without_a_configuration_get_it_only_when_the_work_is_done(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with pytest.raises(CheckpointError), run(tmp_path).working():
        raise CheckpointError("not yours")
    assert not (tmp_path / CONFIG).exists() and not (tmp_path / COST).exists()
    with run(tmp_path).working():
        assert not (tmp_path / CONFIG).exists()
    assert (tmp_path / CONFIG).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": -1}', '{"seconds": true}', '{"seconds": 1e999}'])
def test_a_damaged_cost_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / COST).write_text(text)
    assert seconds_spent(tmp_path) is None


def test_a_configuration_of_which_nothing_was_made_keeps_nobody_out(tmp_path: Path) -> None:
    with run(tmp_path).working():
        pass
    other = run(tmp_path, method="uce")
    assert not other.known
    with other.working():
        (tmp_path / "work").touch()
    assert json.loads((tmp_path / CONFIG).read_text())["method"] == "uce"
