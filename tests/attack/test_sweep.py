"""Sweeps: every cell, the unprotected model beside each, going on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.guard import sets

from unteach.attack import Attack, Probes, Relearn
from unteach.attack.sweep import sweep
from unteach.core.events import Events
from unteach.diffusion import Model
from unteach.diffusion.examples import Examples
from unteach.errors import CheckpointError, ConfigError, DataError
from unteach.records.attack import UNPROTECTED, Curve


class Heard(Events):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, stage: str, done: int, total: int) -> None:
        self.steps.append((stage, done, total))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def grid(tiny: Model) -> dict[str, Any]:
    names = [name for name, _ in tiny.denoiser.named_parameters()]
    return {
        "data": sets.examples(tiny, "attack", sets.ILLEGAL, 3),
        "probes": Probes({"illegal": sets.examples(tiny, "illegal", sets.ILLEGAL, 2, " probe")}, draws=1),
        "masks": {"half": names[::2], "none": []},
        "attacks": [
            Relearn(mode=mode, learning_rate=rate, steps=3, eval_steps=(1, 3), batch_size=2)
            for mode in ("full", "lora")
            for rate in (1e-3, 3e-3)
        ],
    }


def test_a_sweep_is_its_attacks_and_goes_on(
    tiny: Model, grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    run = Attack.run

    def counted(*args: Any, **kwargs: Any) -> Curve:
        calls.append(kwargs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(Attack, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, out=tmp_path, honoured=(True, False), **grid)
    assert len(list(tmp_path.glob("*.json"))) == 3
    heard = Heard()
    records = sweep(tiny, out=tmp_path, honoured=(True, False), events=heard, **grid)
    # 2 modes x 2 rates x (unprotected, half kept, half ignored; "none" kept is the unprotected cell, ignored is not)
    assert len(calls) == 4 + 16 - 3 and len(list(tmp_path.glob("*.json"))) == 16
    assert heard.messages[-1].endswith(": 20 of 20") and len(records) == 20
    heard = Heard()
    sweep(tiny, out=tmp_path / "b", events=heard, **grid | {"attacks": grid["attacks"][2:], "masks": {}})
    assert [(stage[-8:], *n) for stage, *n in heard.steps] == [
        (f"attack {cell}", step, 3) for cell in (1, 2) for step in (1, 2, 3)
    ]
    monkeypatch.setattr(Attack, "run", None)  # all is there: nothing runs
    assert sweep(tiny, out=tmp_path, honoured=(True, False), **grid) == records
    for place in range(4):
        plain, kept, ignored, none, _ = records[5 * place : 5 * place + 5]
        assert plain.mask == UNPROTECTED and plain.at == (0, 1, 3) and plain.domain == "attack"
        assert plain.recovery["illegal"][2] in (1.0, None)
        assert ignored.losses == plain.losses == none.losses != kept.losses
        assert kept.honoured and not ignored.honoured and kept.frozen_tensors == 61
    monkeypatch.undo()
    direct = replace(grid["attacks"][0], eval_steps=(1,)).run(
        tiny, grid["data"], grid["probes"], frozen=grid["masks"]["half"]
    )
    assert direct.losses == records[1].losses


def test_damaged_and_foreign_cells_are_refused(tiny: Model, grid: dict[str, Any], tmp_path: Path) -> None:
    small = grid | {"attacks": grid["attacks"][:1], "masks": {}}
    sweep(tiny, out=tmp_path, **small)
    (path,) = tmp_path.glob("*.json")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        sweep(tiny, out=tmp_path, **small)
    for key, value in {
        "more": 1,
        "data": 5,
        "losses": [1],
        "at": [0],
        "mode": "half",
        "steps": "3",
        "seconds": None,
        "probes": {"a": 1},
    }.items():  # L4: cells with other keys or other kinds of values were tracebacks
        content = json.loads(text)
        content["curve"][key] = value
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"is damaged.*delete it and run again"):
            sweep(tiny, out=tmp_path, **small)
        del content["curve"][key]
        path.write_text(json.dumps(content))
        if key != "more":
            with pytest.raises(CheckpointError, match=f"missing key '{key}'"):
                sweep(tiny, out=tmp_path, **small)
    content = json.loads(text)
    content["cell"]["rate"] = 5.0
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not the cell"):
        sweep(tiny, out=tmp_path, **small)


def test_a_sweep_is_checked_before_anything_runs(tiny: Model, grid: dict[str, Any], tmp_path: Path) -> None:
    for wrong in ({"masks": {UNPROTECTED: []}}, {"attacks": ()}, {"honoured": ()}):
        with pytest.raises(ConfigError, match="a sweep needs"):
            sweep(tiny, out=tmp_path, **grid | wrong)
    overlapping: Examples = grid["data"].rows([0])
    with pytest.raises(DataError):
        sweep(tiny, out=tmp_path, mask_data=[overlapping], **grid)
    assert not list(tmp_path.iterdir())
