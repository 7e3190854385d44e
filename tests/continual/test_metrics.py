import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unteach.continual import metrics
from unteach.continual.metrics import METRICS, calibration_error, summary
from unteach.errors import DataError

# Three tasks. Task 1 is forgotten and half recovered, task 2 gets better in the end.
R = [
    [0.9, 0.3, 0.2],
    [0.5, 0.8, 0.4],
    [0.7, 0.84, 0.6],
]
B = [0.1, 0.2, 0.25]
SIZES = [100, 300, 100]
JOINT = [0.9, 0.85, 0.8]

WORKED = {
    # (0.7 + 0.84 + 0.6) / 3
    "final_average_accuracy": 2.14 / 3,
    # A_1 = 0.9; A_2 = (50 + 240) / 400 = 0.725; A_3 = (70 + 252 + 60) / 500 = 0.764
    "average_incremental_accuracy_pooled": (0.9 + 0.725 + 0.764) / 3,
    # 0.9; (0.5 + 0.8) / 2 = 0.65; 2.14 / 3
    "average_incremental_accuracy_tasks": (0.9 + 0.65 + 2.14 / 3) / 3,
    # (0.7 - 0.9) = -0.2; (0.84 - 0.8) = 0.04
    "backward_transfer": (-0.2 + 0.04) / 2,
    # after task 2: 0.5 - 0.9 = -0.4; after task 3: -0.2 and 0.04; 2/(3 * 2) of the sum -0.56
    "backward_transfer_triangular": -0.56 / 3,
    "positive_backward_transfer": 0.0,
    "remembering": 1 - 0.56 / 3,
    # before task 2: 0.3 - 0.2 = 0.1; before task 3: 0.4 - 0.25 = 0.15
    "forward_transfer": 0.125,
    # task 1: max(0.9, 0.5) - 0.7 = 0.2; task 2: 0.8 - 0.84 = -0.04
    "forgetting": 0.08,
    # task 1: max(0.9, 0.5, 0.7) - 0.7 = 0.2; task 2: max(0.8, 0.84) - 0.84 = 0
    "forgetting_incl_last": 0.1,
    # 0.9 - 0.9 = 0; 0.85 - 0.8 = 0.05; 0.8 - 0.6 = 0.2
    "intransigence": 0.25 / 3,
    # (0.9 + 0.8 + 0.6) / 3
    "learning_accuracy": 2.3 / 3,
}
BESIDE = {"sizes": SIZES, "untrained": B, "joint": JOINT}


def value(name: str, matrix: object) -> float | None:
    metric = METRICS[name]
    return metric.function(matrix, *([BESIDE[metric.needs]] if metric.needs else []))


@pytest.mark.parametrize("name", WORKED)
@pytest.mark.parametrize("kind", ["lists", "tensor", "array", "rows of tensors"])
def test_worked_example(name: str, kind: str) -> None:
    given_as = {
        "lists": R,
        "tensor": torch.tensor(R, dtype=torch.float64, requires_grad=True),
        "array": np.array(R),
        "rows of tensors": [torch.tensor(row, dtype=torch.float64) for row in R],
    }
    assert value(name, given_as[kind]) == pytest.approx(WORKED[name], abs=1e-12)


def test_every_metric_of_the_table_is_worked() -> None:
    assert set(METRICS) == {*WORKED, "average_anytime_accuracy", "calibration_error"}
    assert all(name == metric.function.__name__ for name, metric in METRICS.items())
    assert {n for n, m in METRICS.items() if m.direction == "lower"} == {
        "forgetting",
        "forgetting_incl_last",
        "intransigence",
        "calibration_error",
    }
    assert all(metric.formula and metric.source for metric in METRICS.values())


def test_anytime_accuracy_counts_points_within_tasks() -> None:
    points = [[0.4, 0.0], [0.8, 0.0], [0.6, 0.2], [0.5, 0.7]]
    # 0.4; 0.8; (0.6 + 0.2) / 2 = 0.4; (0.5 + 0.7) / 2 = 0.6
    assert metrics.average_anytime_accuracy(points, [1, 1, 2, 2]) == pytest.approx(2.2 / 4)
    at_ends = metrics.average_anytime_accuracy(R, [1, 2, 3])
    assert at_ends == pytest.approx(metrics.average_incremental_accuracy_tasks(R))
    with pytest.raises(DataError, match="number of tasks seen"):
        metrics.average_anytime_accuracy(points, [1, 1, 2, 3])
    with pytest.raises(DataError, match="number of tasks seen"):
        metrics.average_anytime_accuracy(points, [1, 1, 2])


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: 0.95 and 0.97 lie in (14/15, 1], 0.59 and 0.55 in (8/15, 9/15], 0.61 in (9/15, 10/15].
    confidence, correct = [0.95, 0.97, 0.59, 0.55, 0.61], [True, False, True, True, False]
    # |1 + 0 - 1.92| = 0.92; |2 - 1.14| = 0.86; |0 - 0.61| = 0.61; over 5 samples
    assert calibration_error(confidence, correct) == pytest.approx((0.92 + 0.86 + 0.61) / 5, abs=1e-12)
    assert calibration_error(torch.tensor(confidence), torch.tensor(correct)) == pytest.approx(0.478, abs=1e-6)
    # one bin: |3 correct - 3.67|
    assert calibration_error(confidence, correct, bins=1) == pytest.approx(0.67 / 5)
    # 0.6 is the upper end of its bin, which 0.55 shares and 0.61 does not: |1 - 1.15| and |1 - 0.61|
    assert calibration_error([0.6, 0.55, 0.61], [True, False, True]) == pytest.approx((0.15 + 0.39) / 3)
    assert calibration_error([1.0, 0.0], [True, False]) == 0.0
    for wrong in (([], []), ([0.5], [True, False]), ([1.5], [True]), ([math.nan], [True])):
        with pytest.raises(DataError, match=r"calibration error|probabilities"):
            calibration_error(*wrong)


shares = st.floats(0, 1)
squares = st.integers(2, 6).flatmap(
    lambda t: st.lists(st.lists(shares, min_size=t, max_size=t), min_size=t, max_size=t)
)


@given(squares)
def test_identities(matrix: list[list[float]]) -> None:
    tasks = len(matrix)
    acc, la = metrics.final_average_accuracy(matrix), metrics.learning_accuracy(matrix)
    bwt, forgotten = metrics.backward_transfer(matrix), metrics.forgetting(matrix)
    incl, pooled = (
        metrics.forgetting_incl_last(matrix),
        metrics.average_incremental_accuracy_pooled(matrix, [7] * tasks),
    )
    assert None not in (acc, la, bwt, forgotten, incl)
    # ACC = LA + (T-1)/T BWT
    assert acc == pytest.approx(la + (tasks - 1) / tasks * bwt, abs=1e-12)
    # the maximum is at least R[i][i], and the last row only raises it
    assert forgotten >= -bwt - 1e-12 and incl >= max(forgotten, 0) - 1e-12
    assert pooled == pytest.approx(metrics.average_incremental_accuracy_tasks(matrix), abs=1e-12)
    # intransigence against a reference of ones is what is missing to 1
    assert metrics.intransigence(matrix, [1.0] * tasks) == pytest.approx(1 - la, abs=1e-12)


def test_one_task_has_no_transfer() -> None:
    defined = {
        name for name, v in summary({"k": [[0.5]]}, {"k": [0.1]}, [9], joint={"k": [0.6]}).items() if v is not None
    }
    assert defined == {
        "k/final_average_accuracy",
        "k/average_incremental_accuracy_pooled",
        "k/average_incremental_accuracy_tasks",
        "k/intransigence",
        "k/learning_accuracy",
    }


@pytest.mark.parametrize("hole", [None, math.nan])
def test_what_was_not_measured_is_not_guessed(hole: float | None) -> None:
    lower = [[0.9, hole, hole], [0.5, 0.8, hole], [0.7, 0.84, 0.6]]
    for name, expected in WORKED.items():
        assert value(name, lower) == (None if name == "forward_transfer" else pytest.approx(expected)), name
    joint_only = [[hole] * 3, [hole] * 3, R[2]]
    known = {name for name in WORKED if value(name, joint_only) is not None}
    assert known == {"final_average_accuracy"}
    assert metrics.forward_transfer(R, [hole, 0.2, 0.25]) == pytest.approx(0.125)  # b of task 1 is not used
    assert metrics.forward_transfer(R, [0.1, hole, 0.25]) is None
    middle = [R[0], [hole] * 3, R[2]]
    assert value("forgetting", middle) is None and value("backward_transfer", middle) is None


def test_summary_names_kinds_and_keeps_to_what_it_is_given() -> None:
    found = summary(
        {"class_il": R, "task_il": R}, {"task_il": B}, SIZES, ece=[0.3, None, 0.1], nll=[1.0, 2.0, math.nan]
    )
    assert found["task_il/forward_transfer"] == pytest.approx(0.125) and found["class_il/forward_transfer"] is None
    assert found["class_il/forgetting"] == pytest.approx(0.08) and found["class_il/intransigence"] is None
    assert found["final_calibration_error"] == 0.1 and found["final_nll"] is None
    assert len(found) == 2 * (len(METRICS) - 2) + 2
    bare = summary({"class_il": R})
    assert bare["class_il/average_incremental_accuracy_pooled"] is None and "final_nll" not in bare


@pytest.mark.parametrize("matrix", [[], [[0.5, 0.5]], [[0.5, 0.5], [0.5]], [[50.0]], [[-0.1]]])
def test_malformed_matrices_are_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(DataError, match=r"one row and one column|shares in \[0, 1\]"):
        metrics.final_average_accuracy(matrix)


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="test sizes"):
        metrics.average_incremental_accuracy_pooled(R, [1, 2])
    with pytest.raises(DataError, match="test sizes"):
        metrics.average_incremental_accuracy_pooled(R, [1, 2, 0])
    with pytest.raises(DataError, match="untrained"):
        metrics.forward_transfer(R, [0.1])
    with pytest.raises(DataError, match="joint"):
        metrics.intransigence(R, [0.1])


def test_the_page_of_metrics_names_them_all_and_its_example_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert all(f"| `{name}`" in text for name in METRICS)
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(source, {})
    for name, number in WORKED.items():
        if name != "positive_backward_transfer":
            assert f"{number:.4f}".replace("-", "−") in text, name
