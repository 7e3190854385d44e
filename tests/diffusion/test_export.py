"""What goes out is what came in: components, files, variants, number formats, modes (U3, H3, L2, L10)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import toys
from transformers import CLIPConfig

from unteach.core import state
from unteach.diffusion import export
from unteach.diffusion.loading import quiet
from unteach.diffusion.model import Model, load
from unteach.errors import ConfigError, ModelError

UNET = "unet/diffusion_pytorch_model.safetensors"


def checked(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A toy with a safety checker and a feature extractor, as Stable Diffusion 1 is handed out."""
    toys.build("sd", folder, dtype=dtype)
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        vision = {**tiny, "image_size": 16, "patch_size": 8}
        words = {**tiny, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
        StableDiffusionSafetyChecker(CLIPConfig(text_config=words, vision_config=vision)).save_pretrained(
            folder / "safety_checker"
        )
    (folder / "feature_extractor").mkdir()
    state.write_json(folder / "feature_extractor" / "preprocessor_config.json", {"crop_size": 16})
    index = state.read_json(folder / "model_index.json")
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    state.write_json(folder / "model_index.json", index)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def erased(source: Path, out: Path, dtype: torch.dtype = torch.float32) -> tuple[Model, Any, Path]:
    """The model, a change of its cross-attention, and what was exported."""
    model = load(source, dtype=dtype)
    delta = toys.change(model)
    return model, delta, delta.export(model, out)


def test_u3_every_component_comes_back_as_it_was(tmp_path: Path) -> None:
    source = checked(tmp_path / "source")
    (source / "README.md").write_text("about")
    (source / "LICENSE").write_text("terms")
    model, delta, out = erased(source, tmp_path / "out")
    assert names(out) == names(source) | {"unteach.json"}
    changed = {name for name in names(source) if (out / name).read_bytes() != (source / name).read_bytes()}
    assert changed == {UNET, "text_encoder/model.safetensors"}  # the latter gets the names of transformers 4, see H3
    with quiet():  # the feature extractor's class needs torchvision, so the pipeline is read part by part
        checker: Any = StableDiffusionSafetyChecker.from_pretrained(out / "safety_checker")
        first: Any = StableDiffusionSafetyChecker.from_pretrained(source / "safety_checker")
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in checker.state_dict().items())
    new = load(out).denoiser.state_dict()
    with delta.apply(model):
        assert all(torch.equal(value, new[name]) for name, value in toys.weights(model).items())


def test_u3_fp16_files_stay_fp16_files(tmp_path: Path) -> None:
    source = toys.build("sd", tmp_path / "plain", dtype=torch.float16)
    for path in source.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    model, delta, out = erased(source, tmp_path / "out")
    assert model.dtype == torch.float32 and names(out) == names(source) | {"unteach.json"}
    new = load_file(out / UNET.replace(".safe", ".fp16.safe"))
    assert {value.dtype for value in new.values()} == {torch.float16}
    with delta.apply(model):
        assert all(torch.equal(value.half(), new[name]) for name, value in toys.weights(model).items())
    assert load(out, dtype=torch.float16).digest() == load(out).digest()


def test_u3_other_number_formats_are_written_too_and_other_weights_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = toys.build("sd", tmp_path / "source")
    plain = load_file(source / UNET)
    save_file({name: value.half() for name, value in plain.items()}, source / UNET.replace(".safe", ".fp16.safe"))
    save_file({name: value * 2 for name, value in plain.items()}, source / UNET.replace(".safe", ".non_ema.safe"))
    (source / "vae" / "old.bin").write_bytes(b"x")
    (source / "checkpoint-5").mkdir()
    model, delta, out = erased(source, tmp_path / "out")
    assert sorted(path.name for path in (out / "unet").iterdir()) == [
        "config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    half = load_file(out / UNET.replace(".safe", ".fp16.safe"))
    with delta.apply(model):
        assert all(torch.equal(value.half(), half[name]) for name, value in toys.weights(model).items())
    said = caplog.text
    assert "checkpoint-5/" in said and "vae/old.bin" in said and "model.non_ema.safetensors" in said


def test_u3_shards_stay_shards(tmp_path: Path) -> None:
    source = toys.build("sd", tmp_path / "source")
    whole = load(source)
    with quiet():
        (source / UNET).unlink()
        whole.pipe.unet.save_pretrained(source / "unet", max_shard_size="20KB")
    model, delta, out = erased(source, tmp_path / "out")
    assert names(out) == names(source) | {"unteach.json"} and len(names(out / "unet")) > 3
    with delta.apply(model):
        assert load(out).digest() == model.digest(fresh=True)


def test_u3_what_did_not_change_keeps_the_bits_of_its_file(tmp_path: Path) -> None:
    """Erased in bfloat16 from files of float32: only the changed tensors are rounded."""
    source = toys.build("sd", tmp_path / "source")
    model, delta, out = erased(source, tmp_path / "out", torch.bfloat16)
    old, new = load_file(source / UNET), load_file(out / UNET)
    for name, value in new.items():
        assert value.dtype == torch.float32
        if name in delta.tensors:
            assert torch.equal(value, value.bfloat16().float()) and not torch.equal(value, old[name])
        else:
            assert torch.equal(value, old[name])
    with delta.apply(model):
        assert load(out, dtype=torch.bfloat16).digest() == model.digest(fresh=True)


def test_a_component_in_unsafe_files_alone_is_left_out_and_named_no_more(tmp_path: Path) -> None:
    source = checked(tmp_path / "source")
    (source / "safety_checker" / "model.safetensors").rename(source / "safety_checker" / "pytorch_model.bin")
    _, _, out = erased(source, tmp_path / "out")
    assert not (out / "safety_checker").exists() and (out / "feature_extractor").is_dir()
    assert state.read_json(out / "model_index.json")["safety_checker"] == [None, None]
    load(out)


def test_a_component_that_was_changed_in_memory_is_not_lost_silently(tmp_path: Path) -> None:
    model = load(toys.build("sd", tmp_path / "source"))
    delta = toys.change(model)
    with torch.no_grad():
        next(model.pipe.text_encoder.parameters()).add_(1)
    with pytest.raises(ModelError, match="'text_encoder' in memory is not the one in the folder"):
        delta.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(ModelError, match="there is no folder"):
        delta.export(model, tmp_path / "out")


def test_a_pipeline_that_came_from_no_folder_is_written_too(tmp_path: Path) -> None:
    model = Model(toys.pipeline("sd", tmp_path / "words"))
    out = toys.change(model).export(model, tmp_path / "out")
    assert load(out).family == "sd" and "unteach.json" in names(out)


def test_h3_text_encoders_have_the_names_that_both_releases_of_transformers_read(tmp_path: Path) -> None:
    """transformers 5 saves them without "text_model.", and 4 then starts at random; docs/erase.md says what was run."""
    source = toys.build("sd", tmp_path / "source")
    with safe_open(source / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert not any(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    model, _, out = erased(source, tmp_path / "out")
    new = load_file(out / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in new)
    again, old = load(out).pipe.text_encoder.state_dict(), model.pipe.text_encoder.state_dict()
    assert again.keys() == old.keys() and all(torch.equal(again[name], old[name]) for name in old)


def test_l10_files_have_the_modes_of_new_files(tmp_path: Path) -> None:
    source = checked(tmp_path / "source")
    before = os.umask(0o027)
    try:
        _, _, out = erased(source, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes == {0o640} and out.stat().st_mode & 0o777 == 0o750 == (out / "unet").stat().st_mode & 0o777


def test_l2_what_a_killed_process_left_is_swept_up_and_a_living_one_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import sys
from pathlib import Path
from unteach.diffusion.export import appearing
with appearing(Path({str(out)!r})) as aside:
    (aside / "weights").write_bytes(b"x" * 1000)
    print(aside, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().decode().strip())
        with pytest.raises(ValueError, match="for this test"), export.appearing(out):
            assert (left / "weights").exists()  # it lives, so it is not touched
            raise ValueError("for this test")
        assert [path for path in tmp_path.iterdir()] == [left]
        process.kill()
    assert left.exists() and not out.exists()
    with export.appearing(out) as aside:
        (aside / "a").write_text("b")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and names(out) == {"a"}
    with pytest.raises(ConfigError, match="not empty"), export.appearing(out):
        raise AssertionError("not reached")


def test_no_path_is_given_away_and_damaged_json_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"_name_or_path": "somewhere/else", "x": 1}')
    (tmp_path / "b.json").write_text("[" * 100_000)
    (tmp_path / "c.json").write_text("{")
    export.forget_paths(tmp_path)
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1} and (tmp_path / "c.json").read_text() == "{"
