"""The command line: every command on real toy pipelines, and on the bundled model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.toys import KINDS, build

from unteach.canvas import model_path
from unteach.cli import main
from unteach.commands import demo
from unteach.commands.erase import NOT_AS_ASKED
from unteach.core.events import Lines
from unteach.data.vocabulary import OBJECTS, STYLES
from unteach.diffusion.delta import WeightDelta
from unteach.erase import methods
from unteach.evaluate.prompts import PROTOCOLS, Protocol
from unteach.records.erasure import ConceptRecord, Metric, Results

QUICK = [
    "steps=4", "warm_up=1", "batch_size=2", "learning_rate=0.01", "d_width=8", "images=4", "retain_images=4",
    "num_inference_steps=2",
]  # fmt: skip
DONE = (0, NOT_AS_ASKED)
"""A toy learns little in four steps: that the command ended well is one thing, what its check found another."""
CONCEPT = ["--target", "twemoji", "--anchor", "openmoji", "--kind", "style", "--prompts", "a {} dog", "{} cat"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toys")
    return {kind: build(kind, folder / kind) for kind in KINDS}


def toy_command(model: Path, out: Path | None, *more: str) -> list[str]:
    place = [] if out is None else ["--out", str(out)]
    return ["erase", "--model", str(model), *CONCEPT, "--method", "doco", "--set", *QUICK, *place, *more]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# erase


@pytest.mark.parametrize("kind", KINDS)
def test_erase_writes_a_delta_its_card_and_its_settings(
    kind: str, toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(toy_command(toys[kind], out, "--seed", "3", "--device", "cpu")) in DONE
    delta = WeightDelta.load(out / "delta.safetensors")
    assert delta.norm() > 0 and delta.meta["seed"] == 3 and delta.meta["config"]["steps"] == 4
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["d_width"] == 8 and config["concepts"][0]["prompts"] == ["a {} dog", "{} cat"]
    assert (
        delta.check is not None
        and f"Checked when it was made: {delta.check.verdict}" in (out / "README.md").read_text()
    )
    assert json.loads((out / "cost.json").read_text())["seconds"] > 0
    said = capsys.readouterr().out
    assert "twemoji → openmoji (style)" in said and "2 prompt pairs" in said
    assert "  sample: 8 done" in said and "  doco: 4 done" in said
    for name in ("delta.safetensors", "README.md", "config.json"):
        assert str(out / name) in said.split("wrote:")[1]


def test_the_same_command_goes_on_and_another_one_is_refused(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main(toy_command(toys["sd"], whole)) in DONE
    assert main(toy_command(toys["sd"], out)) in DONE
    # As after an interruption between the last checkpoint and the result.
    (out / "delta.safetensors").unlink()
    assert main(toy_command(toys["sd"], out)) in DONE
    assert "going on" in capsys.readouterr().out
    assert (out / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()

    before = files(out)
    assert main(toy_command(toys["sd"], out, "--threads", "1")) in DONE  # not part of what decides the result
    assert "holds the finished result" in capsys.readouterr().out
    assert files(out) == before
    for other, difference in (
        (["--set", "steps=5"], "settings.steps was 4, is now 5"),
        (["--seed", "1"], "seed was 0, is now 1"),
        (["--names", "tw"], "concepts[0].names was [], is now ['tw']"),
        (["--target", "noto"], "concepts[0].target was 'twemoji', is now 'noto'"),
    ):
        assert main(toy_command(toys["sd"], out, *other)) == 2
        said = capsys.readouterr().err
        assert "holds another run" in said and difference in said and "another folder" in said
        assert files(out) == before
    # The same settings of another model: told apart by its weights.
    other = build("sd", tmp_path / "other", seed=1)
    assert main(toy_command(other, out)) == 2
    assert "base" in capsys.readouterr().err and files(out) == before


def test_stages_without_a_configuration_are_compared_before_anything_is_written(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(toy_command(toys["sd"], out)) in DONE
    (out / "config.json").unlink()
    before = files(out)
    assert main(toy_command(toys["sd"], out, "--seed", "9")) == 2
    assert "another run" in capsys.readouterr().err and files(out) == before
    assert main(toy_command(toys["sd"], out)) in DONE and (out / "config.json").exists()


def test_configuration_file_and_overrides(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "erase.yaml"
    content = {
        "model": str(toys["sd"]),
        "concepts": [{"target": "noto", "anchor": "mono", "kind": "style", "prompts": ["a {} dog"]}],
        "method": "uce",
        "settings": {"lam": 0.25, "erase_scale": "2e0"},
        "seed": 5,
    }
    file.write_text(yaml.safe_dump(content))
    assert main(["erase", "--config", str(file), "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out.split("\n\n")[0])
    assert shown["settings"]["lam"] == 0.25 and shown["settings"]["erase_scale"] == 2.0 and shown["seed"] == 5
    assert shown["concepts"][0]["target"] == "noto"

    line = ["--set", "lam=1", "--set", "tokens=last", "--seed", "6", *CONCEPT]
    assert main(["erase", "--config", str(file), *line, "--out", str(tmp_path / "run")]) in DONE
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["lam"] == 1.0 and config["settings"]["erase_scale"] == 2.0 and config["seed"] == 6
    assert config["settings"]["tokens"] == "last" and [c["target"] for c in config["concepts"]] == ["twemoji"]

    # What was saved is itself a configuration, and gives the same bits.
    saved = ["--config", str(tmp_path / "run" / "config.json")]
    assert main(["erase", *saved, "--out", str(tmp_path / "again")]) in DONE
    deltas = [(tmp_path / name / "delta.safetensors").read_bytes() for name in ("run", "again")]
    assert deltas[0] == deltas[1]


def test_several_concepts_from_a_file(toys: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "concepts.csv"
    file.write_text("target,anchor,kind,prompts\ntwemoji,openmoji,style,a {} dog;a {} cat\nbomb,apple,object,a {}\n")
    out = tmp_path / "run"
    assert (
        main(["erase", "--model", str(toys["sd"]), "--concepts", str(file), "--method", "uce", "--out", str(out)])
        in DONE
    )
    meta = WeightDelta.load(out / "delta.safetensors").meta
    assert [c["target"] for c in meta["concepts"]] == ["twemoji", "bomb"]


def test_dry_run_says_what_it_would_do_and_writes_nothing(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(toy_command(toys["sd"], out, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    shown = yaml.safe_load(said.split("\n\n")[0])
    assert shown["method"] == "doco" and shown["settings"]["warm_up"] == 1 and shown["out"] == str(out)
    assert re.search(r"estimate: .*training, .* s checking the result", said)
    assert "would move" in said and "100.00%" in said and "2 prompt pairs; 0 no-ops" in said
    assert "estimate:" in said and "only an estimate: at batch 2" in said and "nothing was written" in said


def test_u2_the_exit_code_says_what_the_check_found(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "idle"
    idle = toy_command(toys["sd"], out, "--set", "learning_rate=1e-9", "weight_decay=0")
    assert main(idle) == NOT_AS_ASKED == 4
    said = capsys.readouterr()
    assert "did it work? nothing happened" in said.out and "twemoji → openmoji: nothing happened (0 %" in said.out
    assert "the rest: kept (moved 0.00 of" in said.out
    assert "WARNING" not in said.err  # said once, not by the library again
    assert "# To erase twemoji" in (card := (out / "README.md").read_text()) and "nothing happened" in card
    assert (out / "delta.safetensors").exists()  # written all the same
    before = files(out)
    assert main(idle) == 4 and files(out) == before  # the finished run says the same
    assert "did it work? nothing happened" in capsys.readouterr().out
    # The page of an evaluation says it, too.
    (tmp_path / "keep.txt").write_text("a red car\n")
    few = ["--prompts", str(tmp_path / "keep.txt"), "--num-inference-steps", "2"]
    assert main(["evaluate", "--run", str(out), *few]) == 0
    results = Results.load(out / "evaluation" / "results.json")
    assert results.check == WeightDelta.load(out / "delta.safetensors").check is not None
    assert main(["report", str(out / "evaluation"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "the check without a judge" in page and "nothing happened" in page
    # Half of the delta was never checked.
    assert main(["evaluate", "--run", str(out), *few, "--scale", "0.5", "--out", str(tmp_path / "half")]) == 0
    assert Results.load(tmp_path / "half" / "results.json").check is None


@pytest.mark.parametrize("method", ["uce", "ablate", "doco"])
def test_f14_every_method_takes_the_same_templates_and_a_refused_plan_leaves_no_folder(
    method: str, toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--set", *(QUICK if method == "doco" else QUICK[:1] + QUICK[2:4] + QUICK[5:])] if method != "uce" else []
    line = ["erase", "--model", str(toys["sd"]), "--target", "dog", "--anchor", "cat", "--method", method, *quick]
    plural = ["--prompts", "a photo of {}", "two {}s in the house"]
    assert main([*line, *plural, "--dry-run"]) == 0
    assert "2 prompt pairs" in capsys.readouterr().out
    assert main([*line, *plural, "--out", str(tmp_path / "run")]) in DONE
    assert "2 prompt pairs" in capsys.readouterr().out
    # The name stands beyond what the model reads: refused by the dry run and by the run, with nothing left behind.
    beyond = ["--prompts", "a red car in the house " * 6 + "{}"]
    for more in (["--dry-run"], ["--out", str(tmp_path / "none")]):
        assert main([*line, *beyond, *more]) == 2
        assert "no prompt pair of 'dog' is left" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_a_run_that_is_refused_before_it_begins_takes_its_configuration_back(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["erase", "--model", str(toys["sd"]), *CONCEPT, "--method", "uce"]
    line = [*base, "--out", str(tmp_path / "run")]
    foreign = ["--set", "train=[conv_in.*]"]  # only the method itself knows that it cannot edit these
    assert main([*line, *foreign]) == 2
    assert "UCE can only edit keys and values" in capsys.readouterr().err and not (tmp_path / "run").exists()
    # A folder that was there, with the user's file, stays as it was; the corrected command is no other run.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main([*line, *foreign]) == 2
    assert files(tmp_path / "run") == {"notes.txt": b"mine"}
    assert main(line) in DONE
    # A begun run keeps its configuration when it is refused later.
    before = files(tmp_path / "run")
    assert main([*line, *foreign]) == 2 and files(tmp_path / "run") == before


@pytest.mark.parametrize("method", ["uce", "ablate"])
@pytest.mark.parametrize("retain", [[], ["--retain", "a red car", "a mono cat"]])
def test_f15_plan_run_and_card_say_the_number_of_prompts_that_are_kept(
    method: str, retain: list[str], toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--set", *QUICK[:1], *QUICK[2:4], *QUICK[5:]] if method == "ablate" else []
    line = ["erase", "--model", str(toys["sd"]), *CONCEPT, "--method", method, *quick, *retain]
    assert main([*line, "--dry-run"]) == 0
    (planned,) = re.findall(r"(\d+) prompts to keep", capsys.readouterr().out, re.M)
    assert main([*line, "--out", str(tmp_path / "run")]) in DONE
    (said,) = re.findall(r"(\d+) prompts to keep", capsys.readouterr().out)
    (card,) = re.findall(r", (\d+) to keep", (tmp_path / "run" / "README.md").read_text())
    delta = WeightDelta.load(tmp_path / "run" / "delta.safetensors")
    assert planned == said == card == str(delta.meta["prompts"]["kept"]) and int(planned) > 0
    if method == "uce" and not retain:  # and they are kept: without them the values of the rest move further
        assert main([*line, "--set", "kept_words=0", "--out", str(tmp_path / "bare")]) in DONE
        assert "0 prompts to keep" in capsys.readouterr().out
        bare = WeightDelta.load(tmp_path / "bare" / "delta.safetensors")
        assert bare.check is not None and delta.check is not None and bare.check.rest > delta.check.rest


def test_captions_without_the_anchor_are_counted_and_said(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["erase", "--model", str(toys["sd"]), "--target", "bomb", "--anchor", "apple", "--method", "uce"]
    captions = ["--captions", "a red apple", "a blue car", "an apple and a bomb"]
    assert main([*base, *captions, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "1 prompt pairs; 2 of 3 captions are no-ops and left out" in said.out
    assert "1 with no anchor word (a no-op pair), 1 with the target named already" in said.out
    assert "WARNING" not in said.err  # said once, not by the library again
    assert main([*base, *captions, "--out", str(tmp_path / "run")]) in DONE
    assert "of 3 captions dropped: 1 with no anchor word" in capsys.readouterr().out
    assert main([*base, "--captions", "a dog", "a cat", "--out", str(tmp_path / "none")]) == 2
    assert "none of the 2 captions of 'bomb' can be used" in capsys.readouterr().err


def test_f1_captions_that_the_model_does_not_tell_apart_are_counted_and_said(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = "a red house " * 7 + "in the style of openmoji"
    command = ["erase", "--model", str(toys["sd"]), "--target", "twemoji", "--anchor", "openmoji", "--method", "uce"]
    run = [*command, "--captions", cut, "an openmoji dog", "--out", str(tmp_path / "run")]
    why = "'twemoji': of 2 captions left out: 1 with the same prompt twice, as the model reads it"
    assert main([*run, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 prompt pairs; 1 of 2 captions are no-ops and left out" in said and why in said
    assert main(run) in DONE
    said = capsys.readouterr().out
    assert "1 prompt pairs, " in said and why in said
    lost = tmp_path / "lost"
    for more in (["--dry-run"], []):
        assert main([*command, "--captions", cut, "--out", str(lost), *more]) == 2
        assert "no prompt pair of 'twemoji' is left" in capsys.readouterr().err
    assert not lost.exists()


def test_all_mistakes_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["erase", "--model", str(tmp_path / "nowhere"), "--target", "", "--anchor", "dog", "--kind", "animal"]
    assert main([*line, "--method", "doc0", "--seed", "-1", "--dtype", "float31", "--threads", "0"]) == 2
    said = capsys.readouterr().err
    assert "has 8 mistakes" in said and "Traceback" not in said
    for part in (
        "there is no folder",
        "target is empty",
        "kind must be 'style' or 'object'",
        "no method or preset is called 'doc0'; to do: did you mean 'doco'",
        "seed must be at least 0",
        "no dtype is called 'float31'",
        "threads must be at least 1",
        "add --out DIR",
    ):
        assert part in said


def test_unknown_keys_and_wrong_settings_are_refused_with_the_near_miss(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "erase.yaml"
    file.write_text("targt: bomb\nseed: many\nretain: dog\nsettings: [1]\nanchor: 3\n")
    assert (
        main(["erase", "--config", str(file), *CONCEPT, "--set", "stps=3", "oops", "--out", str(tmp_path / "x")]) == 2
    )
    said = capsys.readouterr().err
    for part in (
        "unknown key 'targt' (did you mean 'target'?)",
        "seed must be a whole number, found 'many'",
        "retain must be a list, found 'dog'",
        "settings must be a table",
        "anchor must be text, found 3",
        "unknown setting 'stps' (did you mean 'steps'?)",
        "--set oops: write KEY=VALUE",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == [file]
    toy = ["--model", str(toys["sd"])]
    assert main(["erase", *toy, "--concepts", "c.yaml", "--target", "bomb", "--out", str(tmp_path / "x")]) == 2
    assert "take out target" in capsys.readouterr().err
    assert main(["erase", *toy, "--out", str(tmp_path / "x")]) == 2
    assert "nothing to erase was named" in capsys.readouterr().err
    assert main(["erase", *toy, "--config", str(tmp_path / "no.yaml"), *CONCEPT, "--dry-run"]) == 2
    assert "no.yaml; found: No such file" in capsys.readouterr().err


def test_models_that_are_none(toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "flow"
    wrong.mkdir()
    (wrong / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    for model, message in (
        (tmp_path / "nowhere", "there is no folder"),
        (wrong, "known families: sd (StableDiffusionPipeline), sd3 (StableDiffusion3Pipeline), sdxl"),
        (toys["sd"] / "unet", "has no model_index.json"),
    ):
        assert main(["erase", "--model", str(model), *CONCEPT, "--out", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err
    assert main(toy_command(toys["sd"], tmp_path / "x", "--set", "train=[nothing.*]")) == 2
    assert "no parameter of UNet2DConditionModel matches 'nothing.*'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(toy_command(toys["sd"], tmp_path / "file" / "run")) == 2
    assert "cannot write" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


def test_what_the_bundled_model_can_draw_is_known_before_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["erase", "--target", "twemojy", "--set", "learning_rate=fast", "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert (
        "did you mean 'twemoji'" in said
        and "learning_rate must be a finite number" in said
        and "has 2 mistakes" in said
    )


def test_debug_shows_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["report", str(tmp_path / "none.json"), "--out", str(tmp_path / "r.html")]
    assert main(line) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([*line, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("UNTEACH_DEBUG", "1")
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "unteach: cannot read" in said


def test_an_interruption_is_not_an_error(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_step_two(_: Lines, stage: str, done: int, total: int) -> None:
        if (stage, done) == ("doco", 2):
            raise KeyboardInterrupt

    out = tmp_path / "run"
    line = toy_command(toys["sd"], out, "--save-every", "1")
    # The keyboard is what is imitated: the interruption comes while step 2 is reported.
    with monkeypatch.context() as patched:
        patched.setattr(Lines, "step", until_step_two)
        assert main(line) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "delta.safetensors").exists()
    assert main(line) in DONE and (out / "delta.safetensors").exists()


# list, report, help


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    for what, names in (
        ("methods", methods.names()),
        ("presets", methods.presets.names()),
        ("styles", list(STYLES)),
        ("objects", [info.name for info in OBJECTS]),
        ("families", ["sd", "sd3", "sdxl"]),
        ("models", ["canvas", "FOLDER"]),
    ):
        assert main(["list", what]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(names) and all(line.startswith(n) for line, n in zip(lines, names, strict=True))
    assert main(["list", "methods", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "doco" in said and "    warm_up = 100  (≥ 0)" in said and "    pace = " in said
    assert main(["list"]) == 0
    assert "doco-paper" in capsys.readouterr().out


def test_report_from_saved_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = Metric(name="UA", value=0.9, low=0.8, high=0.95, n=40, judge="cnn", prompts="other names", concept="bomb")
    results = Results(concepts=(ConceptRecord(target="bomb", anchor="balloon"),), metrics=(metric,))
    results.save(tmp_path / "one" / "results.json")
    page = tmp_path / "pages" / "report.html"
    assert main(["report", str(tmp_path / "one"), "--out", str(page), "--title", "Nothing <here>"]) == 0
    assert "Nothing &lt;here&gt;" in page.read_text() and str(page) in capsys.readouterr().out
    assert main(["report", "--out", str(page)]) == 2
    assert "no results were named" in capsys.readouterr().err


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from unteach.cli import main\n"
        "try: main(['erase', '--help'])\n"
        "except SystemExit as stopped: code = stopped.code\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout and "KEY=VALUE" in done.stdout


def test_unknown_options_and_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for line, hint in ((["erase", "--targt", "x"], "--target"), (["eraze"], "erase"), ([], "erase")):
        with pytest.raises(SystemExit) as stopped:
            main(line)
        assert stopped.value.code == 2 and hint in capsys.readouterr().err


# evaluate


def test_other_pipelines_get_drift_and_pictures(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prompts = tmp_path / "run", tmp_path / "keep.txt"
    assert main(toy_command(toys["sd"], out)) in DONE
    small = ["--num-inference-steps", "2", "--batch-size", "4"]
    assert main(["evaluate", "--run", str(out), *small]) == 2
    said = capsys.readouterr().err
    assert "for the bundled model ('canvas') only" in said and "--prompts FILE" in said

    prompts.write_text("a noto dog\n\na red car\n")
    line = ["evaluate", "--run", str(out), "--prompts", str(prompts), "--seeds", "1", "2", *small]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "Pixel change" in said and "PSNR" in said and "n 4" in said
    results = Results.load(out / "evaluation" / "results.json")
    assert {m.name for m in results.metrics} == {"pixel change", "PSNR"}
    assert results.command.startswith("unteach evaluate --run") and results.cost.method_seconds is not None
    assert [grid.role for grid in results.grids] == ["target", "retained"]
    assert all((out / "evaluation" / p).exists() for grid in results.grids for row in grid.images for p in row)
    assert main(line) == 0  # read back
    # F13: the same prompts in the column of a CSV file are the same evaluation
    table = tmp_path / "keep.csv"
    table.write_text('case_number,prompt,evaluation_seed\n0,"a noto dog",310\n1,a red car,8\n')
    capsys.readouterr()
    assert main([str(table) if part == str(prompts) else part for part in line]) == 0
    assert "2 prompts, from the column 'prompt'; not used: case_number, evaluation_seed" in capsys.readouterr().out
    assert main([*line, "--scale", "0.5"]) == 2
    assert "holds another evaluation" in capsys.readouterr().err
    assert main(["report", str(out / "evaluation"), "--out", str(tmp_path / "r.html")]) == 0

    zero = [*line, "--scale", "0", "--out", str(tmp_path / "zero")]
    assert main(zero) == 0
    (moved,) = Results.load(tmp_path / "zero" / "results.json").find("pixel change")
    assert moved.value == 0.0


def test_mistakes_of_an_evaluation(toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--preset", "dem", "--model", str(tmp_path / "no"), "--batch-size", "0"]) == 2
    said = capsys.readouterr().err
    for part in (
        "add --run DIR, or --delta FILE",
        "did you mean 'demo'",
        "there is no folder",
        "--batch-size",
        "--out",
    ):
        assert part in said
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "not the folder of an erasure" in capsys.readouterr().err
    out = tmp_path / "run"
    assert main(toy_command(toys["sd"], out)) in DONE
    delta = str(out / "delta.safetensors")
    keep = tmp_path / "keep.txt"
    keep.write_text("a dog\n")
    other = build("sd", tmp_path / "other", seed=1)
    wrong = ["evaluate", "--model", str(other), "--delta", delta, "--prompts", str(keep)]
    assert main([*wrong, "--num-inference-steps", "1", "--out", str(tmp_path / "e")]) == 2
    assert "learned on other weights" in capsys.readouterr().err
    (out / "delta.safetensors").unlink()
    assert main(["evaluate", "--run", str(out)]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_erase_and_evaluate_the_bundled_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol(name="tiny", target=8, retained=8))
    small = ["--preset", "tiny", "--num-inference-steps", "1", "--guidance-scale", "1"]
    out = tmp_path / "run"
    assert main(["erase", "--target", "cat", "--method", "uce", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == "canvas" and config["concepts"][0]["anchor"] == "rabbit"
    assert len(config["concepts"][0]["retain"]) == 240 and config["concepts"][0]["names"] == ["kitten"]
    assert str(model_path()) not in (out / "config.json").read_text()
    capsys.readouterr()
    assert main(["evaluate", "--run", str(out), *small]) == 0
    said = capsys.readouterr().out
    assert "cat → rabbit (object): gone on" in said and "cnn: before → after" in said and "patch: before" in said
    results = Results.load(out / "evaluation" / "results.json")
    for judge in ("cnn", "patch"):
        for prompts in ("unlearning set", "held-out templates", "other names"):
            (gone,) = results.find("UA", judge=judge, prompts=prompts, when="after")
            (was,) = results.find("UA", judge=judge, prompts=prompts, when="before")
            assert was.value < 0.5 < gone.value
    assert set(results.notes) == {"cnn", "patch"}
    assert "## Measured" in (out / "README.md").read_text()


# demo


@pytest.mark.slow
def test_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Two concepts, of which the bundled model knows one: one goes through, the other one fails.
    bomb = next(erasure for erasure in demo.ERASURES if erasure.target == "bomb")
    unknown = demo.Erasure(target="nothing", anchor="x", kind="object")
    # The demo's list of concepts is its data: a shorter one, with one that must fail, run for real.
    monkeypatch.setattr(demo, "ERASURES", (unknown, bomb))
    line = ["demo", "--quick", "--out", str(tmp_path)]
    assert main(line) == 1
    said = capfd.readouterr()
    for part in ("bomb     loading the model", "drawing training pictures", "doco: 8 done", "nothing  FAILED"):
        assert part in said.out
    assert "bomb     checked without a judge: " in said.out and "the check without a judge: " in said.out
    assert "bomb → balloon (object): gone on" in said.out and "IRA (same domain kept)" in said.out
    assert "nothing was not finished: the target 'nothing' is no object of EmojiCanvas" in said.err
    page = (tmp_path / "report.html").read_text()
    assert "bomb" in page and str(tmp_path / "report.html") in said.out
    results = Results.load(tmp_path / "bomb" / "evaluation" / "results.json")
    assert results.command.startswith("unteach demo")

    # Again other data, not other code.
    monkeypatch.setattr(demo, "ERASURES", (bomb,))
    assert main(line) == 0
    said = capfd.readouterr()
    assert "erased already" in said.out and "8 done" not in said.out
