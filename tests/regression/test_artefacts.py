"""What earlier releases wrote: every later version reads it, or refuses it with a clear word.

``tests/regression/make.sh`` made the folders; each holds one small artefact of every kind.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from unteach.cli import main
from unteach.diffusion import WeightDelta, load, sample
from unteach.guard.manifest import FreezeManifest
from unteach.records.attack import Relearning
from unteach.records.erasure import Results
from unteach.records.learning import LearningResults
from unteach.records.mask import Mask

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit())


@pytest.fixture(params=RELEASES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the release's folder, as the working directory: the recorded commands hold relative paths."""
    folder = tmp_path / "artefacts"
    shutil.copytree(HERE / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def finished_or_refused(command: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recorded command, in the folder that it wrote: done already, or a refusal that names what to do."""
    before = files(out)
    code = main(command)
    said = capsys.readouterr()
    if code == 0:
        assert "holds the finished" in said.out
    else:
        assert code == 2 and "to do:" in said.err and "Traceback" not in said.err
    assert files(out) == before


def test_the_model_is_the_one_that_everything_names(place: Path) -> None:
    assert load("toy").digest() == json.loads((place / "digests.json").read_text())["toy"]


@pytest.mark.parametrize("run", ["doco", "uce"])
def test_a_delta_loads_applies_and_is_undone(place: Path, run: str) -> None:
    model, delta = load("toy"), WeightDelta.load(place / run / "delta.safetensors")
    assert delta.meta["method"].startswith(run) and len(delta.tensors) == 8 and delta.norm() > 0
    prompts = ["a twemoji dog"]
    before = sample(model, prompts, seeds=[1], num_inference_steps=2)
    with delta.apply(model):
        assert not torch.equal(sample(model, prompts, seeds=[1], num_inference_steps=2), before)
    assert torch.equal(sample(model, prompts, seeds=[1], num_inference_steps=2), before)


def test_a_finished_run_is_recognised(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("doco", "uce"):
        finished_or_refused(["erase", "--config", f"{run}/config.json", "--out", run], place / run, capsys)


def test_a_checkpoint_goes_on_or_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (place / "doco" / "delta.safetensors").read_bytes()
    (place / "doco" / "delta.safetensors").unlink()
    code = main(["erase", "--config", "doco/config.json", "--out", "doco"])
    said = capsys.readouterr()
    if code == 0:
        assert WeightDelta.load(place / "doco" / "delta.safetensors").norm() > 0
    else:
        assert code == 2 and "to do:" in said.err
        assert not (place / "doco" / "delta.safetensors").exists()
    assert len(whole) > 1000


def test_a_lora_file_still_draws(place: Path) -> None:
    pytest.importorskip("peft", reason="LoRA files are loaded by peft, which the extra 'lora' brings")
    model = load("toy")
    before = sample(model, ["a twemoji dog"], seeds=[1], num_inference_steps=2)
    model.pipe.load_lora_weights(str(place / "lora"))
    generator = torch.Generator().manual_seed(1)
    after = model.pipe("a twemoji dog", num_inference_steps=2, generator=generator, output_type="pt")
    assert after.images.shape == before.shape and torch.isfinite(after.images).all()


def test_an_evaluation_loads_and_makes_a_page(place: Path) -> None:
    results = Results.load(place / "evaluation" / "results.json")
    assert results.VERSION >= 1 and [c.target for c in results.concepts] == ["twemoji"]
    assert main(["report", "evaluation", "--out", "page.html"]) == 0
    assert "twemoji" in (place / "page.html").read_text(encoding="utf-8")


def test_a_mask_its_manifest_and_its_signature(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask, manifest = Mask.load(place / "guard"), FreezeManifest.load(place / "guard" / "manifest.json")
    assert mask.frozen == manifest.frozen and manifest.policy == "no-guitars" and len(manifest.frozen) == 41
    assert FreezeManifest.load(place / "published" / "unet" / "manifest.json") == manifest
    key = ["--signature", "published/unet/manifest.json.sig", "--public-key", "keys/guard-public.pem"]
    verify = ["guard", "verify", "published", "published", "--manifest", "published/unet/manifest.json"]
    assert main([*verify, *key]) == 0
    assert "CONFORM" in capsys.readouterr().out
    assert main(["report", "guard", "--out", "page.html"]) == 0


def test_a_relearning_record(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relearning = Relearning.load(place / "attack")
    assert {record.domain for record in relearning.records} == {"bad", "good"} and len(relearning.records) == 6
    domains = ["--illegal", "bad", "--innocent", "good", "--steps", "1", "2", "--batch-size", "2", "--draws", "1"]
    command = ["attack", "relearn", "--guard", "guard", *domains, "--ignore", "--out", "attack"]
    before = files(place / "attack" / "cells")
    code, said = main(command), capsys.readouterr()
    assert code == 0 or (code == 2 and "to do:" in said.err)
    assert files(place / "attack" / "cells") == before


def test_a_learning_run(place: Path) -> None:
    results = LearningResults.load(place / "learn" / "runs")
    accuracy = {
        (run.key.method, run.key.plugin): run.metrics["class_il/final_average_accuracy"] for run in results.runs
    }
    assert len(accuracy) == 4 and accuracy["er 20", "none"] == pytest.approx(0.298, abs=5e-4)
