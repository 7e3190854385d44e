"""No step of training waits for the device."""

import pytest
from tests.continual import tiny

from unteach.continual import engine, networks
from unteach.continual.evaluation import Evaluation
from unteach.continual.plugins import plugins

NO_WAIT = ["fine-tune", "er", "der++", "er-ace", "cpr", "si", "l2-sp", "a-gem"]
"""(A quadratic with importances looks them over once, in the first step of a task.)"""
WAITS = ["lwf", "icarl", "gem"]
"""Their steps read values back: of the set of old classes (LwF, iCaRL), of the quadratic programme (GEM)."""


def steps_on_meta(name: str, plugin: str, patch: pytest.MonkeyPatch, count: int) -> None:
    """Steps on torch's meta device, where there are no values, so whatever reads one back fails."""
    stream, method = tiny.stream(each=80), tiny.method(name)
    net = networks.build("small-conv", stream.shape, stream.classes, 0, width=4)
    run = engine.Trainer(
        stream, method, network=net, plugin=plugins.make(plugin), training=tiny.training(), device="meta"
    )
    learner = run.learner
    nothing = Evaluation(class_il=[], class_il_all_heads=[], task_il=[], ece=0, nll=0)
    if name == "l2-sp":  # as after a first task
        run.objective.terms[1].set(learner.params, [])  # type: ignore[attr-defined]
    if name in ("a-gem", "gem"):
        assert learner.memory is not None
        x, y = learner.data[0]
        learner.memory.insert(x[:4], y[:4], task=0, step=0)
        if name == "gem":
            run._enter(run.stages[1], anew=True)
    if name in ("lwf", "icarl"):
        learner.old = learner.snapshot()
    with patch.context() as patched:
        patched.setattr(engine, "evaluate", lambda learner, scores: nothing)
        for index in range(count):
            stage = run.stages[name == "gem"]
            run.step(engine.Step(stage.first + index, stage.last + 1, 0))


@pytest.mark.parametrize("plugin", ["none", "refresh", "sam"])
@pytest.mark.parametrize("name", NO_WAIT)
def test_no_step_waits_for_the_device(name: str, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_on_meta(name, plugin, monkeypatch, 4)


@pytest.mark.parametrize("name", WAITS)
def test_those_that_wait_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        steps_on_meta(name, "none", monkeypatch, 4)
