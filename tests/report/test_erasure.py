import dataclasses
from pathlib import Path

import pytest
from tests.report.pages import concept_metrics, make, metric

from unteach.core import text as numbers
from unteach.evaluate.metrics import presence
from unteach.records.erasure import ConceptRecord, Metric, Results
from unteach.report import erasure, format, terms
from unteach.report.erasure import Verdict
from unteach.report.section import Thresholds

RECORD = ConceptRecord(target="mono", anchor="noto", kind="style")


def verdict(*metrics: Metric) -> Verdict:
    return erasure.verdict(Results(concepts=(RECORD,), metrics=metrics), "mono", Thresholds())


@pytest.mark.parametrize(
    ("gone", "before", "kept", "tone", "label"),
    [
        (98, 97, 93, "good", "erased, rest kept"),
        (95, 95, 90, "good", "erased, rest kept"),
        (94, 97, 97, "fair", "not quite gone"),
        (80, 97, 97, "fair", "not quite gone"),
        (79, 97, 97, "bad", "not gone"),
        (100, 97, 91, "fair", "some of the rest lost"),
        (100, 97, 81, "bad", "much of the rest lost"),
        (90, 97, 50, "bad", "much of the rest lost"),
        (10, 97, 50, "bad", "not gone"),
        (100, 60, 99, "good", "erased, rest kept"),
    ],
)
def test_tones(gone: int, before: int, kept: int, tone: str, label: str) -> None:
    found = verdict(*concept_metrics("mono", gone, before, kept))
    assert (found.tone, found.label) == (tone, label)
    assert found.sentence == f"gone on {gone} % of prompts, the rest kept at {kept} %"


def test_the_worst_judge_and_set_decide() -> None:
    found = verdict(
        *concept_metrics("mono", 100, 99, 98),
        *concept_metrics("mono", 85, 99, 99, judge="nearest"),
        *concept_metrics("mono", 99, 90, 80, prompts="other names"),
        *concept_metrics("twemoji", 1, 99, 1),
    )
    assert found.gone is not None and (found.gone.value, found.gone.judge) == (0.85, "nearest")
    assert found.kept is not None and (found.kept.value, found.kept.prompts) == (0.8, "other names")
    assert found.kept_before is not None and found.kept_before.value == 0.9
    assert (found.judges, found.sets, found.tone) == (2, 2, "fair")


def test_nothing_measured_is_no_verdict() -> None:
    found = verdict()
    assert (found.tone, found.label) == ("none", "not measured")
    assert found.sentence == "not measured, the rest not measured"
    only = verdict(metric("UA", 99, 100, concept="mono"))
    assert (only.tone, only.kept_tone) == ("good", "none")


def test_blocks_put_judges_side_by_side(tmp_path: Path) -> None:
    results = make(tmp_path)
    found = erasure.blocks([m for m in results.metrics if m.concept], ["cnn", "nearest"])
    assert [block.term.name for block in found] == ["UA", "kept", "IRA"]
    cnn, nearest = found[1].rows[0].cells
    assert cnn is not None and nearest is not None
    assert cnn.shown is cnn.after and cnn.before is not None and cnn.change is not None
    assert cnn.after is not None and cnn.after.value == 0.93
    assert nearest.after is not None and nearest.after.value == 0.95
    assert found[2].rows[0].cells[1] is None
    custom = erasure.blocks([metric("my own", 1, 2), metric("UA", 1, 2)], [""])
    assert [block.term.label for block in custom] == ["Gone", "my own"]


def test_the_heat_map_by_hand(tmp_path: Path) -> None:
    table = make(tmp_path).tables[0]
    found = erasure.heat(table)
    kinds = [[(s.kind, s.amount) for s in squares] for _, _, squares, _ in found.rows]
    assert kinds == [[("erased", 1.0), ("erased", 0.75)], [("gained", 0.25), ("empty", 0.0)]]
    assert [(name, gone, mean) for name, gone, _, mean in found.rows] == [
        ("twemoji", True, "−88 pt"),
        ("noto", False, "+25 pt"),
    ]
    assert found.rows[0][2][1].text == "cat, twemoji: as asked 100 % before, 25 % after (n 4)"
    column = erasure.heat(dataclasses.replace(table, erased_rows=(), erased_columns=("cat",)))
    assert [s.kind for s in column.rows[0][2]] == ["lost", "erased"]
    assert column.columns == (("dog", False), ("cat", True))


def test_what_is_seen_instead_adds_up(tmp_path: Path) -> None:
    base = make(tmp_path).tables[1]
    columns = ("twemoji", "a", "b", "c", "d", "e", "none of these")
    after = (0.05, 0.1, 0.3, 0.2, 0.15, 0.1, 0.1)
    table = dataclasses.replace(base, columns=columns, before=((1.0, *[0.0] * 6),), after=(after,), n=((9,) * 7,))
    before, found = erasure.instead(table)
    assert [(s.label, s.kind, s.share) for s in before] == [("twemoji", "target", 1.0)]
    assert [(s.label, s.kind) for s in found] == [
        ("b", "other"),
        ("c", "other"),
        ("d", "other"),
        ("none of these", "none"),
        ("twemoji", "target"),
        ("others", "more"),
    ]
    assert sum(s.share for s in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (0.001, "< 1 %"),
        (0.008, "1 %"),
        (0.5, "50 %"),
        (0.994, "99 %"),
        (0.999, "> 99 %"),
        (1, "100 %"),
        (1e-12, "< 1 %"),
        (1 - 1e-12, "> 99 %"),
    ],
)
def test_percent_never_claims_all_or_nothing(value: float, text: str) -> None:
    assert format.percent(value) == text


def test_numbers_have_units() -> None:
    share = metric("UA", 97, 100)
    assert format.number(share, share.value) == "97 %" and format.between(share) == "92–99 %"
    change = dataclasses.replace(share, when="change", p=0.5, value=-0.04, low=-0.1, high=0.02)
    assert format.number(change, change.value) == "−4 pt" and format.between(change) == "−10 pt to +2 pt"
    assert format.points(0.001) == "±0 pt"
    psnr = dataclasses.replace(share, unit="dB", value=21.55, low=20.0, high=23.0)
    assert format.number(psnr, 21.54) == "21.5 dB" and format.between(psnr) == "20.0 dB to 23.0 dB"
    assert format.number(dataclasses.replace(share, unit="intensity"), 0.0456) == "0.046"
    assert format.number(dataclasses.replace(share, unit="number"), 1234.5678) == "1235"
    assert (format.probability(0.0002), format.probability(0.0314)) == ("p < 0.001", "p = 0.031")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.83, "0.8 s"),
        (9.99, "10.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (112, "1 min 52 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (0, "", "0"),
        (999, "B", "999 B"),
        (1000, "B", "1.00 kB"),
        (368_640, "", "369 k"),
        (4_262_000, "", "4.26 M"),
        (999_999, "B", "1.00 MB"),
        (17_040_000, "B", "17.0 MB"),
        (1.42e9, "B", "1.42 GB"),
        (5e15, "B", "5000 TB"),
    ],
)
def test_sizes(count: float, unit: str, text: str) -> None:
    assert numbers.size(count, unit) == text


def test_every_measure_has_its_words() -> None:
    listed = {term.name for term in terms.ERASURE}
    written = {*presence.RULES, "none on target", "none on rest", "pixel change", "PSNR", "same verdict"}
    assert listed == written
    assert all(terms.term(name).meaning for name in written)
    assert terms.term("x").label == "x" and terms.order("x") > terms.order("same verdict")
