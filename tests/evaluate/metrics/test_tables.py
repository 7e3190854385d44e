import numpy as np
import pytest
import torch

from unteach.evaluate.metrics import presence
from unteach.evaluate.metrics.presence import Answers
from unteach.evaluate.metrics.tables import (
    Subject,
    drift_metrics,
    kept_table,
    none_metrics,
    presence_metrics,
    seen_table,
)
from unteach.records.stats import mcnemar, paired_difference, wilson

SUBJECT = Subject(concept="mono", target=1, domain="style", judge="cnn")
OBJECTS, STYLES = ("dog", "cat"), ("noto", "mono")
ASKED = ([0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0])
BEFORE = Answers.of([0, 1, 0, 0, 1, 2], [0, 0, 1, 1, 1, 0], *ASKED)
AFTER = Answers.of([0, 1, 0, 2, 1, 1], [0, 1, 0, 2, 0, 0], *ASKED)


def test_before_after_and_change() -> None:
    metrics = presence_metrics(SUBJECT, BEFORE, AFTER, "held-out templates")
    assert {m.name for m in metrics} == set(presence.RULES)
    assert all((m.concept, m.judge, m.prompts) == ("mono", "cnn", "held-out templates") for m in metrics)
    kept = {m.when: m for m in metrics if m.name == "kept"}
    first, second = np.array([True, True, False]), np.array([True, False, True])
    assert (kept["before"].low, kept["before"].value, kept["before"].n) == (wilson(2, 3).low, 2 / 3, 3)
    change = paired_difference(first, second)
    assert (kept["change"].value, kept["change"].low, kept["change"].high) == (
        change.value,
        change.low,
        change.high,
    )
    assert kept["change"].p == mcnemar(first, second).p == 1.0
    assert kept["after"].p is None
    gone = {m.when: m.value for m in metrics if m.name == "UA"}
    assert gone == {"before": 0.0, "after": 1.0, "change": 1.0}
    assert {m.better for m in metrics if m.name == "target elsewhere"} == {"lower"}


def test_without_a_rest_there_is_no_retention() -> None:
    rows = [2, 3, 4]
    names = {m.name for m in presence_metrics(SUBJECT, BEFORE[rows], AFTER[rows], "x")}
    assert names == {"UA", "CRA, target included"}


def test_nothing_known_is_counted_apart() -> None:
    metrics = none_metrics(SUBJECT, BEFORE, AFTER, "x", {"object": 2, "style": 2})
    found = {(m.name, m.when): (m.value, m.n) for m in metrics}
    assert found == {
        ("none on target", "before"): (0.0, 3),
        ("none on target", "after"): (pytest.approx(1 / 3), 3),
        ("none on rest", "before"): (0.0, 3),
        ("none on rest", "after"): (0.0, 3),
    }


def test_the_table_of_what_was_kept() -> None:
    table = kept_table(SUBJECT, BEFORE, AFTER, OBJECTS, STYLES)
    assert (table.rows, table.columns, table.erased_rows, table.erased_columns) == (
        STYLES,
        OBJECTS,
        ("mono",),
        (),
    )
    assert table.n == ((1, 2), (2, 1))
    assert table.before == ((1.0, 0.5), (1.0, 1.0))
    assert table.after == ((1.0, 0.5), (0.0, 0.0))
    rows = np.array([0, 2])
    part = kept_table(SUBJECT, BEFORE[rows], AFTER[rows], OBJECTS, STYLES)
    assert part.before == ((1.0, None), (1.0, None)) and part.n == ((1, 0), (1, 0))


def test_the_table_of_what_is_seen_instead() -> None:
    table = seen_table(SUBJECT, BEFORE, AFTER, STYLES)
    assert table is not None
    assert (table.rows, table.columns) == (("mono",), ("noto", "mono", "none of these"))
    assert table.before == ((0.0, 1.0, 0.0),)
    assert table.after[0] == pytest.approx((2 / 3, 0.0, 1 / 3))
    rows = np.array([0, 1])
    assert seen_table(SUBJECT, BEFORE[rows], AFTER[rows], STYLES) is None


def test_drift_needs_no_judge_but_asks_each() -> None:
    before = torch.zeros(6, 3, 2, 2, dtype=torch.uint8)
    after = torch.full_like(before, 51)
    metrics = drift_metrics(before, after, {"a": (BEFORE, AFTER), "b": (BEFORE, BEFORE)}, "x")
    found = {(m.name, m.judge): m for m in metrics}
    assert found["pixel change", ""].value == pytest.approx(0.2)
    assert found["PSNR", ""].value == pytest.approx(13.9794, abs=1e-4) and found["PSNR", ""].unit == "dB"
    assert found["same verdict", "a"].value == pytest.approx(1 / 6)
    assert found["same verdict", "b"].value == 1.0
    assert all(m.concept == "" and m.when == "change" for m in metrics)
