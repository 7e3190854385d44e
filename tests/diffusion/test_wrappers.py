"""F3, F17: what is edited must be what is used; a bare pipeline works where a model does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests import toys
from torch import nn
from torch.nn.utils import parametrize

from unteach.diffusion import Model, load, sample
from unteach.erase import Concept, erase
from unteach.errors import ModelError

Toy = Callable[[str], Path]
CONCEPT = Concept(target="twemoji", anchor="openmoji", prompts=("a {} dog",))
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def with_lora(pipe: Any, folder: Path) -> None:
    report = toys.change(Model(pipe)).to_lora(4, folder)
    assert report.path.exists()
    pipe.load_lora_weights(str(folder), weight_name=report.path.name)


def fused_lora(pipe: Any, folder: Path) -> None:
    with_lora(pipe, folder)
    pipe.fuse_lora()


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Processor(nn.Module):
    """Stands where an IP-Adapter puts its own."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(2, 2)


def processor(pipe: Any, folder: Path) -> None:
    pipe.unet.get_submodule(KEY.removesuffix(".to_k")).processor = Processor()


def quantised(pipe: Any, folder: Path) -> None:
    layer = pipe.unet.get_submodule(KEY)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)


def wrapped(pipe: Any, folder: Path) -> None:
    pipe.unet.conv_in = nn.Sequential(pipe.unet.conv_in)


WRAPPED: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "fused projections": (lambda pipe, _: pipe.fuse_qkv_projections(), r"fused projections \(fuse_qkv.*unfuse_qkv"),
    "LoRA": (with_lora, r"loaded LoRA.*unload_lora_weights"),
    "LoRA, fused": (fused_lora, r"loaded LoRA.*unload_lora_weights"),
    "compiled": (lambda pipe, _: pipe.unet.compile(backend="eager"), r"compiled module \(torch\.compile\)"),
    "a compiled block": (
        lambda pipe, _: pipe.unet.mid_block.compile(backend="eager"),
        r"compiled module.*at 'mid_block'",
    ),
    "offloaded": (lambda pipe, _: accelerate.cpu_offload(pipe.unet, torch.device("cpu")), r"accelerate's offloading"),
    "a processor with weights": (processor, r"attention processor with weights \(Processor at"),
    "parametrised": (
        lambda pipe, _: parametrize.register_parametrization(pipe.unet.get_submodule(KEY), "weight", Doubled()),
        r"parametrised weight at '.*attn2\.to_k'",
    ),
    "quantised": (quantised, r"quantised weights \('.*to_k\.weight' is int8"),
    "on the meta device": (lambda pipe, _: pipe.unet.get_submodule(KEY).to("meta"), r"no values in memory"),
    "something else": (wrapped, r"2 tensors that a plain UNet2DConditionModel has not, such as 'conv_in\.0\.bias'"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_f3_f17_a_wrapped_denoiser_is_refused_and_named(case: str, toy: Toy, tmp_path: Path) -> None:
    wrap, message = WRAPPED[case]
    model = load(toy("sd"))
    delta = toys.change(model)
    wrap(model.pipe, tmp_path / "lora")
    uses: list[Callable[[], Any]] = [
        lambda: Model(model.pipe),
        lambda: erase(model, CONCEPT, "uce"),
        lambda: erase(model.pipe, CONCEPT, "uce"),
        lambda: delta.apply(model),
        lambda: delta.apply(model.pipe.unet),
    ]
    for use in uses:
        with pytest.raises(ModelError, match=f"weights of .* are not those that it uses.*{message}"):
            use()


def test_f3_a_compiled_network_in_its_wrapper_is_refused(toy: Toy) -> None:
    model = load(toy("sd"))
    with pytest.raises(ModelError, match=r"compiled module \(torch\.compile\)"):
        toys.change(model).apply(torch.compile(model.pipe.unet, backend="eager"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"DataParallel.*network inside it"):
        toys.change(model).apply(nn.DataParallel(model.pipe.unet))


def test_f17_a_lora_that_was_fused_and_unloaded_is_part_of_plain_weights(toy: Toy, tmp_path: Path) -> None:
    model = load(toy("sd"))
    fused_lora(model.pipe, tmp_path)
    model.pipe.unload_lora_weights()
    with erase(model.pipe, CONCEPT, "uce").apply(model.pipe):
        pass
    assert Model(model.pipe).digest() != load(toy("sd")).digest()


def bare(folder: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)


def test_f17_a_bare_pipeline_works_where_a_model_does(toy: Toy, tmp_path: Path) -> None:
    model, pipe = load(toy("sd")), bare(toy("sd"))
    expected = erase(model, CONCEPT, "uce")
    delta = erase(pipe, CONCEPT, "uce")
    assert all(torch.equal(delta.tensors[name], value) for name, value in expected.tensors.items())
    before = sample(pipe, ["a twemoji dog"], [1], num_inference_steps=2, output="latent")
    with delta.apply(pipe):
        after = sample(pipe, ["a twemoji dog"], [1], num_inference_steps=2, output="latent")
    with delta.apply(model):
        assert torch.equal(after, sample(model, ["a twemoji dog"], [1], num_inference_steps=2, output="latent"))
    assert not torch.equal(before, after)
    assert torch.equal(before, sample(pipe, ["a twemoji dog"], [1], num_inference_steps=2, output="latent"))
    assert Model.of(model) is model and Model.of(pipe).pipe is pipe


def test_f17_what_is_no_pipeline_is_said(toy: Toy) -> None:
    for other in ("a folder", load(toy("sd")).pipe.vae, diffusers.DDIMScheduler()):
        with pytest.raises(ModelError, match=r"not of a known model family; found: (str|AutoencoderKL|DDIMScheduler)"):
            erase(other, CONCEPT, "uce")
