import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from tests import toys
from torch import nn
from transformers.utils import logging as transformers_logging

from unteach.diffusion import Model, load
from unteach.errors import ConfigError, ModelError

Toy = Callable[[str], Path]


def parts(model: Model) -> dict[str, nn.Module]:
    return {name: part for name, part in model.pipe.components.items() if isinstance(part, nn.Module)}


def test_families_and_predictions_are_recognised(toy: Toy) -> None:
    found = {kind: load(toy(kind)) for kind in toys.KINDS}
    assert {kind: (model.family, model.prediction) for kind, model in found.items()} == {
        "sd": ("sd", "epsilon"),
        "sd_v": ("sd", "v_prediction"),
        "sdxl": ("sdxl", "epsilon"),
    }
    for model in found.values():
        assert (model.num_timesteps, model.latent_shape, model.image_shape) == (1000, (4, 8, 8), (3, 16, 16))
        assert model.denoiser is model.pipe.unet
        assert str(model.path) in repr(model)


@pytest.mark.parametrize("kind", toys.KINDS)
@pytest.mark.parametrize(("saved", "asked"), [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_every_part_has_the_dtype_asked_for(kind: str, saved: torch.dtype, asked: torch.dtype, tmp_path: Path) -> None:
    folder = toys.build(kind, tmp_path / "toy", dtype=saved)
    model = load(folder, dtype=asked)
    assert len(parts(model)) == len(model.conventions.components)
    for part in parts(model).values():
        assert {parameter.dtype for parameter in part.parameters()} == {asked}
    on_disk = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, parameter in model.denoiser.named_parameters():
        assert torch.equal(parameter, on_disk[name].to(asked))
    assert (model.dtype, model.device) == (asked, torch.device("cpu"))


def test_parts_are_frozen_and_in_evaluation_mode(model: Model) -> None:
    for part in parts(model).values():
        assert not any(module.training for module in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_loading_says_nothing_and_leaves_the_bars_as_they_were(
    toy: Toy, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = toy("sdxl")
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()


def test_a_folder_of_one_variant_is_loaded_by_itself(toy: Toy, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy("sd"), tmp_path / "toy"))
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert load(folder).digest() == load(toy("sd")).digest()
    vae = folder / "vae"
    (vae / "diffusion_pytorch_model.fp16.safetensors").rename(vae / "diffusion_pytorch_model.ema.safetensors")
    with pytest.raises(ModelError, match=r"several variants.*'ema', 'fp16'"):
        load(folder)


def test_a_pipeline_that_the_user_has_can_be_wrapped(toy: Toy) -> None:
    pipe = load(toy("sd")).pipe
    pipe.unet.train().requires_grad_(True)
    model = Model(pipe)
    assert (model.pipe, model.path) == (pipe, None)
    assert not pipe.unet.training and not any(p.requires_grad for p in pipe.unet.parameters())
    with pytest.raises(ModelError, match=r"Linear.*sd \(StableDiffusionPipeline\), .*sdxl \(StableDiffusionXL"):
        Model(nn.Linear(1, 1))
    with pytest.raises(ModelError, match=r"no 'vae'.*NoneType"):
        Model(StableDiffusionPipeline(**{**pipe.components, "vae": None}, requires_safety_checker=False))


def edit(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_safetensors(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def truncate(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), r"no model_index.json; found: .*scheduler"),
    "index is not json": (lambda f: (f / "model_index.json").write_text("{"), "cannot be read"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "not a pipeline's index"),
    "unknown class": (
        lambda f: edit(f, "model_index.json", _class_name="FluxPipeline"),
        r"not of a known model family; found: pipeline class FluxPipeline; .*sd \(Stable.*sdxl \(",
    ),
    "class of its own": (
        lambda f: edit(f, "model_index.json", extra=["my_code", "Net"]),
        r"'extra' .*asks for code outside.*my_code\.Net",
    ),
    "part of another class": (
        lambda f: edit(f, "model_index.json", unet=["diffusers", "UNet2DModel"]),
        "needs a 'unet' of class UNet2DConditionModel; found: UNet2DModel",
    ),
    "part missing in the index": (
        lambda f: edit(f, "model_index.json", vae=None),
        "needs a 'vae'.*found: None",
    ),
    "pickled weights": (drop_safetensors, r"'unet' has no safetensors.*pytorch_model\.bin.*never read"),
    "weights missing": (lambda f: shutil.rmtree(f / "vae"), "'vae' has no safetensors.*nothing.*incomplete"),
    "weights cut short": (truncate, "could not be loaded"),
    "unknown prediction": (
        lambda f: edit(f, "scheduler/scheduler_config.json", prediction_type="sample"),
        "prediction_type is not supported; found: 'sample'; .*epsilon, v_prediction",
    ),
    "no signal left": (
        lambda f: edit(f, "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "zero terminal SNR",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_loaded_is_explained(case: str, toy: Toy, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy("sd"), tmp_path / "toy"))
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_paths_that_are_no_folders(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder 'some/model'.*nothing is downloaded"):
        load("some/model")
    with pytest.raises(ModelError, match="is not a folder; found: a file"):
        load(toy("sd") / "model_index.json")
    with pytest.raises(ModelError, match="an empty folder"):
        load(tmp_path)


def test_an_inpainting_unet_is_refused(toy: Toy) -> None:
    pipe = load(toy("sd")).pipe
    pipe.unet.register_to_config(in_channels=9)
    with pytest.raises(ModelError, match="9 input channels, the VAE has 4"):
        Model(pipe)


def test_dtype_and_device_are_checked(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=r"floating type; found: torch\.int8"):
        load(toy("sd"), dtype=torch.int8)
    with pytest.raises(ConfigError, match="device 'nonsense' is not available"):
        load(toy("sd"), device="nonsense")
