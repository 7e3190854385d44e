"""``unteach learn`` and the lists beside it, on handwritten digits with a network of a few weights."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from unteach.cli import main
from unteach.commands.learn import Learn
from unteach.continual.grid import Job
from unteach.continual.methods import methods
from unteach.continual.networks import networks
from unteach.continual.plugins import plugins
from unteach.continual.streams import streams
from unteach.errors import ConfigError
from unteach.records.learning import LearningResults

CONFIGS = sorted((Path(__file__).parents[1] / "benchmarks" / "configs").glob("*.yaml"))
TINY: dict[str, Any] = {
    "title": "A small grid",
    "stream": "digits",
    "network": "mlp",
    "network_options": {"hidden": [8]},
    "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.05},
    "methods": [
        "fine-tune",
        {"method": "er", "buffer_size": 20, "label": "er 20"},
        {"method": "gdumb", "fit_epochs": 1},
    ],
    "plugins": ["none", {"plug-in": "reweight", "ratio": 0.5}],
    "seeds": [0, 1],
}
ARMS = ["fine-tune", "fine-tune__reweight", "er20", "er20__reweight", "gdumb"]
"""What is left out: plug-ins on a method that never steps."""


def config(folder: Path, **changes: Any) -> str:
    path = folder / "grid.yaml"
    record = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    return str(path)


def runs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("run.json"))}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learn")
    assert main(["learn", "--config", config(folder), "--out", str(folder / "out")]) == 0
    return folder


def test_the_grid_is_run_and_measured(done: Path) -> None:
    out = done / "out"
    assert set(runs(out)) == {f"runs/{arm}/{seed}/run.json" for arm in ARMS for seed in (0, 1)}
    results = LearningResults.load(out / "runs")
    assert len(results.runs) == 10
    (run,) = [r for r in results.runs if r.key.method == "er 20" and r.key.plugin == "reweight" and r.key.seed == 1]
    assert run.key.method_settings["buffer_size"] == 20 and run.key.plugin_settings["ratio"] == 0.5
    assert run.key.stream == "digits" and run.key.scenario == "class" and run.key.network == "mlp"
    assert len(run.task_names) == 5 and sum(run.test_sizes) == 359
    assert run.command.startswith("unteach learn --config") and run.environment["torch"]
    last = run.matrices["class_il"][4]
    assert run.metrics["class_il/final_average_accuracy"] == pytest.approx(sum(last) / 5)  # type: ignore[arg-type]
    assert not list(out.rglob("state.safetensors"))  # what is finished needs no checkpoint


class Addresses(HTMLParser):
    """Everything that a page would load or link to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]


def test_the_page_holds_everything_it_shows(done: Path) -> None:
    page = (done / "out" / "report.html").read_text(encoding="utf-8")
    assert "A small grid" in page and "er 20" in page and "reweight" in page
    parser = Addresses()
    parser.feed(page)
    assert all(address.startswith(("#", "data:")) for address in parser.found), parser.found
    assert not parser.tags & {"link", "iframe", "object"} and "@import" not in page
    assert not re.search(r"url\((?!['\"]?(#|data:))", page)


def test_the_same_command_again_trains_nothing(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = runs(done / "out")
    monkeypatch.setattr("unteach.continual.grid.Trainer", None)
    assert main(["learn", "--config", str(done / "grid.yaml"), "--out", str(done / "out")]) == 0
    assert runs(done / "out") == before
    said = capsys.readouterr().out
    assert "10 runs (5 arms), 0 left" in said and "report.html" in said
    assert re.search(r"fine-tune +\d+\.\d% ", said) or re.search(r"fine-tune.* \d+\.\d%", said)


def test_more_runs_are_added_and_other_settings_refused(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = runs(done / "out")
    more = ["learn", "--config", str(done / "grid.yaml"), "--out", str(done / "out"), "--methods", "fine-tune"]
    assert main([*more, "--seeds", "0", "2", "--plugins", "none"]) == 0
    after = runs(done / "out")
    assert set(after) - set(before) == {"runs/fine-tune/2/run.json"} and before.items() <= after.items()
    (done / "out" / "runs" / "fine-tune" / "2" / "run.json").unlink()
    assert main([*more, "--seeds", "0", "--plugins", "none", "--epochs", "2"]) == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    assert runs(done / "out") == before


def test_a_run_that_was_broken_off_goes_on(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unteach.continual import engine

    class Enough(Exception):
        pass

    real, calls = engine.Trainer.step, []

    def step(self: Any, now: Any) -> Any:
        calls.append(now.index)
        if len(calls) == 40:
            raise Enough
        return real(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "step", step)
        with pytest.raises(Enough):
            main(["learn", "--config", config(tmp_path), "--out", str(tmp_path / "out")])
    assert 0 < len(runs(tmp_path / "out")) < 10
    assert main(["learn", "--config", config(tmp_path), "--out", str(tmp_path / "out")]) == 0
    ours, theirs = (LearningResults.load(folder / "out" / "runs").runs for folder in (tmp_path, done))
    measured = {(r.key.method, r.key.plugin, r.key.seed): r.matrices for r in ours}
    assert measured == {(r.key.method, r.key.plugin, r.key.seed): r.matrices for r in theirs}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(done: Path, tmp_path: Path) -> None:
    small = config(tmp_path, methods=["fine-tune"], plugins=None)
    assert main(["learn", "--config", small, "--out", str(tmp_path / "out"), "--workers", "2", "--verbose"]) == 0
    ours = {r.key.seed: r for r in LearningResults.load(tmp_path / "out" / "runs").runs}
    for run in LearningResults.load(done / "out" / "runs").runs:
        if (run.key.method, run.key.plugin) == ("fine-tune", "none"):
            assert ours[run.key.seed].matrices == run.matrices and ours[run.key.seed].ece == run.ece


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, **changes: Any) -> str:
    given = ["--config", config(folder, **changes)] if changes else []
    assert main(["learn", *given, *arguments, "--out", str(folder / "out")]) == 2
    assert not (folder / "out").exists()
    return capsys.readouterr().err


def test_all_mistakes_are_listed_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(tmp_path, capsys, metods=["er"], seed=3)
    assert "unknown key 'metods' (did you mean" in said and "unknown key 'seed'" in said
    said = refused(
        tmp_path,
        capsys,
        methods=[
            "der+++",
            {"method": "er", "buffer_size": 0, "bufer": 3},
            {"method": "ewc", "training": {"learning_rate": -1}},
        ],
        plugins=[{"plug-in": "refresh", "gamma": -1}],
    )
    for words in ("'der+++'", "did you mean 'der++'", "unknown setting 'bufer'", "buffer_size must be at least 1"):
        assert words in said
    said = refused(tmp_path, capsys, methods=["er"], training={"learning_rate": 0, "epoch": 1}, plugins=["refrehs"])
    assert "did you mean 'refresh'" in said
    said = refused(tmp_path, capsys, methods=["er"], plugins=["none"], training={"learning_rate": 0, "epoch": 1})
    assert "learning_rate must be above 0" in said and "unknown setting 'epoch'" in said


def test_what_is_missing_or_twofold_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no stream was named" in refused(tmp_path, capsys, "--methods", "er")
    assert "no methods were named" in refused(tmp_path, capsys, "--stream", "digits")
    assert "two runs would have the same name" in refused(tmp_path, capsys, methods=["er", "er"])
    assert "whole numbers" in refused(tmp_path, capsys, seeds=["a"])
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    assert "not valid YAML" in refused(tmp_path, capsys, "--config", str(tmp_path / "broken.yaml"))
    assert "cannot read" in refused(tmp_path, capsys, "--config", str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("[1]", encoding="utf-8")
    assert "must be a table" in refused(tmp_path, capsys, "--config", str(tmp_path / "list.yaml"))


@pytest.mark.parametrize(
    "changes", [{"stream": "digitz"}, {"network": "mpl"}, {"stream_options": {"task": 5}}, {"scenario": "clas"}]
)
def test_streams_and_networks_are_checked_with_the_rest(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Learn(config=Path(config(tmp_path, **changes))).plan()


def test_the_stream_is_checked_once_a_grid_and_not_instead_of_the_arms(tmp_path: Path) -> None:
    """house.md, defect 6: every arm checked it anew, and none was then checked itself."""
    record = config(tmp_path, stream_options={"task": 5}, methods=["er", "der", "ewcc"], plugins=["none", "sam"])
    with pytest.raises(ConfigError) as found:
        Learn(config=Path(record)).plan()
    assert str(found.value).count("unknown option 'task'") == 1 and "ewcc" in str(found.value)


def test_the_lists_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    wanted: dict[str, list[str]] = {
        "learners": [*methods, *methods.presets],
        "plugins": [*plugins, *plugins.presets],
        "streams": [*streams],
        "networks": [*networks],
    }
    for what, names in wanted.items():
        assert main(["list", what]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == names
        assert all(len(line.split()) > 2 for line in lines)
    assert main(["list", "learners", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "buffer_size = 200  (≥ 1)" in said and "[exact given the weights]" in said


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_that_ships_is_a_plan(path: Path) -> None:
    plan = Learn(config=path).plan()
    assert plan.title and len(plan.jobs) > 10
    assert all(job.stream in streams and job.network in networks for job in plan.jobs)
    labels = {job.folder(Path("out")) for job in plan.jobs}
    assert len(labels) == len(plan.jobs)  # no two runs share a folder


def test_papers_runs_have_the_papers_settings() -> None:
    """Mammoth's: batches of 32, SGD without momentum, 50 epochs (CIFAR) or 100 (Tiny ImageNet), ResNet-18."""
    found = {path.stem: Learn(config=path).plan().jobs for path in CONFIGS if path.stem.startswith("paper-")}
    assert set(found) == {"paper-cifar10", "paper-cifar100", "paper-tiny"}
    for stem, jobs in found.items():
        arms: dict[tuple[str, bool], Job] = {(job.label, job.plugin is None): job for job in jobs}
        assert {plugged for _, plugged in arms} == {True, False}
        for job in arms.values():
            assert (
                job.network == "resnet18"
                and job.training["batch_size"] == 32
                and job.training["memory_batch_size"] == 32
            )
            assert job.training.get("momentum", 0) == 0 and job.training.get("optimizer", "sgd") == "sgd"
            assert job.training["epochs"] == (100 if stem == "paper-tiny" else 50)
            assert job.training.get("augment", "stream") == "stream"
    by_label = {job.label: job for job in found["paper-cifar10"]}
    assert by_label["der++ 500"].method == {"method": "der++", "buffer_size": 500, "alpha": 0.2, "beta": 0.5}
    assert by_label["er 200"].training["learning_rate"] == 0.1 and by_label["er 200"].method["concatenated"]
    assert found["paper-cifar100"][0].training["milestones"] == [35, 45]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": 3}, "'seeds' must be a list"),
        ({"seeds": [True]}, "whole numbers"),
        ({"methods": [3]}, "names or tables"),
        ({"training": [1]}, "table of settings"),
        ({"methods": [{"method": "er", "label": "a b"}, {"method": "er", "label": "ab"}]}, "same name"),
        ({"methods": [{"method": "er", "label": "a__b"}]}, "must not hold"),
    ],
)
def test_what_is_not_a_grid_is_refused(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=what):
        Learn(config=Path(config(tmp_path, **changes))).plan()
