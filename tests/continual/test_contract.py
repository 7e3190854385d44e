"""Every method with every kind of plug-in: whoever registers one gets these tests."""

import functools
from pathlib import Path

import pytest
import torch
from tests.continual import tiny

from unteach.continual.engine import Outcome
from unteach.continual.methods import make, methods
from unteach.continual.plugins import Plugin, plugins
from unteach.errors import UnteachError

ARMS: dict[str, Plugin | None] = {
    "none": None,
    "refresh": plugins.make("refresh", gamma=0.01),
    "refresh off": plugins.make("refresh", gamma=0.0),
    "refresh-official-code": plugins.make("refresh-official-code"),
    "sam": plugins.make("sam"),
    "reweight": plugins.make("reweight"),
}
COMBINED = ["der++ + online-ewc", "er + si", "online-ewc + cpr"]
HOSTS = [*methods, *COMBINED]
NO_FISHER = {"vcl", "nvcl"}
"""Their standard deviations do not reach the logits in evaluation mode, so refresh has no Fisher information."""

BOUNDLESS = ["cpr", "der", "der++", "er", "er-ace", "fine-tune", "label-smoothing"]
"""What can learn from a stream without boundaries."""


@functools.cache
def ran(host: str, arm: str, seed: int = 0) -> Outcome:
    return tiny.run(host, ARMS[arm], seed=seed)


def refused(host: str, arm: str) -> bool:
    return host in NO_FISHER and arm in ("refresh", "refresh-official-code")


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("host", HOSTS)
def test_it_runs_is_finite_and_the_same_seed_gives_the_same(host: str, arm: str) -> None:
    if refused(host, arm):
        with pytest.raises(UnteachError):
            ran(host, arm)
        return
    outcome = ran(host, arm)
    assert all(bool(torch.isfinite(param).all()) for param in outcome.learner.params)
    rows = outcome.rows
    assert rows[-1].task == 1 and all(0 <= share <= 1 for row in rows for share in row.class_il + row.task_il)
    assert all(row.nll >= 0 and 0 <= row.ece <= 1 for row in rows)
    tiny.assert_same(outcome, tiny.run(host, ARMS[arm]))


@pytest.mark.parametrize("host", HOSTS)
def test_refresh_of_strength_0_is_the_host_bit_for_bit(host: str) -> None:
    plain, off = ran(host, "none"), ran(host, "refresh off")
    assert not tiny.differs(plain, off)
    assert [row.class_il for row in plain.rows] == [row.class_il for row in off.rows]
    assert [row.nll for row in plain.rows] == [row.nll for row in off.rows]
    assert plain.passes == off.passes


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in ("none", "refresh off")])
@pytest.mark.parametrize("host", [host for host in HOSTS if host != "gdumb"])
def test_a_plugin_that_is_on_changes_the_run(host: str, arm: str) -> None:
    if not refused(host, arm):
        assert tiny.differs(ran(host, "none"), ran(host, arm))


def test_a_plugin_leaves_alone_what_never_steps() -> None:
    assert not any(tiny.differs(ran("gdumb", "none"), ran("gdumb", arm)) for arm in ARMS)


@pytest.mark.parametrize("host", HOSTS)
def test_another_seed_is_another_run(host: str) -> None:
    assert tiny.differs(ran(host, "none"), ran(host, "none", seed=1))


@pytest.mark.parametrize(
    ("host", "arm"),
    [
        ("der++", "refresh"),
        ("online-ewc", "refresh-official-code"),
        ("icarl", "none"),
        ("fdr", "sam"),
        ("x-der", "none"),
        ("lwf", "reweight"),
        ("gem", "none"),
        ("gpm", "refresh"),
        ("ogd", "none"),
        ("rwalk", "none"),
        ("mas", "none"),
        ("laplace", "none"),
        ("kronecker-laplace", "none"),
        ("nvcl", "none"),
        ("gdumb", "none"),
        ("der++ + online-ewc", "refresh"),
    ],
)
def test_broken_off_in_a_task_and_gone_on_is_unbroken(
    host: str, arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.run(host, ARMS[arm], training=tiny.training(epochs=2, momentum=0.9))
    tiny.assert_same(whole, tiny.resumed(host, ARMS[arm], tmp_path, monkeypatch, before=10, every=4))


@pytest.mark.parametrize("name", [*methods, *methods.presets])
def test_settings_survive_the_way_through_plain_data(name: str) -> None:
    made = make(name)
    record = made.to_dict()
    assert make(record.pop("method"), **record) == made


@pytest.mark.parametrize("name", [*plugins, *plugins.presets])
def test_settings_of_plugins_survive_too(name: str) -> None:
    made = plugins.make(name)
    record = made.to_dict()
    assert plugins.make(record.pop("plug-in"), **record) == made


@pytest.mark.parametrize("name", methods)
def test_without_boundaries_it_runs_or_is_refused_before_training(name: str) -> None:
    stream = tiny.stream("general")
    if methods[name].boundaries:
        with pytest.raises(UnteachError, match="has no boundaries"):
            tiny.run(name, on=stream)
    else:
        assert len(tiny.run(name, on=stream).rows) == 2
    assert (name in BOUNDLESS) == (not methods[name].boundaries)


@pytest.mark.parametrize("name", methods)
def test_every_method_and_setting_is_explained(name: str) -> None:
    kind = methods[name]
    doc = " ".join(base.__doc__ or "" for base in kind.__mro__)
    assert (kind.__doc__ or "").strip().splitlines()[0].endswith((".", '".'))
    missing = [key for key in kind().to_dict() if key != "method" and f"{key}:" not in doc]
    assert not missing, missing
