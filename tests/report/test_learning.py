import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.records.learned import run
from tests.report.pages import Page

from unteach.continual.metrics import METRICS
from unteach.errors import DataError
from unteach.records.learning import Arm, LearningResults, LearningRun, lower_is_better
from unteach.records.stats import Paired, paired_t
from unteach.report import svg, terms
from unteach.report.format import signed, value
from unteach.report.learning import sentence, verdict
from unteach.report.page import page as render

ACC = "class_il/final_average_accuracy"
LIFTS = {"none": 0.0, "refresh": 0.05, "reweight": 0.05, "sam": -0.05}


def results(seeds: int = 4, methods: tuple[str, ...] = ("er", "der"), **more: object) -> LearningResults:
    runs = []
    for method in methods:
        for plugin, lift in LIFTS.items():
            for seed in range(seeds):
                passes = 2000 if plugin in ("refresh", "sam") else 1000
                runs.append(run(method, plugin, seed, lift=lift, passes=passes, noise=0.004, **more))  # type: ignore[arg-type]
    return LearningResults(runs)


def pairs(*gaps: float) -> Paired:
    found = paired_t([(gap, 0.0) for gap in gaps])
    assert found is not None
    return found


BETTER, WORSE, UNCLEAR = pairs(0.02, 0.021, 0.022), pairs(-0.02, -0.021, -0.022), pairs(0.02, -0.01, 0.0)


def test_the_page_has_everything_and_loads_nothing(tmp_path: Path) -> None:
    page = Page(render(results().runs, tmp_path / "page.html"))
    assert {"html", "head", "title", "style", "main", "h1", "svg"} <= {tag for tag, _ in page.tags}
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("href", "#x").startswith("#")
    assert not re.search(r"https?:|url\(|@import|//\w", page.source)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    for fact in (
        "Continual learning: digits",
        "digits (class-incremental, small-conv)",
        "2 methods, 3 plug-ins, 8 arms, 32 runs · 4 seeds an arm · 3 tasks",
        "Final accuracy, Class-IL: what each plug-in adds",
        "Holm's correction for 6 comparisons",
        "about 0.3 of 6 intervals",
        "The same against the control “reweight”",
        "against alone, on 2 methods: better on 2",
        "worse than alone",
        "better than alone, not shown better than reweight",
        "forward transfer, Task-IL",
        "Best for their passes",
        "×2.00",
        "unteach learn --seed 3",
        '"gamma": 0.01',
        "(1/T) Σ_i R[T][i] (GEM 2017)",
        "Student's t over seeds",
    ):
        assert fact in page.text, fact


def test_cells_say_what_the_results_say(tmp_path: Path) -> None:
    data = results(methods=("er",))
    page = Page(render(data.runs, tmp_path))
    assert (tmp_path / "report.html").is_file()
    for plugin in ("refresh", "sam"):
        pair = data.paired(("er", plugin), ("er", "none"), ACC)
        mean = data.table(ACC)[Arm("er", plugin)]
        assert pair is not None and mean is not None and pair.low is not None and pair.high is not None
        between = f"{signed(ACC, pair.low)} to {signed(ACC, pair.high)}"
        cell = f"{signed(ACC, pair.mean)}{between}{pair.better}/{pair.n} · {value(ACC, mean.mean)}{pair.outcome}"
        assert cell.replace(" ", "") in page.text.replace(" ", ""), cell
    classes = [cell["class"] for cell in page.all("td") if cell.get("title", "").startswith("er + ")]
    by_plugin = dict(zip(("refresh", "reweight", "sam"), classes, strict=False))
    assert by_plugin["refresh"].startswith("better") and by_plugin["sam"].startswith("worse")


def test_inert_and_diverging_arms_are_announced(tmp_path: Path) -> None:
    tiny, wild = [{"unlearn_ratio": 1e-5, "cancelling": 0.0}] * 3, [{"unlearn_ratio": 0.4, "cancelling": 0.9}] * 3
    runs: list[LearningRun] = []
    for seed in range(3):
        host = run("er", "none", seed, noise=0.01)
        same = run("er", "refresh", seed, diagnostics=tiny, warnings=["raise gamma"])
        runs += [host, dataclasses.replace(same, matrices=host.matrices, metrics=host.metrics)]
        runs.append(run("er", "strong", seed, diagnostics=wild))
        runs.append(run("er", "broken", seed, diagnostics=[{"loss": None}]))
    page = Page(render(runs, tmp_path / "page.html"))
    assert "Look at these first" in page.text
    assert "inert: every seed gave exactly what the method gives alone (3 of 3 seeds)" in page.text
    assert "its step was below 0.001 of the descent step (unlearn_ratio) (3 of 3 seeds)" in page.text
    assert "raise gamma (3 of 3 seeds)" in page.text
    assert "more than half of the steps climbed the loss (cancelling) (3 of 3 seeds)" in page.text
    assert "diverged: loss was not a finite number" in page.text
    assert "identical to alone: it did nothing" in page.text
    quiet = Page(render(results().runs, tmp_path / "quiet.html"))
    assert "Look at these first" not in quiet.text


@pytest.mark.parametrize(
    ("against", "tone", "label"),
    [
        ({}, "none", "no paired run of the method alone"),
        ({"alone": None, "sam": BETTER}, "none", "no paired run of the method alone"),
        ({"alone": UNCLEAR, "sam": BETTER}, "none", "not told apart from alone"),
        ({"alone": WORSE}, "bad", "worse than alone"),
        ({"alone": pairs(0.0, 0.0)}, "none", "identical to alone: it did nothing"),
        ({"alone": pairs(0.1)}, "none", "one seed: no interval"),
        ({"alone": BETTER}, "good", "better than alone"),
        ({"alone": BETTER, "sam": None}, "good", "better than alone"),
        ({"alone": BETTER, "reweight": UNCLEAR, "sam": BETTER}, "fair", "not shown better than reweight"),
        ({"alone": BETTER, "reweight": WORSE, "sam": UNCLEAR}, "fair", "not shown better than reweight or sam"),
        ({"alone": BETTER, "reweight": BETTER, "sam": BETTER}, "good", "better than alone and than reweight and sam"),
    ],
)
def test_verdicts_are_held_against_the_controls(against: dict[str, Paired | None], tone: str, label: str) -> None:
    found = verdict(against)
    assert found[0] == tone and label in found[1]


def test_sentences() -> None:
    # 0.02, 0.021, 0.022: sd 0.001, half = 4.30265 * 0.001 / sqrt(3) = 0.00248
    said = "Against alone: better, +2.1 (95 % interval +1.9 to +2.3; better in 3 of 3 seeds)."
    assert sentence("alone", BETTER, ACC) == said
    assert "not told apart, the interval holds 0" in sentence("sam", UNCLEAR, ACC)
    assert sentence("sam", pairs(0.0, 0.0), ACC) == "Against sam: exactly the same in all 2 seeds."
    assert "says nothing about others" in sentence("sam", pairs(0.1), ACC)
    assert "no common seeds" in sentence("sam", None, ACC)
    assert [signed(ACC, x) for x in (0.0123, -0.0123, 0.0004, -0.0)] == ["+1.2", "−1.2", "±0.0", "±0.0"]
    assert [value(*x) for x in ((ACC, 0.5), ("final_nll", 1.234), ("passes", 12000), ("seconds", 61), (ACC, None))] == [
        "50.0",
        "1.23",
        "12.0 k",
        "1 min 01 s",
        "–",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningResults([run()]),
        lambda: LearningResults([run(plugin="refresh")]),
        lambda: LearningResults([run(tasks=1), run(plugin="sam", tasks=1)]),
        lambda: LearningResults([run(seed=0), run(plugin="refresh", seed=1)]),
        lambda: LearningResults([run(matrices={}, metrics={ACC: None}, untrained={}), run(plugin="sam")]),
        lambda: LearningResults([run(matrices={"class_il": ((None,) * 3, (None,) * 3, (0.5,) * 3)}, passes=0)]),
        lambda: LearningResults([run(), run("der", tasks=20, stream="letters", scenario="task")]),
        lambda: LearningResults([run(plugin=f"p{i}") for i in range(12)] + [run()]),
    ],
)
def test_odd_sets_of_runs_make_a_page(make: Callable[[], LearningResults], tmp_path: Path) -> None:
    page = Page(render(make().runs, tmp_path / "page.html"))
    assert "Few seeds." in page.text


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    word = "<script>\"'&"
    runs = [
        run(word, plugin, 0, stream=word, warnings=[word], diagnostics=[{word: 1.0}], environment={word: word})
        for plugin in ("none", word)
    ]
    page = Page(render(runs, tmp_path / "page.html", title=word))
    assert not page.all("script") and page.text.count("<script>") > 10


def test_a_folder_is_read_and_errors_are_passed_on(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(seed=seed).save(tmp_path / "er" / str(seed))
    assert "2 seeds an arm" in Page(render([tmp_path], tmp_path / "a.html", title="Mine")).text
    (tmp_path / "er" / "0" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        render([tmp_path], tmp_path / "b.html")


def test_words_are_those_of_the_metrics() -> None:
    """The report imports no engine, so its words are a second list; it must not drift from the first."""
    words = {term.name: term for term in terms.LEARNING}
    without = {"calibration_error"}  # shown as final_calibration_error
    assert set(METRICS) - without <= set(words)
    for name, metric in METRICS.items():
        if name not in without:
            assert lower_is_better(name) == (metric.direction == "lower"), name
            assert (
                metric.source.split(" ")[0] in words[name].meaning
                or metric.source.islower()
                or name.endswith(("incl_last",))
            ), name
    assert terms.term("class_il/forgetting").label == "forgetting, Class-IL" and not terms.term("unknown").share


def test_ticks_are_round_and_cover() -> None:
    assert svg.ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert svg.ticks(-1.3, 2.2) == [-2, -1, 0, 1, 2, 3]
    assert svg.ticks(0.031, 0.034)[0] <= 0.031 and svg.ticks(0.031, 0.034)[-1] >= 0.034
    assert len(svg.ticks(5, 5)) >= 2


def test_lines_are_where_the_values_are() -> None:
    line = svg.Line(label="a<b", css="c0", values=(0.0, 50.0, None, 100.0))
    drawn = svg.lines([line], title="t", x_label="x", scale=[0, 50, 100], width=142, height=138)
    # 34 to 134 across for 1..4; 108 (0) to 8 (100) from the bottom up; the None breaks the line in two
    assert 'points="34.0,108.0 67.3,58.0"' in drawn
    assert 'cx="134.0" cy="8.0"' in drawn and "a&lt;b" in drawn
    assert svg.lines([], title="t", x_label="x") == "" and svg.scatter([], title="t", x_label="x", y_label="y") == ""
    named = svg.lines(
        [line, dataclasses.replace(line, label="second")], title="t", x_label="x", scale=[0, 100], names=60
    )
    heights = [float(y) for y in re.findall(r'class="name c0" x="[\d.]+" y="([\d.]+)"', named)]
    assert len(heights) == 2 and abs(heights[0] - heights[1]) >= 12
