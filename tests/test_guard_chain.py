"""``guard`` and ``attack`` on anyone's own model: what is published verifies; a run says what it was made from."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import toys
from tests.diffusion.test_export import UNET, checked
from tests.test_guard_cli import pictures

from unteach.cli import main
from unteach.core import state
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import load
from unteach.guard.manifest import FreezeManifest


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures."""
    place = tmp_path_factory.mktemp("pictures")
    pictures(place / "bad", range(4))
    pictures(place / "good", range(4, 9))
    return place


def guard(folders: Path, out: Path, *more: str) -> int:
    named = ["--illegal", str(folders / "bad"), "--innocent", str(folders / "good"), "--method", "random"]
    return main(["guard", "learn", *named, "--out", str(out), *more])


@pytest.mark.parametrize("half", [False, True])
def test_u3_the_original_with_its_safety_checker_conforms_to_its_published_self(
    folders: Path, tmp_path: Path, half: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = checked(tmp_path / "source", torch.float16 if half else torch.float32), tmp_path / "published"
    if half:
        for path in source.rglob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))
    assert guard(folders, tmp_path / "mask", "--model", str(source)) == 0
    assert main(["guard", "apply", str(tmp_path / "mask"), "--out", str(out)]) == 0
    assert (out / "safety_checker").is_dir() and (out / "feature_extractor").is_dir()
    new = load_file(out / (UNET.replace(".safe", ".fp16.safe") if half else UNET))
    assert {value.dtype for value in new.values()} == {torch.float16 if half else torch.float32}
    assert {path.stat().st_mode & 0o444 for path in out.rglob("*")} == {0o444}
    capsys.readouterr()
    for candidate in (source, out):
        policy = str(out / "unet" / "manifest.json")
        assert main(["guard", "verify", str(out), str(candidate), "--manifest", policy]) == 0
        assert capsys.readouterr().out.startswith("CONFORM")
    # A second policy on the published model leaves nothing of the first one behind.
    assert guard(folders, tmp_path / "again", "--model", str(out), "--seed", "1") == 0
    assert main(["guard", "apply", str(tmp_path / "again"), "--out", str(tmp_path / "second")]) == 0
    found = FreezeManifest.load(tmp_path / "second/unet/manifest.json")
    assert found == FreezeManifest.load(tmp_path / "again" / "manifest.json")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_f18_model_and_dtype_come_from_the_erasure(
    folders: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run, published = toys.build("sd", tmp_path / "source"), tmp_path / "erased", tmp_path / "published"
    concept = ["--target", "dog", "--anchor", "cat", "--prompts", "a photo of {}", "a {} in the house"]
    erase = ["erase", "--model", str(source), *concept, "--method", "uce", "--dtype", dtype]
    assert main([*erase, "--out", str(run)]) in (0, 4)  # this model is random: whether it worked is not asked here
    assert guard(folders, tmp_path / "mask", "--erased", str(run)) == 0
    assert main(["guard", "apply", str(tmp_path / "mask"), "--out", str(published)]) == 0
    attack = ["attack", "relearn", "--illegal", str(folders / "bad"), "--steps", "1", "--batch-size", "2"]
    for name, given in (("delta", run / "delta.safetensors"), ("run", run)):
        assert main([*attack, "--draws", "1", "--erased", str(given), "--out", str(tmp_path / name)]) == 0
    assert state.read_json(tmp_path / "run" / "relearning.json")["model"]["name"] == "source"
    manifest = ["--manifest", str(published / "unet" / "manifest.json"), "--out", str(tmp_path / "of-manifest")]
    assert main([*attack, "--draws", "1", *manifest]) == 0  # the model is the folder that it lies in
    assert "the mask 'random' freezes" in capsys.readouterr().out

    # What was erased are the values of that dtype; everything else keeps those of the files.
    delta = WeightDelta.load(run / "delta.safetensors")
    model = load(source, dtype=getattr(torch, dtype))
    delta.apply(model)
    old, new = load_file(source / UNET), load_file(published / UNET)
    for name, value in toys.weights(model).items():
        assert torch.equal(new[name], value.float() if name in delta.tensors else old[name])


def test_f18_an_erasure_of_another_model_is_refused_with_advice_that_can_be_followed(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = toys.build("sd", tmp_path / "source"), toys.build("sd", tmp_path / "other", seed=1)
    toys.change(load(source)).save(tmp_path / "delta.safetensors")
    before = toys.weights(load(other))
    assert (
        guard(folders, tmp_path / "mask", "--model", str(other), "--erased", str(tmp_path / "delta.safetensors")) == 2
    )
    said = capsys.readouterr().err
    assert "learned on other weights" in said and "or pass allow_other_base" not in said
    assert not (tmp_path / "mask").exists()
    assert all(torch.equal(value, before[name]) for name, value in toys.weights(load(other)).items())


def test_a_damaged_configuration_of_a_mask_is_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = toys.build("sd", tmp_path / "source")
    assert guard(folders, tmp_path / "mask", "--model", str(source)) == 0
    config = tmp_path / "mask" / "config.json"
    whole = state.read_json(config)
    for damaged in ([], {**whole, "model": 5}, {**whole, "illegal": "bad"}, {**whole, "more": 1}):
        state.write_json(config, damaged)
        for command in (
            ["guard", "apply", str(config.parent), "--out", str(tmp_path / "out")],
            ["attack", "relearn", "--guard", str(config.parent), "--illegal", "digits", "--out", str(tmp_path / "out")],
        ):
            assert main(command) == 2
            assert "damaged: not a configuration" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_u4_another_try_needs_no_deleting_where_nothing_was_finished(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = toys.build("sd", tmp_path / "source"), tmp_path / "mask"
    named = ["--illegal", str(folders / "bad"), "--innocent", str(folders / "good"), "--model", str(source)]
    learn = ["guard", "learn", *named, "--out", str(out), "--set", "steps=2", "batch_size=2"]
    # Too high a rate: the relearned model is worse on held-out pictures, and the message says so.
    assert main([*learn, "relearn_steps=3", "relearn_rate=3"]) == 2
    said = capsys.readouterr()
    assert "few pictures: bad has 4, good has 5; 40 or more a domain are advised" in said.out
    assert "set relearn_rate below 3" in said.err and "scale=raw" in said.err
    assert not out.exists()
    # A run that was stopped before its first checkpoint left its configuration alone: others may use the folder.
    assert main([*learn[:-3], "--method", "random", "--out", str(tmp_path / "another")]) == 0
    out.mkdir()
    shutil.copy(tmp_path / "another" / "config.json", out)
    other = [*learn, "relearn_steps=2", "relearn_rate=1e-3", "scale=raw"]
    assert main([*other, "--dry-run"]) == 0 and "nothing was written" in capsys.readouterr().out
    assert main(other) == 0
    said = capsys.readouterr()
    assert "of which nothing was finished: this one starts in its place" in said.out
    assert "relearning: 2 done" in said.out and "mask: 2 done" in said.out  # although nobody looks on
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "cost.json", "manifest.json", "mask.json"]
    # What is finished, or has a checkpoint, is never replaced.
    before = (out / "mask.json").read_bytes()
    assert main([*other, "rho=0.1"]) == 2 and "holds another run; nothing was changed" in capsys.readouterr().err
    assert (out / "mask.json").read_bytes() == before
    (out / "mask.json").unlink()
    state.save(out / "work" / "relearn" / "state.safetensors", {}, {})
    assert main([*other, "rho=0.1"]) == 2 and "holds another run; nothing was changed" in capsys.readouterr().err


def test_official_on_the_command_line_is_the_released_setting(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 9, item 6: also on the bundled model; a cheap run passes smaller numbers."""
    named = ["--illegal", str(folders / "bad"), "--innocent", str(folders / "good")]
    assert main(["guard", "learn", *named, "--method", "official", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "relearn_steps: 2000" in said and "relearn_rate: 1.0e-05" in said and "rho: 0.2" in said
    assert "at most 4001 training steps" in said
