"""The engine against loops written out by hand, and across interruptions."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.continual import tiny
from torch import nn

from unteach.continual import augment, engine, networks
from unteach.continual.engine import Outcome, Trainer
from unteach.continual.plugins import plugins
from unteach.continual.step import StepContext
from unteach.continual.streams import with_scenario
from unteach.continual.view import View
from unteach.core import state
from unteach.errors import CheckpointError, NumericsError

ROOT = Path(__file__).parents[2]


OFF: list[tuple[str, dict[str, Any]]] = [
    ("fine-tune", {}),
    ("er", {"alpha": 0.0}),
    ("der++", {"alpha": 0.0, "beta": 0.0}),
    ("fdr", {"alpha": 0.0}),
    ("cpr", {"alpha": 0.0}),
    ("label-smoothing", {"epsilon": 0.0}),
    ("l2-sp", {"strength": 0.0}),
    ("ewc", {"strength": 0.0}),
    ("online-ewc", {"strength": 0.0}),
    ("si", {"strength": 0.0}),
    ("mas", {"strength": 0.0}),
    ("rwalk", {"strength": 0.0}),
    ("laplace", {"strength": 0.0}),
    ("kronecker-laplace", {"strength": 0.0}),
    ("der++ + online-ewc", {"alpha": 0.0, "beta": 0.0, "strength": 0.0}),
]


@pytest.mark.parametrize(("name", "off"), OFF, ids=[name for name, _ in OFF])
def test_everything_off_is_plain_training_bit_for_bit(name: str, off: dict[str, Any]) -> None:
    settings = tiny.training(epochs=2, momentum=0.9, weight_decay=1e-3)
    host = tiny.method(name, **off)
    expected = tiny.plain(tiny.stream(), settings)
    tiny.assert_weights(tiny.run(host, training=settings).model, expected)
    tiny.assert_weights(tiny.run(host, plugins.make("refresh", gamma=0.0), training=settings).model, expected)
    if off:
        assert tiny.differs(tiny.run(name, training=settings), tiny.run(host, training=settings))


def test_the_layout_of_the_images_changes_nothing_but_rounding() -> None:
    inner, outer = (tiny.training(epochs=2, channels_last=last) for last in (True, False))
    runs = [tiny.run("fine-tune", training=settings) for settings in (inner, outer)]
    for outcome, settings in zip(runs, (inner, outer), strict=True):
        tiny.assert_weights(outcome.model, tiny.plain(tiny.stream(), settings))
    for a, b in zip(*(outcome.learner.params for outcome in runs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_milestones_clipping_and_a_batch_that_does_not_divide() -> None:
    stream = tiny.stream(each=20)
    settings = tiny.training(epochs=4, milestones=[1, 3], lr_decay=0.5, clip=0.3)
    outcome = tiny.run("fine-tune", on=stream, training=settings)
    tiny.assert_weights(outcome.model, tiny.plain(stream, settings))
    assert tiny.differs(outcome, tiny.run("fine-tune", on=stream, training=tiny.training(epochs=4)))
    assert outcome.learner.lr == 0.05 * 0.25 and outcome.passes == 2 * 4 * 3


def test_one_pass_measures_what_a_loop_over_samples_measures() -> None:
    stream, settings = tiny.stream(tasks=3), tiny.training(epochs=2)
    outcome = tiny.run("fine-tune", on=stream, training=settings)
    for t, row in enumerate(outcome.rows):
        model = tiny.plain(dataclasses.replace(stream, tasks=stream.tasks[: t + 1]), settings)
        seen = {c for task in stream.tasks[: t + 1] for c in task.classes}
        shares: dict[str, list[float]] = {"class_il": [], "class_il_all_heads": [], "task_il": []}
        sure: list[tuple[float, bool]] = []
        nats: list[float] = []
        for task in stream.tasks:
            hits = dict.fromkeys(shares, 0)
            for x, y in zip(task.test_x, task.test_y.tolist(), strict=True):
                with torch.no_grad():
                    out = model(augment.normalise(x[None], stream.mean, stream.std))[0].tolist()
                answers = {
                    "class_il": max(seen, key=lambda c: out[c]),
                    "class_il_all_heads": max(range(stream.classes), key=lambda c: out[c]),
                    "task_il": max(task.classes, key=lambda c: out[c]),
                }
                hits = {key: hits[key] + (answer == y) for key, answer in answers.items()}
                if y in seen:
                    p = torch.tensor([out[c] for c in sorted(seen)], dtype=torch.float64).softmax(0).tolist()
                    sure.append((max(p), answers["class_il"] == y))
                    nats.append(-torch.tensor(p[sorted(seen).index(y)]).log().item())
            for key, count in hits.items():
                shares[key].append(count / len(task.test_y))
        assert {key: getattr(row, key) for key in shares} == shares
        bins: dict[int, list[tuple[float, bool]]] = {}
        for confidence, hit in sure:
            bins.setdefault(min(14, int(confidence * 15)), []).append((confidence, hit))
        gaps = [abs(sum(h - c for c, h in one)) for one in bins.values()]
        assert row.ece == pytest.approx(sum(gaps) / len(sure), abs=1e-6)
        assert row.nll == pytest.approx(sum(nats) / len(nats), abs=1e-5)


def test_the_head_that_is_asked_for_answers() -> None:
    seen, every = tiny.run("er"), tiny.run("er", training=tiny.training(head="all"))
    assert [row.class_il for row in every.rows] == [row.class_il_all_heads for row in every.rows]
    assert seen.rows[0].class_il[1] == 0  # classes that are not seen yet are no answer
    assert [row.task_il for row in seen.rows] == [row.task_il for row in every.rows]
    assert seen.untrained == every.untrained


# interruptions


KILLED = [("der++", "none", 10), ("online-ewc", "refresh", 9), ("si", "sam", 7)]


@pytest.mark.parametrize(("name", "plugin", "before"), KILLED, ids=[name for name, _, _ in KILLED])
def test_killed_within_a_task_it_goes_on_bit_for_bit(name: str, plugin: str, before: int, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "continual" / "engine_script.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(tmp_path), name, plugin, str(before)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    steps = state.load(tmp_path / "state.safetensors")[1]["step"]
    assert 6 < steps < before + 1 or (steps == 4 and before < 8)
    settings = tiny.training(epochs=2)
    gone_on = tiny.run(name, plugin, out=tmp_path, save_every=4, training=settings)
    tiny.assert_same(gone_on, tiny.run(name, plugin, training=settings))


@pytest.mark.parametrize("name", ["vcl", "a-gem", "er"])
@pytest.mark.parametrize("before", [1, 6, 7, 11])
def test_broken_off_anywhere_it_goes_on(
    name: str, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.run(name, training=tiny.training(epochs=2, momentum=0.9))
    tiny.assert_same(whole, tiny.resumed(name, None, tmp_path, monkeypatch, before=before, every=1))


def test_a_finished_run_gives_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.run("der++", "refresh", out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "step", None)  # nothing is trained
        tiny.assert_same(first, tiny.run("der++", "refresh", out=tmp_path))


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    tiny.run("er", out=tmp_path)
    other: list[tuple[Any, Any, dict[str, Any], str]] = [
        ("der", None, {}, "method"),
        (tiny.method("er", alpha=0.5), None, {}, "alpha"),
        ("er", "sam", {}, "plug-in"),
        ("er", None, {"seed": 1}, "seed"),
        ("er", None, {"training": tiny.training(learning_rate=0.01)}, "learning_rate"),
        ("er", None, {"options": {"width": 8}}, "width"),
        ("er", None, {"on": tiny.stream(seed=1)}, "digest"),
        ("er", None, {"on": tiny.stream("task")}, "scenario"),
    ]
    for host, plugin, arguments, word in other:
        with pytest.raises(CheckpointError, match=word):
            tiny.run(host, plugin, out=tmp_path, **arguments)
    path = tmp_path / "state.safetensors"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-5] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(changed), b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            tiny.run("er", out=tmp_path)
        assert path.read_bytes() == damaged  # it is left for its owner to look at
    path.write_bytes(whole)
    tiny.run("er", out=tmp_path)


# precision, progress


def test_bf16_trains_in_half_and_keeps_whole_weights() -> None:
    half, full = (tiny.run("der++", training=tiny.training(precision=p)) for p in ("bf16", "fp32"))
    assert all(p.dtype == torch.float32 and bool(torch.isfinite(p).all()) for p in half.learner.params)
    assert half.learner.forward(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
    assert tiny.differs(half, full)
    gap = torch.cat([(a - b).flatten() for a, b in zip(half.learner.params, full.learner.params, strict=True)])
    assert gap.abs().max() < 0.1


def test_dropout_is_drawn_from_the_seed_and_the_step() -> None:
    def net(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))

    torch.manual_seed(0)
    first = tiny.run("er", network=net)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    tiny.assert_same(first, tiny.run("er", network=net))
    assert torch.equal(before, torch.get_rng_state())


def test_the_log_and_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        outcome = tiny.run("er", plugins.make("refresh", gamma=0.1), out=tmp_path)
    assert "gamma" in caplog.text and outcome.warnings
    (last,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert last["step"] == 6 and last["task"] == 1 and last["loss"] > 0 and "unlearn_ratio" in last


def test_divergence_is_an_error_that_says_so() -> None:
    with pytest.raises(NumericsError, match="not finite"):
        tiny.run("fine-tune", training=tiny.training(learning_rate=1e30))


def test_a_step_by_hand_is_the_plugins_view_of_it() -> None:
    """Same batch and same draws for every gradient of a step; frozen statistics stay."""
    stream = tiny.stream()
    net = networks.build("small-conv", stream.shape, stream.classes, 0, width=4)
    trainer = Trainer(stream, tiny.method("er"), network=net, training=tiny.training(), device="cpu")
    learner = trainer.learner
    assert learner.memory is not None
    learner.memory.insert(*learner.data[0], task=0, step=0)
    batch = next(learner.batches("test"))
    host = StepContext(learner, trainer.objective, View(learner, batch, 0))
    statistics = [b.clone() for b in net.buffers()]
    first, again = host.gradient(frozen_stats=True), host.gradient(frozen_stats=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None and b is not None)
    assert all(torch.equal(a, b) for a, b in zip(statistics, net.buffers(), strict=True))
    parts = [host.gradient(which, frozen_stats=True) for which in ("current", "memory")]
    for whole, current, memory in zip(first, *parts, strict=True):
        assert whole is not None and current is not None and memory is not None
        torch.testing.assert_close(whole, current + memory, atol=1e-6, rtol=1e-5)
    host.gradient()
    assert not all(torch.equal(a, b) for a, b in zip(statistics, net.buffers(), strict=True))


def test_the_scenario_of_a_stream_changes_nothing_else() -> None:
    a: Outcome = tiny.run("er")
    b = tiny.run("er", on=with_scenario(tiny.stream(), "online"))
    assert not tiny.differs(a, b)
