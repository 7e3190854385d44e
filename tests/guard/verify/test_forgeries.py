"""A part of benchmarks/security/forgeries.py: no forgery conforms, every honest upload does."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.security import forgeries

RESULTS = forgeries.OUT


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> forgeries.Base:
    return forgeries.publish("sd", tmp_path_factory.mktemp("forgeries") / "sd")


def run(base: forgeries.Base, chosen: list[forgeries.Case], work: Path) -> list[dict[str, Any]]:
    return list(forgeries.run(base, chosen, work))


def test_the_driver_makes_the_same_uploads_again(base: forgeries.Base, tmp_path: Path) -> None:
    chosen = forgeries.cases(base)[20:200:60]
    first, second = (run(base, chosen, tmp_path) for _ in range(2))
    assert [row["upload"] for row in first] == [row["upload"] for row in second]
    assert [case.name for case in forgeries.cases(base)] == [case.name for case in forgeries.cases(base)]


def test_no_forgery_conforms_and_every_honest_upload_does(base: forgeries.Base, tmp_path: Path) -> None:
    every = forgeries.cases(base)
    honest = [case for case in every if case.honest]
    forged = [case for case in every if not case.honest]
    lies, tricks = [c for c in forged if c.name.count(", ") == 2], [c for c in forged if c.name.count(", ") != 2]
    rows = run(base, honest + tricks[::2] + lies[::6], tmp_path)  # 6 and 13 containers: all of them, and all lies
    wrong = [row for row in rows if (row["outcome"] == "conform") != row["honest"]]
    assert wrong == []
    assert len({row["upload"] for row in rows if not row["honest"]}) >= 60
    assert sum(row["honest"] for row in rows) >= 10


def test_the_committed_results_hold() -> None:
    """H1: at least 60 forgeries, none of which conforms."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    counts = record["counts"]
    assert counts["forgeries"] >= 60 and "conform" not in counts["forgeries by outcome"]
    assert counts["honest uploads by outcome"].keys() == {"conform"} and counts["honest uploads"] >= 10
    assert record["config"]["seed"] == forgeries.SEED and record["config"]["tricks"] == list(forgeries.TRICKS)
    assert record["environment"]["torch"] and record["command"]
