"""What refresh remembers, and what a run that was interrupted knows."""

import copy

import pytest
import torch
from tests.continual.hosts import Run, end_task, network, train

from unteach.continual.plugins import plugins
from unteach.continual.plugins.controls import Plain
from unteach.continual.plugins.refresh import Refresh
from unteach.core import state
from unteach.errors import CheckpointError

PRESETS = ["refresh", "refresh-paper", "refresh-paper-quiet", "refresh-official-code"]


# ---- Fisher information ----


@pytest.mark.parametrize("kind", ["exact", "empirical", "sampled", "official", "kronecker"])
def test_the_preconditioner_comes_from_the_tasks_that_ended(kind: str) -> None:
    run = Run(network(norm=True))
    running = Refresh(preconditioner=kind, damping=0.1, tau=0.5).start(run)
    train(running, run, 2)
    assert not any(name.startswith("curvature.") for name in running.state_dict())
    buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    end_task(running, run)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in run.model.named_buffers())
    assert run.model.training
    first = running.state_dict()
    end_task(running, run)  # no training in between, other data
    second = running.state_dict()
    fresh = Refresh(preconditioner=kind, damping=0.1, tau=0.5).start(run)
    run.task -= 1
    fresh.end_task(run)
    new = fresh.state_dict()
    names = [name for name in new if name.startswith("curvature.")]
    assert names
    for name in names:
        assert torch.all(torch.isfinite(new[name])) and torch.any(new[name] != 0)
        torch.testing.assert_close(second[name], new[name] + 0.5 * first[name])
    # Where F is large the climb is short.
    _, (record,) = train(running, run, 1)
    assert float(record["precond_spread"]) > 1e-3


def test_fisher_samples_limit_the_data() -> None:
    asked = []

    class Asked(Run):
        def batches(self, purpose: str, *, augment: bool = False, limit: int | None = None):
            asked.append((augment, limit))
            return super().batches(purpose, augment=augment, limit=limit)

    for settings in (Refresh(fisher_samples=32), plugins.make("refresh-official-code")):
        run = Asked()
        end_task(settings.start(run), run)
    assert asked == [(False, 32), (True, None)]


# ---- state ----


@pytest.mark.parametrize(
    ("preset", "extra"), [*((preset, {}) for preset in PRESETS), ("refresh", {"preconditioner": "kronecker"})]
)
def test_interrupted_equals_unbroken(preset: str, extra: dict[str, str], tmp_path) -> None:
    settings = plugins.make(preset, **extra)
    whole = Run()
    running, _ = train(settings, whole, 3)
    end_task(running, whole)
    train(running, whole, 2)
    state.save(tmp_path / "s.safetensors", running.state_dict(), {})
    resumed = Run(task=whole.task, index=whole.index)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    train(running, whole, 3)
    running.end_task(whole)
    other = settings.start(resumed)
    other.load_state_dict(state.load(tmp_path / "s.safetensors")[0])
    train(other, resumed, 3)
    other.end_task(resumed)
    assert torch.equal(whole.weights(), resumed.weights())
    assert other.warnings() == running.warnings()
    ours, theirs = running.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_foreign_state_is_refused() -> None:
    run = Run()
    running = Refresh().start(run)
    end_task(running, run)
    taken = running.state_dict()
    with pytest.raises(CheckpointError, match="does not fit"):
        Refresh(preconditioner="none").start(run).load_state_dict(taken)
    with pytest.raises(CheckpointError, match="does not fit"):
        Refresh().start(run).load_state_dict({name: value for name, value in taken.items() if "bias" not in name})
    with pytest.raises(CheckpointError, match="not whole"):
        Refresh().start(run).load_state_dict({})
    with pytest.raises(CheckpointError, match="another plug-in"):
        Plain().start(run).load_state_dict(taken)
