"""A run that was stopped, in any way and at any point, and run again is the run that was never stopped."""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unteach.core import state as files
from unteach.core.events import SILENT, Bars, Steps
from unteach.core.loop import History, Loop, Step
from unteach.errors import CheckpointError, ConfigError, NumericsError


class Stop(Exception):
    pass


class Training:
    """A small net with noise from the loop, AdamW, a schedule, and a module with running statistics."""

    def __init__(self, out: Path | None = None, steps: int = 12, dtype: torch.dtype = torch.float32, **settings: Any):
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.norm = nn.BatchNorm1d(1).to(dtype)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05, weight_decay=0.1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + 0.2 * step))
        self.called: list[int] = []
        settings = {"save_every": 3, "log_every": 2, "seed": 1, "config": {"rate": 0.05}, **settings}
        self.loop = Loop(
            steps=steps,
            params=dict(self.net.named_parameters()),
            state={"optimizer": self.optimizer, "schedule": self.schedule, "norm": self.norm},
            out=out,
            **settings,
        )

    def step(self, s: Step) -> Mapping[str, float | Tensor]:
        self.called.append(s.index)
        params = list(self.net.parameters())
        items = s.items(6)
        x = s.randn("x", (4,), items).to(params[0].dtype)
        mask = (s.rand("drop", (4,), items) > 0.2).to(x.dtype)
        pick = s.randint("pick", 4, items)
        y = self.norm(self.net(x * mask)).squeeze(1)
        loss = ((y - x.gather(1, pick[:, None]).squeeze(1)) ** 2).mean()
        grads = s.reduce(torch.autograd.grad(loss, params))
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss, "rate": self.schedule.get_last_lr()[0]}

    def run(self) -> History:
        return self.loop.run(self.step)

    def everything(self) -> str:
        """A digest of all that training changes."""
        tensors = {f"net/{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"norm/{k}": v for k, v in self.norm.state_dict().items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in entry.items()}
        return files.fingerprint([files.digest(tensors), self.schedule.state_dict(), self.schedule.get_last_lr()])


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_at(step: int, error: type[BaseException] = Stop) -> Callable[[int], None]:
    def on_step(done: int) -> None:
        if done == step:
            raise error

    return on_step


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, float]], bytes]:
    """The end, the log and the checkpoint of the run that was never stopped."""
    out = tmp_path_factory.mktemp("unbroken")
    training = Training(out)
    history = training.run()
    assert history.records == lines(out)
    return training.everything(), history.records, (out / "state.safetensors").read_bytes()


# ----------------------------------------------------------------------------------------------- a plain run


def test_a_run_calls_every_step_once_and_learns(tmp_path: Path) -> None:
    training = Training(tmp_path / "deep" / "out", steps=12)
    begin = time.monotonic()
    history = training.run()
    assert training.called == list(range(12))
    assert [record["step"] for record in history.records] == [2, 4, 6, 8, 10, 12]
    assert history.records[-1]["loss"] < history.records[0]["loss"]
    assert history.resumed_from == 0 and 0 < history.seconds <= time.monotonic() - begin
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == ["log.jsonl", "state.safetensors"]


def test_the_log_file_holds_the_records(tmp_path: Path) -> None:
    training = Training(tmp_path, steps=5, log_every=2)
    history = training.run()
    assert lines(tmp_path) == history.records
    assert [record["step"] for record in history.records] == [2, 4, 5]  # the last step is always there
    assert all(set(record) == {"step", "loss", "rate"} for record in history.records)
    assert history.records[1]["rate"] == 0.05 / (1 + 0.2 * 4)


def test_without_a_folder_the_result_is_the_same_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: tuple[str, list[dict[str, float]], bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    training = Training(None)
    assert training.loop.path is None
    assert training.run().records == unbroken[1] and training.everything() == unbroken[0]
    assert list(tmp_path.iterdir()) == []


def test_how_often_it_saves_and_logs_changes_nothing(
    unbroken: tuple[str, list[dict[str, float]], bytes],
) -> None:
    training = Training(None, save_every=1, log_every=5)
    records = training.run().records
    assert training.everything() == unbroken[0]
    assert [record["step"] for record in records] == [5, 10, 12] and records[1:] == unbroken[1][4:]


def test_the_seed_matters(unbroken: tuple[str, list[dict[str, float]], bytes]) -> None:
    training = Training(None, seed=2)
    training.run()
    assert training.everything() != unbroken[0]


@pytest.mark.parametrize(("save_every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_save_every(tmp_path: Path, save_every: int, expected: list[int]) -> None:
    found: list[int] = []

    def look(done: int) -> None:
        step = files.load(tmp_path / "state.safetensors")[1]["step"] if training.loop.path.exists() else 0  # type: ignore[union-attr]
        if step not in (0, *found):
            found.append(step)
            assert step == done

    training = Training(tmp_path, steps=5, save_every=save_every, events=Steps(look))
    training.run()
    assert found == expected


def test_no_steps(tmp_path: Path) -> None:
    training = Training(tmp_path / "out", steps=0)
    before = training.everything()
    history = training.run()
    assert (history.records, history.resumed_from, training.called) == ([], 0, [])
    assert training.everything() == before and not (tmp_path / "out").exists()


def test_values_may_be_numbers_or_tensors_and_need_no_loss() -> None:
    def step(s: Step) -> dict[str, float | Tensor]:
        return {"a": s.index, "b": torch.tensor(0.5), "norm": math.inf}

    records = Loop(steps=2, seed=0, params={}, log_every=1).run(step).records
    assert records == [
        {"step": 1, "a": 0, "b": 0.5, "norm": math.inf},
        {"step": 2, "a": 1, "b": 0.5, "norm": math.inf},
    ]


def test_the_library_is_silent_and_the_bar_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    Training(None, steps=3).run()
    assert capfd.readouterr() == ("", "")
    Training(None, steps=3, events=Bars(), label="toy erasure").run()
    out, err = capfd.readouterr()
    assert out == "" and "toy erasure: 100%" in err and "3/3" in err and "loss=" in err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "number of steps is negative; found: -1"),
        ({"save_every": 0}, "start at 1"),
        ({"log_every": 0}, "start at 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(None, **settings)  # type: ignore[arg-type]


def test_a_configuration_that_cannot_be_compared_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="a Linear cannot be part of a configuration"):
        Loop(steps=1, seed=0, params={}, config={"net": nn.Linear(1, 1)})


# -------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("save_every", [1, 3, 5, 50])
@pytest.mark.parametrize("stops", [(1,), (4,), (6,), (11,), (2, 5, 10)])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_stopped_and_run_again_is_unbroken(
    tmp_path: Path,
    stops: tuple[int, ...],
    save_every: int,
    error: type[BaseException],
    unbroken: tuple[str, list[dict[str, float]], bytes],
) -> None:
    for stop in stops:
        with pytest.raises(error):
            Training(tmp_path, save_every=save_every, events=Steps(stop_at(stop, error))).run()
    training = Training(tmp_path, save_every=save_every)
    history = training.run()
    last = stops[-1] // save_every * save_every
    assert history.resumed_from == last and training.called == list(range(last, 12))
    assert training.everything() == unbroken[0]
    assert history.records == lines(tmp_path) == unbroken[1]
    assert (tmp_path / "state.safetensors").read_bytes() == unbroken[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_resuming_is_exact_in_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = Training(None, dtype=dtype)
    whole.run()
    with pytest.raises(Stop):
        Training(tmp_path, dtype=dtype, events=Steps(stop_at(7))).run()
    training = Training(tmp_path, dtype=dtype)
    assert training.run().resumed_from == 6 and training.everything() == whole.everything()


def test_a_finished_run_is_not_run_again(tmp_path: Path, unbroken: tuple[str, list[dict[str, float]], bytes]) -> None:
    Training(tmp_path).run()
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    training = Training(tmp_path)
    history = training.run()
    assert history.resumed_from == 12 and training.called == [] and history.records == unbroken[1]
    assert training.everything() == unbroken[0]
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that was started with `nohup` or `&` ignores SIGINT from its beginning."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_middle_of_a_step_keeps_the_last_whole_state(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    interruptible: None,
    unbroken: tuple[str, list[dict[str, float]], bytes],
) -> None:
    training = Training(tmp_path)

    def step(s: Step) -> Mapping[str, float | Tensor]:
        values = training.step(s)
        if s.index == 7:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, after the update and before the step is over
        return values

    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        training.loop.run(step)
    assert "stopped in step 8 of 12; the same command goes on from step 6" in caplog.text
    assert files.load(tmp_path / "state.safetensors")[1]["step"] == 6
    again = Training(tmp_path)
    assert again.run().resumed_from == 6 and again.everything() == unbroken[0]
    assert lines(tmp_path) == unbroken[1]


def test_an_interrupt_without_a_folder_does_not_promise_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        Training(None, events=Steps(stop_at(4, KeyboardInterrupt))).run()
    assert "stopped in step 4 of 12; nothing was kept" in caplog.text


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 8, "lo', b'{"step": 8, "loss": 1.0}', b"\0\0\0", b'{"step": 6, "loss": 0.', b"[7]\n\n"],
    ids=str,
)
def test_a_line_that_was_cut_off_and_records_past_the_checkpoint_are_dropped(
    tmp_path: Path, tail: bytes, unbroken: tuple[str, list[dict[str, float]], bytes]
) -> None:
    with pytest.raises(Stop):
        Training(tmp_path, events=Steps(stop_at(7))).run()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(tail)
    (tmp_path / ".state.safetensors.abc.part").write_bytes(b"half")
    history = Training(tmp_path).run()
    assert history.records == lines(tmp_path) == unbroken[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "state.safetensors"]


def test_a_log_without_a_checkpoint_is_begun_anew(
    tmp_path: Path, unbroken: tuple[str, list[dict[str, float]], bytes]
) -> None:
    with pytest.raises(Stop):
        Training(tmp_path, save_every=50, events=Steps(stop_at(5))).run()
    assert [record["step"] for record in lines(tmp_path)] == [2, 4]
    Training(tmp_path, save_every=50).run()
    assert lines(tmp_path) == unbroken[1]


# ----------------------------------------------------------------------------- another configuration, damage


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 13}, "steps was 12, is now 13"),
        ({"seed": 2}, "seed was 1, is now 2"),
        ({"config": {"rate": 0.1}}, "rate was 0.05, is now 0.1"),
        ({"config": {"rate": 0.05, "method": {"name": "doco"}}}, "method was None, is now {'name': 'doco'}"),
        ({"config": {}}, "rate was 0.05, is now None"),
        ({"seed": 2, "config": {"rate": 0.1}}, "rate was 0.05, is now 0.1; seed was 1, is now 2"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_named(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(Stop):
        Training(tmp_path, events=Steps(stop_at(7))).run()
    (tmp_path / ".state.safetensors.abc.part").write_bytes(b"of a run that may be going on")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    training = Training(tmp_path, **settings)
    start = training.everything()
    with pytest.raises(CheckpointError, match="holds another run") as raised:
        training.run()
    assert f"found: {said}; to do: " in str(raised.value)
    assert training.everything() == start and training.called == []
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # the log too is untouched


def test_a_nested_difference_is_named_by_its_path(tmp_path: Path) -> None:
    def config(weight: float) -> dict[str, Any]:
        return {"method": {"name": "doco", "loss": {"weight": weight, "kinds": ("a", "b")}}}

    Training(tmp_path, config=config(1.0)).run()
    Training(tmp_path, config=config(1.0)).run()
    with pytest.raises(CheckpointError, match=r"found: method\.loss\.weight was 1\.0, is now 2\.0; to do"):
        Training(tmp_path, config=config(2.0)).run()


def test_what_does_not_change_the_result_may_change(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        Training(tmp_path, events=Steps(stop_at(7))).run()
    assert Training(tmp_path, save_every=2, log_every=3, label="other").run().resumed_from == 6


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        Training(tmp_path, events=Steps(stop_at(7))).run()
    path = tmp_path / "state.safetensors"
    data, log = path.read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    flipped = bytearray(data)
    flipped[-9] ^= 4
    for damaged in (data[:-1], data[: len(data) // 2], b"", bytes(flipped), b"x" + data):
        path.write_bytes(damaged)
        training = Training(tmp_path)
        start = training.everything()
        with pytest.raises(CheckpointError, match="is damaged"):
            training.run()
        assert training.everything() == start and path.read_bytes() == damaged
    assert (tmp_path / "log.jsonl").read_bytes() == log
    path.write_bytes(data)
    assert Training(tmp_path).run().resumed_from == 6


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    """The configuration is the same, the code around it is not: nothing is broadcast or half loaded."""

    def loop(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, name: str = "w", **state: Any) -> Loop:
        return Loop(
            steps=2,
            seed=0,
            params={name: nn.Parameter(torch.zeros(shape, dtype=dtype))},
            state=state,
            out=tmp_path,
        )

    def adam(count: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW([nn.Parameter(torch.zeros(2)) for _ in range(count)])

    loop((1,), adam=adam(2)).run(lambda s: {})
    for other, found in (
        (loop((3,), adam=adam(2)), r"w is \(1,\), torch.float32"),
        (loop((1,), torch.float64, adam=adam(2)), "w is"),
        (loop((1,), name="v", adam=adam(2)), r"parameters \['w'\], states \['adam'\]"),
        (loop((1,)), r"states \['adam'\]"),
        (loop((1,), adam=adam(3)), "state 'adam': "),
        (loop((1,), adam=nn.Linear(1, 1)), "state 'adam': "),
    ):
        with pytest.raises(CheckpointError, match=f"does not hold the state of this run; found: .*{found}"):
            other.run(lambda s: {})
    assert loop((1,), adam=adam(2)).run(lambda s: {}).resumed_from == 2


def test_another_unteach_file_under_that_name_is_refused(tmp_path: Path) -> None:
    files.save(tmp_path / "state.safetensors", {"w": torch.zeros(1)}, {"kind": "delta"})
    with pytest.raises(CheckpointError, match="holds another run"):
        Training(tmp_path).run()


class Box:
    """Any state that JSON and tensors can hold."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state_dict: Any) -> None:
        self.value = state_dict


def test_any_nested_state_comes_back(tmp_path: Path) -> None:
    value = {
        "numbers": [1, -2.5, True, None, "text", math.inf, -math.inf, 1e-300],
        3: {"3": torch.arange(3), 3: torch.arange(4)},
        "a/b": {"c": torch.tensor(1)},
        "a": {"b/c": torch.tensor(2)},
        "empty": {"map": {}, "list": [], "tensor": torch.empty(0)},
        "value": {"tensor": "params/w", "list": {"map": 1}},
    }

    def loop(box: Box) -> Loop:
        params = {"w": nn.Parameter(torch.zeros(1)), "state/params/a": nn.Parameter(torch.zeros(1))}
        return Loop(steps=1, seed=0, params=params, state={"params": box, "box/a": Box([1])}, out=tmp_path)

    loop(Box(value)).run(lambda s: {})
    box = Box(None)
    assert loop(box).run(lambda s: {}).resumed_from == 1

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and a == b

    assert same(value, box.value)


def test_a_state_that_cannot_be_kept_is_refused_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    box = Box({"good": 1})

    def step(s: Step) -> dict[str, float]:
        if s.index == 3:
            box.value = {"bad": object()}
        return {}

    with pytest.raises(CheckpointError, match="neither a tensor nor a plain value; found: <class 'object'>"):
        Loop(steps=6, seed=0, params={}, state={"box": box}, out=tmp_path, save_every=2).run(step)
    assert files.load(tmp_path / "state.safetensors")[1]["step"] == 2


def test_a_plateau_schedule_that_starts_at_infinity_resumes(tmp_path: Path) -> None:
    def run(stop: int | None) -> tuple[History, dict[str, Any]]:
        param = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([param], lr=1.0)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

        def step(s: Step) -> dict[str, float]:
            if s.index >= 4:
                schedule.step(1.0)
            return {"rate": optimizer.param_groups[0]["lr"]}

        loop = Loop(
            steps=12, seed=0, params={"w": param}, state={"o": optimizer, "s": schedule}, out=tmp_path,
            save_every=2, events=SILENT if stop is None else Steps(stop_at(stop)),
        )  # fmt: skip
        try:
            return loop.run(step), schedule.state_dict()
        except Stop:
            return History(), schedule.state_dict()

    run(stop=2)  # saved with best = infinity
    run(stop=9)
    history, state = run(stop=None)
    assert history.resumed_from == 8 and state["best"] == 1.0 and history.records[-1]["rate"] < 0.1


# ------------------------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "erase_loss", "loss/retain"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
    name: str,
    value: float,
    caplog: pytest.LogCaptureFixture,
    unbroken: tuple[str, list[dict[str, float]], bytes],
) -> None:
    training = Training(tmp_path)

    def step(s: Step) -> Mapping[str, float | Tensor]:
        values = dict(training.step(s))
        if s.index == 7:
            values = {"fine": 1.0, name: torch.tensor(value)}
            with torch.no_grad():
                training.net[0].weight.fill_(value)
        return values

    with pytest.raises(NumericsError) as raised, caplog.at_level(logging.ERROR):
        training.loop.run(step)
    message = str(raised.value)
    assert message.startswith("a loss is not finite at step 8 of 12; the good state of step 6 is kept in ")
    assert f"found: {{'fine': 1.0, '{name}': {value}}}" in message and "lower the learning rate" in message
    assert "training diverged at step 8" in caplog.text
    tensors, meta = files.load(tmp_path / "state.safetensors")
    assert meta["step"] == 6 and all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    again = Training(tmp_path)
    assert again.run().resumed_from == 6 and again.everything() == unbroken[0]


def test_a_loss_that_is_not_finite_is_found_in_every_step_not_only_in_logged_ones(tmp_path: Path) -> None:
    loop = Loop(steps=20, seed=0, params={}, out=tmp_path, log_every=10, save_every=10)
    with pytest.raises(NumericsError, match="at step 2 of 20; nothing was saved yet"):
        loop.run(lambda s: {"loss": math.nan if s.index == 1 else 0.0})
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize("keep", [True, False])
def test_parameters_that_are_not_finite_are_never_saved_nor_returned(tmp_path: Path, keep: bool) -> None:
    """The loss of a step is finite, its gradient is not: a square root at zero, just before a save."""
    param = nn.Parameter(torch.ones(2))

    def step(s: Step) -> dict[str, float | Tensor]:
        if s.index == 5:
            with torch.no_grad():
                param.zero_()
        loss = param.sum().sqrt()
        (grad,) = torch.autograd.grad(loss, [param])
        with torch.no_grad():
            param.sub_(0.01 * grad)
        return {"loss": loss}

    loop = Loop(steps=6, seed=0, params={"fine": nn.Parameter(torch.ones(1)), "w": param}, save_every=3,
                out=tmp_path if keep else None)  # fmt: skip
    kept = "the good state of step 3 is kept" if keep else "nothing was saved yet"
    with pytest.raises(NumericsError, match=f"a parameter is not finite at step 6 of 6; {kept}.*found: w;"):
        loop.run(step)
    if keep:
        tensors, meta = files.load(tmp_path / "state.safetensors")
        assert meta["step"] == 3 and bool(tensors["params/w"].isfinite().all())


# ----------------------------------------------------------------------------------------- shares of a batch


def test_the_items_of_all_processes_are_the_batch() -> None:
    for world in (1, 2, 4):
        shares = [Step(0, 1, 0, rank, world).items(8) for rank in range(world)]
        assert [item for share in shares for item in share] == list(range(8))


@pytest.mark.parametrize(("batch", "world"), [(5, 2), (1, 2), (8, 3)])
def test_a_batch_that_does_not_divide(batch: int, world: int) -> None:
    with pytest.raises(
        ConfigError, match=f"a batch of {batch} cannot be shared evenly by {world} processes.*multiple of"
    ):
        Step(0, 1, 0, 0, world).items(batch)


def test_one_process_reduces_to_the_same_tensors() -> None:
    tensors = [torch.rand(2), torch.rand(3)]
    assert all(a is b for a, b in zip(Step(0, 1, 0).reduce(tensors), tensors, strict=True))
    assert Step(0, 1, 0).reduce([]) == []
