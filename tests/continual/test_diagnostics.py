"""What a run says of its unlearn steps, in numbers and in words."""

from collections.abc import Sequence

import pytest
import torch
from tests.continual.hosts import Caught, Run, curvature, end_task, primed, train
from torch import Tensor

from unteach.continual.plugins import plugins
from unteach.continual.plugins.refresh import Refresh

# ---- diagnostics and warnings ----


def test_diagnostics_by_hand() -> None:
    settings = Refresh(gamma=0.02, damping=0.2, loss="current", noise=0.1)
    run = Caught(task=1)
    f = curvature(run)
    slope = torch.autograd.grad(run.loss("current"), run.params)
    p = torch.cat([(1 / (f[name] + 0.2)).reshape(-1) for name in run.names])
    flat = torch.cat([g.reshape(-1) for g in slope])
    noise = 0.02 * 0.1 * p * torch.randn(len(p), generator=run.generator("refresh"), dtype=torch.float64)
    record = primed(settings, run, f).step(run)
    relearn = torch.cat([g.reshape(-1) for g in run.caught])
    descent = run.lr * relearn.norm()
    assert float(record["unlearn_ratio"]) == pytest.approx(float((0.02 * p * flat).norm() / descent))
    assert float(record["noise_ratio"]) == pytest.approx(float(noise.norm() / descent))
    assert float(record["precond_spread"]) == pytest.approx(float((p - p.mean()).abs().max()))
    move = 0.02 * p * flat + noise - run.lr * relearn
    assert float(record["cancelling"]) == float(move @ -flat < 0) == 0
    assert all(value.shape == () for value in record.values())


def test_a_climb_longer_than_the_descent_is_seen() -> None:
    for gamma, expected in ((0.5, 1.0), (0.01, 0.0)):
        run = Caught()
        _, (record,) = train(Refresh(gamma=gamma, loss="host"), run, 1)
        assert float(record["cancelling"]) == expected
    run = Caught()
    _, (record,) = train(Refresh(gamma=0.5, loss="host", restore=True), run, 1)
    assert float(record["cancelling"]) == 0  # undone


def test_with_several_climbs_the_first_slope_is_the_reference() -> None:
    class Scripted(Caught):
        def gradient(self, loss: str = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
            factor = next(self.script)
            return [factor * torch.ones_like(param) for param in self.params]

    run = Scripted()
    run.script = iter([1.0, -3.0, 0.0])  # up along the first, back along the second; nothing is relearned
    _, (record,) = train(Refresh(gamma=0.1, steps=2), run, 1)
    assert float(record["cancelling"]) == 0


class Meta(Run):
    """On torch's meta device there are no values, so whatever reads one back fails."""

    def __post_init__(self) -> None:
        self.model.to("meta")
        super().__post_init__()

    def gradient(self, loss: str = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        return [torch.empty_like(param) for param in self.params]

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        pass


@pytest.mark.parametrize("name", [*plugins, *plugins.presets])
def test_no_step_waits_for_the_device(name: str) -> None:
    run = Meta(task=1)
    _, records = train(plugins.make(name), run, 2)
    assert all(value.is_meta for record in records for value in record.values())
    for normalise in ("global", "per-tensor") if name == "refresh" else ():
        train(plugins.make(name, normalise=normalise, restore=True, steps=2), run, 2)
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.empty((), device="meta"))


def told(settings: Refresh, steps: int = 5, **run_settings: float) -> tuple[list[str], list[str]]:
    run = Run(**run_settings)
    running, _ = train(settings, run, 0)
    first = running.warnings()
    train(running, run, steps)
    end_task(running, run)
    return first, running.warnings()


def test_a_sound_setting_is_not_warned_about() -> None:
    assert told(Refresh(gamma=0.03)) == ([], [])


def test_an_inert_step_is_announced() -> None:
    first, after = told(Refresh(gamma=1e-6, preconditioner="none"))
    assert first == []
    (message,) = after
    assert message.startswith("refresh: in task 1 the unlearn step was") and "raise gamma" in message


def test_noise_is_not_inert() -> None:
    assert told(Refresh(gamma=1e-6, temperature=1.0, preconditioner="none")) == ([], [])


def test_a_flat_preconditioner_is_announced() -> None:
    first, after = told(plugins.make("refresh-official-code", gamma=1e-3))
    assert first == []
    (message,) = after
    assert "the Fisher information makes no difference" in message and "preconditioner='none'" in message


def test_a_climb_that_outweighs_the_descent_is_announced_before_and_after() -> None:
    first, after = told(Refresh(gamma=0.3, loss="host", preconditioner="none"))
    assert len(first) == 1 and "3 times the learning rate 0.1" in first[0]
    assert len(after) == 2  # what is to come is not said again
    assert "100% of the steps" in after[0]
    assert "in task 1 γ·max P came to 3 times the learning rate" in after[1]
    # J climbs count J times; undone or rescaled climbs are not step sizes.
    assert told(Refresh(gamma=0.06, steps=2, preconditioner="none"), 0)[0]
    assert not told(Refresh(gamma=0.3, restore=True, preconditioner="none"), 0)[0]
    assert not told(Refresh(gamma=0.3, normalise="per-tensor", preconditioner="none"), 0)[0]


def test_the_papers_preset_warns_once_it_has_a_fisher_information() -> None:
    first, after = told(plugins.make("refresh-paper"), 1)
    assert first == []
    assert any("γ·max P" in message and "raise damping" in message for message in after)
    assert not any("γ·max P" in message for message in told(plugins.make("refresh-paper-quiet"), 1)[1])


def test_a_falling_learning_rate_is_noticed() -> None:
    run = Run(lr=0.1)
    running, _ = train(Refresh(gamma=0.03, preconditioner="none"), run, 3)
    run.lr = 0.01
    train(running, run, 1)
    run.lr = 0.1
    end_task(running, run)
    (message,) = running.warnings()
    assert "came to 3 times" in message and "gamma_unit='lr'" in message


def test_a_summary_of_the_task() -> None:
    run = Run(task=1)
    f = curvature(run)
    running = primed(Refresh(gamma=0.02, damping=0.2, temperature=1e-3), run, f)
    assert running.summary() == {}
    _, records = train(running, run, 5)
    columns = {key: sorted(float(record[key]) for record in records) for key in records[0]}
    expected = {key: values[2] for key, values in columns.items()} | {"cancelling": sum(columns["cancelling"]) / 5}
    assert running.summary() == pytest.approx(expected)
    end_task(running, run)
    assert running.summary() == pytest.approx(expected)
    end_task(running, run)
    assert running.summary() == {}


def test_a_stream_without_ends_of_tasks_is_judged_as_it_goes() -> None:
    run = Run()
    running, _ = train(Refresh(gamma=1e-6, preconditioner="none"), run, 3)
    (message,) = running.warnings()
    assert message.startswith("refresh: so far the unlearn step was")
