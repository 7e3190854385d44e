import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.core.finding import Effect, Finding
from unteach.errors import CheckpointError, DataError
from unteach.records.erasure import (
    ConceptRecord,
    Cost,
    Environment,
    Grid,
    Metric,
    Results,
    Table,
)


def full() -> Results:
    """Results in which every field differs from its default."""
    return Results(
        kind="attack",
        status="partial",
        title="A <title>",
        command="unteach evaluate x",
        method="doco",
        protocol="demo",
        config={"steps": 20, "deep": [1, {"none": None, "true": True}], "rate": 1e-5},
        concepts=(ConceptRecord(target="twemoji", anchor="noto", kind="style"),),
        seeds=(188, 288),
        notes={"cnn": "a judge"},
        environment=Environment(
            python="3.11",
            torch="2.13",
            diffusers="0.42",
            unteach="0.1",
            platform="Linux",
            cores=2,
            threads=1,
            revision="abc",
            dirty=True,
        ),
        cost=Cost(
            seconds=1.5,
            images=9,
            method_seconds=2.5,
            method_steps=7,
            parameters_moved=3,
            parameters_total=9,
            delta_bytes=12,
            peak_rss_bytes=99,
        ),
        metrics=(
            Metric(
                name="UA",
                value=0.9,
                low=0.8,
                high=1.0,
                n=10,
                judge="cnn",
                prompts="unlearning set",
                concept="twemoji",
                better="lower",
                when="change",
                unit="dB",
                p=0.04,
            ),
            Metric(name="IRA", value=0.5, low=0.4, high=0.6, n=5, judge="cnn"),
        ),
        tables=(
            Table(
                kind="kept",
                row_axis="style",
                column_axis="object",
                rows=("twemoji",),
                columns=("dog", "cat"),
                before=((1.0, None),),
                after=((0.25, None),),
                n=((4, 0),),
                judge="cnn",
                prompts="all prompts",
                concept="twemoji",
                erased_rows=("twemoji",),
                erased_columns=("cat",),
            ),
        ),
        grids=(
            Grid(
                name="g",
                role="target",
                rows=("before", "after"),
                columns=("dog",),
                images=(("images/a.png",), ("",)),
                captions=("a dog",),
                seeds=(3,),
                prompts="unlearning set",
                concept="twemoji",
            ),
        ),
        check=Finding(
            concepts=(
                Effect(target="twemoji", anchor="noto", towards=0.9, left=0.1, moved=0.8, apart=0.3, prompts=16),
            ),
            rest=0.02,
            prompts=24,
            seed=3,
        ),
    )


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    results = full()
    blank = Results()
    for field in dataclasses.fields(Results):
        if field.name != "root":
            assert getattr(results, field.name) != getattr(blank, field.name), field.name
    path = results.save(tmp_path / "deep" / "results.json")
    loaded = Results.load(path)
    assert loaded == results and loaded.root == path.parent == results.root
    assert "root" not in json.loads(path.read_text())
    with pytest.raises(DataError, match="unknown key 'root'"):
        Results.from_json({**results.to_json(), "root": None})
    assert "root" not in Results.schema()["properties"]
    assert Results.load(Results().save(tmp_path / "blank.json")) == blank


@given(
    st.floats(-1e6, 1e6),
    st.floats(0, 1e3),
    st.integers(1, 10**9),
    st.text(),
    st.none() | st.floats(0, 1),
)
def test_numbers_survive_exactly(value: float, width: float, n: int, name: str, p: float | None) -> None:
    metric = Metric(name=name, value=value, low=value - width, high=value + width, n=n, p=p)
    results = Results(metrics=(metric,))
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(full().to_json()))
    change(data)
    return data


def test_a_newer_version_is_refused_before_anything_else() -> None:
    data = edited(lambda d: d.update(version=Results.VERSION + 1, unheard_of=1))
    with pytest.raises(DataError, match=f"newer version.*version {Results.VERSION + 1}.*upgrade") as caught:
        Results.from_json(data)
    assert "unheard_of" not in str(caught.value)


@pytest.mark.parametrize("schema", [0, -1, "1", 1.0, True, None])
def test_a_version_is_a_positive_integer(schema: object) -> None:
    with pytest.raises(DataError, match="whole number above 0"):
        Results.from_json(edited(lambda d: d.update(version=schema)))
    old = edited(lambda d: (d.pop("format"), d.pop("version"), d.update(schema=schema)))
    with pytest.raises(DataError, match="whole number above 0"):
        Results.from_json(old)
    assert Results.from_json({**old, "schema": 1}) == full()  # as release 0.1 wrote it


@pytest.mark.parametrize("data", [[], "x", None, {"kind": "evaluation"}])
def test_what_is_no_results_file_is_refused(data: object) -> None:
    with pytest.raises(DataError, match="not a file of the format unteach-results"):
        Results.from_json(data)


def test_every_mistake_is_named_at_once() -> None:
    def change(data: dict[str, Any]) -> None:
        data["colour"] = "red"
        data["status"] = "splendid"
        data["metrics"][0]["valeu"] = 1
        data["metrics"][1]["n"] = "many"
        data["cost"]["seconds"] = True
        data["tables"][0]["rows"] = "twemoji"
        del data["concepts"][0]["anchor"]

    with pytest.raises(DataError) as caught:
        Results.from_json(edited(change), where="run/results.json")
    message = str(caught.value)
    for part in (
        "run/results.json has 7 mistakes",
        "unknown key 'colour'",
        "splendid",
        "metrics[0]: unknown key 'valeu'",
        "metrics[1].n must be a whole number, found 'many'",
        "cost.seconds must be a finite number, found True",
        "tables[0].rows must be a list, found 'twemoji'",
        "concepts[0]: missing key 'anchor'",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "p"),
    [
        (math.nan, 0.0, 1.0, 1, None),
        (0.5, -math.inf, 1.0, 1, None),
        (0.5, 0.9, 0.1, 1, None),
        (0.5, 0.1, 0.9, 0, None),
        (0.5, 0.1, 0.9, 3, math.nan),
    ],
)
def test_a_metric_is_finite(value: float, low: float, high: float, n: int, p: float | None) -> None:
    with pytest.raises(DataError, match="metric 'UA' needs finite numbers"):
        Metric(name="UA", value=value, low=low, high=high, n=n, p=p)


def test_matrices_fit_their_labels() -> None:
    table, grid = full().tables[0], full().grids[0]
    with pytest.raises(DataError, match=r"after must have 1 rows of 2 columns; found: rows of \[1\]"):
        dataclasses.replace(table, after=((0.5,),))
    with pytest.raises(DataError, match="images must have 2 rows of 1 columns"):
        dataclasses.replace(grid, images=(("images/a.png",),))
    with pytest.raises(DataError, match="1 columns; found: 2 captions"):
        dataclasses.replace(grid, captions=("a", "b"))


@pytest.mark.parametrize("path", ["/etc/a.png", "../a.png", "a/../../b.png", "..\\a.png", "file:a.png"])
def test_pictures_stay_in_their_folder(path: str) -> None:
    with pytest.raises(DataError, match="outside the folder"):
        dataclasses.replace(full().grids[0], images=((path,), ("",)))
    data = edited(lambda d: d["grids"][0].update(images=[[path], [""]]))
    with pytest.raises(DataError, match=r"grids\[0\].*outside the folder"):
        Results.from_json(data)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.json"):
        Results.load(tmp_path / "none.json")
    torn = tmp_path / "torn.json"
    torn.write_text(json.dumps(full().to_json())[:-20])
    with pytest.raises(DataError, match="damaged: not JSON"):
        Results.load(torn)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = full().save(tmp_path / "results.json")
    before = path.read_bytes()
    wrong = dataclasses.replace(full(), config={"not JSON": object()})
    with pytest.raises(TypeError):
        wrong.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        full().save(tmp_path / "file" / "results.json")


def test_metrics_are_found_by_field() -> None:
    results = full()
    assert results.find("UA") == [results.metrics[0]]
    assert results.find("IRA", judge="cnn", when="after") == [results.metrics[1]]
    assert results.find("IRA", judge="other") == []
