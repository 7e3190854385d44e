import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats
from tests.records.learned import run, with_value

from unteach.continual.metrics import METRICS
from unteach.errors import CheckpointError, DataError
from unteach.records.learning import Arm, LearningResults, LearningRun, holm, lower_is_better
from unteach.records.stats import paired_t, t_mean

ACC = "class_il/final_average_accuracy"


def scored(plugin: str, values: dict[int, float | None], metric: str = ACC) -> list[LearningRun]:
    return [with_value(run("er", plugin, seed), metric, value) for seed, value in values.items()]


def full() -> LearningRun:
    return run(
        "der++",
        "refresh",
        7,
        nll=(1.0, 0.5, 0.25),
        peak_memory=123,
        diagnostics=[{"unlearn_ratio": 0.1}, {"unlearn_ratio": None}, {}],
        warnings=["hot"],
    )


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    written = full()
    path = written.save(tmp_path / "der++" / "7")
    assert path == tmp_path / "der++" / "7" / "run.json"
    assert LearningRun.load(path) == LearningRun.load(path.parent) == written
    assert written.metrics[ACC] == pytest.approx(0.8)  # 0.7, 0.8 and 0.9
    lowest = min(written.metrics, key=lambda name: written.metrics[name] or 0)
    assert lower_is_better(lowest) is False and written.metrics[lowest] < 0  # backward transfer
    assert json.loads(path.read_text())["format"] == "unteach-learning-run"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"version": LearningRun.VERSION + 1}, "newer version"),
        ({"version": True}, "whole number above 0"),
        ({"extra": 1}, "unknown key.*'extra'"),
        ({"passes": 1.5}, "must be a whole number"),
        ({"task_names": "abc"}, "must be a list"),
        ({"key": {"stream": "x"}}, "missing key"),
        ({"test_sizes": [1, 2]}, "one entry a task, 3; found: test_sizes: 2"),
        ({"matrices": {"class_il": [[0.5, 0.5, 0.5]]}}, "matrix class_il, rows: 1"),
        ({"matrices": {"class_il": [[0.5], [0.5] * 3, [0.5] * 3]}}, "matrix class_il, row 1: 1"),
        ({"matrices": {"class_il": [[50, 0.5, 0.5]] * 3}}, r"shares in \[0, 1\]"),
        ({"matrices": {"class_il": [["x", 0.5, 0.5]] * 3}}, "class_il"),
        ({"untrained": {"task_il": [0.5]}}, "untrained task_il: 1"),
        ({"ece": [0.1]}, "ece: 1"),
        ({"warnings": [1]}, "must be text"),
    ],
)
def test_malformed_files_are_refused(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**full().to_json(), **edit}))
    with pytest.raises(DataError, match=message):
        LearningRun.load(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="not a file of the format unteach-learning-run"):
        LearningResults.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        LearningResults.load(tmp_path)
    with pytest.raises(DataError, match=r"no run\.json"):
        LearningResults.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot read"):
        LearningRun.load(tmp_path / "nowhere.json")
    with pytest.raises(CheckpointError):
        full().save(tmp_path / "run.json" / "deeper")


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    nan = math.nan
    bad = run(
        metrics={"class_il/forgetting": nan},
        nll=(nan, math.inf, 1.0),
        diagnostics=[{"a": nan}],
        matrices={"class_il": ((nan, None, 0.5),) * 3},
    )
    assert bad.nll == (None, None, 1.0) and bad.diagnostics == ({"a": None},)
    assert bad.matrices["class_il"][0] == (None, None, 0.5) and bad.metrics == {"class_il/forgetting": None}
    assert "NaN" not in bad.save(tmp_path).read_text()


def test_values_and_curves() -> None:
    one = full()
    assert (one.value("passes"), one.value("seconds"), one.value("peak_memory")) == (1000.0, 6.0, 123.0)
    assert one.curve("class_il") == pytest.approx((0.9, 0.85, 0.8)) and one.curve("unknown") == ()
    joint = run(matrices={"class_il": ((None,) * 3, (None,) * 3, (0.5, 0.7, 0.9))})
    assert joint.curve("class_il") == (None, None, pytest.approx(0.7))
    with pytest.raises(DataError, match="no metric 'nonsense'"):
        one.value("nonsense")


def test_a_folder_of_runs(tmp_path: Path) -> None:
    for plugin in ("none", "refresh"):
        for seed in (0, 1):
            run("er", plugin, seed).save(tmp_path / f"er+{plugin}" / str(seed))
    run("der", "", 0).save(tmp_path / "deep" / "down" / "der")
    results = LearningResults.load(tmp_path)
    assert results.arms() == [("der", "none"), ("er", "none"), ("er", "refresh")]
    assert list(results.by_seed(("er", "none"))) == [0, 1] and len(results.runs) == 5
    assert [str(arm) for arm in results.arms()] == ["der", "er", "er + refresh"]
    with pytest.raises(DataError, match="no arm 'er \\+ sam'; found: der, er"):
        results.by_seed(("er", "sam"))


def test_table_by_hand() -> None:
    results = LearningResults(
        [*scored("none", {0: 0.5, 1: 0.6, 2: 0.7}), *scored("sam", {0: 0.4}), *scored("refresh", {0: None})]
    )
    table = results.table(ACC)
    mean, single = table[Arm("er")], table[Arm("er", "sam")]
    assert mean is not None and single is not None and table[Arm("er", "refresh")] is None
    # sd 0.1, n 3: half = t(0.975, 2) * 0.1 / sqrt(3) = 4.30265 * 0.057735 = 0.248414
    assert (mean.mean, mean.sd, mean.n) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert (mean.low, mean.high) == (pytest.approx(0.351586, abs=1e-6), pytest.approx(0.848414, abs=1e-6))
    assert (single.mean, single.sd, single.low, single.n) == (0.4, None, None, 1)


def test_pairs_are_of_common_seeds_only() -> None:
    results = LearningResults(
        [*scored("none", {0: 0.50, 1: 0.60, 2: 0.70, 9: 0.0}), *scored("refresh", {0: 0.51, 1: 0.63, 2: 0.72, 8: 1.0})]
    )
    found = results.paired(("er", "refresh"), ("er", "none"), ACC)
    # differences 0.01, 0.03, 0.02: mean 0.02, sd 0.01, half = 4.30265 * 0.01 / sqrt(3) = 0.0248414
    assert found is not None and (found.n, found.better, found.equal) == (3, 3, 0)
    assert found.mean == pytest.approx(0.02) and found.high == pytest.approx(0.0448414, abs=1e-6)
    assert found.outcome == "unclear"
    swapped = results.paired(("er", "none"), ("er", "refresh"), ACC)
    assert swapped is not None and swapped.mean == -found.mean and (swapped.better, swapped.p) == (0, found.p)


def test_t_statistics_agree_with_scipy() -> None:
    luck = random.Random(0)
    for n in (2, 3, 10):
        a, b = [luck.random() for _ in range(n)], [luck.random() for _ in range(n)]
        peer = scipy_stats.ttest_rel(a, b)
        mine, of = paired_t(list(zip(a, b, strict=True))), t_mean(a)
        assert mine is not None and mine.p == pytest.approx(peer.pvalue, rel=1e-9)
        low, high = peer.confidence_interval(0.95)
        assert (mine.low, mine.high) == (pytest.approx(low), pytest.approx(high))
        low, high = scipy_stats.t.interval(0.95, n - 1, loc=of.mean, scale=scipy_stats.sem(a))
        assert (of.low, of.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("gaps", "lower", "outcome"),
    [
        ([0.02, 0.03, 0.025], False, "better"),
        ([0.02, 0.03, 0.025], True, "worse"),
        ([-0.02, -0.03, -0.025], True, "better"),
        ([-0.02, -0.03, -0.025], False, "worse"),
        ([0.02, -0.03, 0.025], False, "unclear"),
        ([0.0, 0.0, 0.0], False, "identical"),
        ([0.5, 0.5], False, "better"),
        ([0.02], False, "one seed"),
        ([0.0], False, "identical"),
    ],
)
def test_outcomes(gaps: list[float], lower: bool, outcome: str) -> None:
    found = paired_t([(gap, 0.0) for gap in gaps], lower)
    assert found is not None and found.outcome == outcome
    assert found.better == sum(gap < 0 if lower else gap > 0 for gap in gaps)
    assert paired_t([]) is None


def test_intervals_cover_what_they_say() -> None:
    """Of 95 % intervals of 5 pairs, 95 % hold the truth: 1,000 trials, ± 3 standard deviations (0.7 points)."""
    luck = random.Random(1)
    held = 0
    for _ in range(1000):
        found = paired_t([(luck.gauss(0.3, 1), luck.gauss(0, 1)) for _ in range(5)])
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0.3 <= found.high
    assert 929 <= held <= 971


def test_holm_by_hand() -> None:
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06, 0.5 * 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_directions_are_those_of_the_metrics() -> None:
    for name, metric in METRICS.items():
        assert lower_is_better(f"class_il/{name}") == (metric.direction == "lower"), name
    assert all(map(lower_is_better, ("passes", "seconds", "peak_memory", "final_nll", "final_calibration_error")))
    results = LearningResults([run(), run(plugin="slow", passes=2000)])
    found = results.paired(("er", "slow"), ("er", "none"), "passes")
    assert found is not None and (found.mean, found.better) == (1000, 0)


def test_runs_that_do_not_belong_together() -> None:
    with pytest.raises(DataError, match="no runs"):
        LearningResults([])
    with pytest.raises(DataError, match="2 runs of 'er' with seed 0"):
        LearningResults([run(), run()])
    other = run(seed=1)
    other = dataclasses.replace(other, key=dataclasses.replace(other.key, method_settings={"buffer": 500}))
    with pytest.raises(DataError, match=r"differ in their method settings.*200.*500.*different labels"):
        LearningResults([run(), other])
    with pytest.raises(DataError, match="different tasks"):
        LearningResults([run(), run("der", tasks=4)])
    two = LearningResults([run(), run(stream="letters")])
    with pytest.raises(DataError, match=r"cannot be compared.*digits.*letters"):
        two.table(ACC)
    assert [group.stream for group in two.groups] == ["digits", "letters"]
    assert two.of(two.groups[1]).table(ACC)[Arm("er")] is not None


def test_results_load_without_torch_models(tmp_path: Path) -> None:
    run().save(tmp_path)
    code = (
        "import sys; from unteach.records.learning import LearningResults; LearningResults.load(sys.argv[1]);"
        "print([m for m in ('diffusers', 'unteach.continual', 'unteach.diffusion') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
