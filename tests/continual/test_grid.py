"""The grid as library functions: what is refused before anything is trained, old names of settings, old folders."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from unteach.continual import grid
from unteach.continual.learner import Training
from unteach.continual.methods import make, methods
from unteach.core import settings
from unteach.errors import CheckpointError, ConfigError, DataError

SMALL: dict[str, Any] = {
    "stream": "digits",
    "network": "mlp",
    "network_options": {"hidden": [8]},
    "training": {"epochs": 1, "batch_size": 64},
    "methods": ["fine-tune"],
}
OLD = Path(__file__).parents[1] / "regression" / "0.1"


def test_what_the_engine_refuses_is_refused_for_every_arm_at_once() -> None:
    refresh = {"plug-in": "refresh", "gamma": 0.01}
    plugs = [refresh, {**refresh, "loss": "memory", "preconditioner": "none", "label": "of memory"}]
    jobs = grid.plan({**SMALL, "methods": ["er", "vcl + er", "ewc"], "plugins": ["none", *plugs]}).jobs
    with pytest.raises(ConfigError) as found:
        grid.check(jobs)
    said = str(found.value)
    assert "'vcl + er' has no Fisher information" in said and "no term of 'ewc' reads a memory" in said
    grid.check(job for job in jobs if job.label in ("er__refresh", "er__of memory", "ewc__refresh", "ewc"))


def test_scenarios_and_options_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    jobs = grid.plan({**SMALL, "methods": ["ewc", "si"], "scenario": "general", "training": {"epochs": 2}}).jobs
    with pytest.raises(ConfigError) as found:
        grid.check(jobs)
    assert all(words in str(found.value) for words in ("'ewc' must be told", "'si' must be told", "seen once"))
    with pytest.raises(ConfigError, match="10 classes do not go into 3 equal tasks"):
        grid.check(grid.plan({**SMALL, "stream_options": {"tasks": 3}}).jobs)
    with pytest.raises(ConfigError, match="hidden"):
        grid.check(grid.plan({**SMALL, "network_options": {"hidden": [0]}}).jobs)
    with pytest.raises(DataError):
        grid.check(grid.plan({**SMALL, "stream": "cifar10", "stream_options": {"path": str(tmp_path)}}).jobs)


def test_the_stream_is_read_once_a_process() -> None:
    first, second = grid.plan({**SMALL, "methods": ["er", "der"], "stream_options": {"order_seed": 4}}).jobs
    assert first.load_stream() is second.load_stream()
    (other,) = grid.plan({**SMALL, "scenario": "task"}).jobs
    assert other.load_stream().scenario == "task" and first.load_stream().scenario == "class"


def test_a_finished_run_is_known_and_one_of_other_settings_refused(tmp_path: Path) -> None:
    """A learn folder of 0.1 belongs to the same grid file, with the names of then."""
    shutil.copytree(OLD / "learn", tmp_path / "learn")
    record = yaml.safe_load((OLD / "grid.yaml").read_text(encoding="utf-8"))
    jobs = grid.plan(record).jobs
    assert len(jobs) == 4 and all(grid.finished(job, tmp_path / "learn") for job in jobs)
    assert not grid.finished(grid.plan({**record, "seeds": [1]}).jobs[0], tmp_path / "learn")
    path = jobs[0].folder(tmp_path / "learn") / grid.JOB
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "another"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="a run of other settings"):
        grid.finished(jobs[0], tmp_path / "learn")


def test_earlier_names_of_settings_still_work_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    settings._warn_renamed.cache_clear()
    with caplog.at_level(logging.WARNING, "unteach"):
        for _ in range(2):
            assert make("er", buffer=20) == make("er", buffer_size=20)
        assert make("er + cpr", buffer=20, alpha=0.3) == make("er + cpr", buffer_size=20, alpha=0.3)
        old = {"lr": 0.2, "memory_batch": 3, "eval_batch": 4}
        assert Training.build(old) == Training(learning_rate=0.2, memory_batch_size=3, eval_batch_size=4)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4 and any("'buffer' of a method is called 'buffer_size' now" in line for line in said)
    with pytest.raises(ConfigError, match="unknown setting 'buffer'"):
        make("er", buffer=20, buffer_size=30)
    assert all(set(methods[name].renamed.values()) <= set(methods[name].__dataclass_fields__) for name in methods)
