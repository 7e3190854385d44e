"""The grid as library functions: what is refused before anything is trained, old names of settings, old folders."""

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
from unteach.records.learning import Arm, LearningResults

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
    """A learn folder of 0.1 belongs to the same grid file, with the names of then or of now."""
    shutil.copytree(OLD / "learn", tmp_path / "learn")
    record = yaml.safe_load((OLD / "grid.yaml").read_text(encoding="utf-8"))
    jobs = grid.plan(record).jobs
    assert len(jobs) == 4 and all(grid.finished(job, tmp_path / "learn") for job in jobs)
    assert not grid.finished(grid.plan({**record, "seeds": [1]}).jobs[0], tmp_path / "learn")
    now = {"epochs": 1, "batch_size": 64, "learning_rate": 0.05}
    er = {"method": "er", "buffer_size": 20, "label": "er 20"}
    assert all(grid.finished(job, tmp_path / "learn") for job in grid.plan({**record, "training": now}).jobs)
    assert all(grid.finished(job, tmp_path / "learn") for job in grid.plan({**record, "methods": [er]}).jobs)
    others: list[dict[str, Any]] = [
        {"training": {**now, "learning_rate": 0.06}},
        {"methods": [{**er, "buffer_size": 21}]},
        {"network_options": {"hidden": [9]}},
        {"scenario": "task"},
    ]
    for other in others:
        with pytest.raises(CheckpointError, match="a run of other settings"):
            grid.finished(grid.plan({**record, **other}).jobs[0], tmp_path / "learn")
    job = jobs[0].folder(tmp_path / "learn") / grid.JOB
    job.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="a run of other settings"):
        grid.finished(jobs[0], tmp_path / "learn")


def test_a_folder_of_0_1_takes_more_runs(tmp_path: Path) -> None:
    """Under the present names: the records of then and of now are one arm."""
    shutil.copytree(OLD / "learn", tmp_path / "learn")
    record = yaml.safe_load((OLD / "grid.yaml").read_text(encoding="utf-8"))
    now = {"epochs": 1, "batch_size": 64, "learning_rate": 0.05}
    er = {"method": "er", "buffer_size": 20, "label": "er 20"}
    (job,) = grid.plan({**record, "training": now, "methods": [er], "plugins": None, "seeds": [1]}).jobs
    grid.do(job, tmp_path / "learn", "unteach learn")
    grid.do(job, tmp_path / "learn", "unteach learn again")
    runs = LearningResults.load(tmp_path / "learn" / "runs").by_seed(Arm("er 20"))
    assert set(runs) == {0, 1} and runs[1].command == "unteach learn" and not runs[1].warnings
    assert runs[0].key.method_settings == runs[1].key.method_settings


def test_a_run_that_diverges_is_a_record_that_says_so(tmp_path: Path) -> None:
    (job,) = grid.plan({**SMALL, "training": {"epochs": 1, "learning_rate": 1e30}}).jobs
    grid.do(job, tmp_path, "")
    (run,) = LearningResults.load(tmp_path / "runs").runs
    assert run.warnings[0].startswith("diverged: ") and run.metrics["class_il/final_average_accuracy"] is None
    assert not list(tmp_path.rglob(grid.STATE)) and grid.finished(job, tmp_path)


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
