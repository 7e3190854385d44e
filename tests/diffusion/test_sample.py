from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import toys

from unteach.core.events import Bars
from unteach.diffusion import Model, iterate, load, sample
from unteach.errors import CheckpointError, ConfigError, NumericsError

PROMPTS = ["a dog", "a dog", "an openmoji cat", "a bomb", "a house"]
SEEDS = [0, 1, 0, 7, 2**40]
STEPS = {"num_inference_steps": 3}
Toy = Callable[[str], Path]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # numpy on diffusers
def test_a_picture_is_the_pipelines_own(model: Model) -> None:
    pictures = sample(model, PROMPTS, SEEDS, num_inference_steps=3, guidance_scale=4.0)
    assert pictures.shape == (5, *model.image_shape) and pictures.dtype == torch.float32
    assert pictures.min() >= 0 and pictures.max() <= 1
    fresh = load(str(model.path)).pipe
    fresh.set_progress_bar_config(disable=True)
    theirs = fresh(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
    ).images
    torch.testing.assert_close(pictures, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_any_batch_size_gives_the_same_picture(model: Model, guidance_scale: float) -> None:
    alone = sample(model, PROMPTS, SEEDS, batch_size=1, guidance_scale=guidance_scale, **STEPS)
    together = sample(model, PROMPTS, SEEDS, batch_size=3, guidance_scale=guidance_scale, **STEPS)
    assert (alone - together).abs().max() < 1e-4
    levels = [(255 * x).round().to(torch.uint8).int() for x in (alone, together)]
    assert (levels[0] - levels[1]).abs().max() <= 1
    order = [4, 2, 0, 1, 3]
    shuffled = sample(
        model,
        [PROMPTS[i] for i in order],
        [SEEDS[i] for i in order],
        batch_size=2,
        guidance_scale=guidance_scale,
        **STEPS,
    )
    assert (shuffled - alone[order]).abs().max() < 1e-4


def test_prompt_seed_and_guidance_each_matter(model: Model) -> None:
    def draw(prompt: str, seed: int, guidance_scale: float = 3.0) -> torch.Tensor:
        return sample(model, [prompt], [seed], guidance_scale=guidance_scale, **STEPS)

    first = draw("a dog", 0)
    assert torch.equal(first, draw("a dog", 0))
    for other in (draw("a cat", 0), draw("a dog", 1), draw("a dog", 0, 9.0), draw("a dog", 0, 1.0)):
        assert (first - other).abs().max() > 0.01


def test_latents_decode_to_the_picture(model: Model) -> None:
    latents = sample(model, PROMPTS, SEEDS, output="latent", **STEPS)
    assert latents.shape == (5, *model.latent_shape)
    torch.testing.assert_close(model.decode(latents), sample(model, PROMPTS, SEEDS, **STEPS), rtol=0, atol=1e-5)


def test_other_sizes(model: Model) -> None:
    assert sample(model, ["a dog"], [0], height=32, width=24, **STEPS).shape == (1, 3, 32, 24)


def test_the_pipeline_is_left_as_it_was(
    model: Model, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model.pipe.set_progress_bar_config(desc="mine")
    model.denoiser.train()
    scheduler, config = model.pipe.scheduler, dict(model.pipe.scheduler.config)
    before = {name: value for name, value in vars(scheduler).items() if isinstance(value, int | float | list)}
    sample(model, PROMPTS, SEEDS, **STEPS)
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert model.pipe.scheduler is scheduler and dict(scheduler.config) == config
    assert {name: vars(scheduler)[name] for name in before} == before
    assert model.denoiser.training
    with model.pipe.progress_bar(total=1) as bar:
        bar.update()
    assert "mine" in capfd.readouterr().err


def test_a_progress_bar_counts_images(sd: Model, capfd: pytest.CaptureFixture[str]) -> None:
    sample(sd, PROMPTS, SEEDS, batch_size=2, events=Bars(), **STEPS)
    assert "5/5" in capfd.readouterr().err


def interrupt_after(model: Model, calls: int) -> torch.utils.hooks.RemovableHandle:
    seen = 0

    def hook(module: torch.nn.Module, args: object) -> None:
        nonlocal seen
        seen += 1
        if seen > calls:
            raise KeyboardInterrupt

    return model.denoiser.register_forward_pre_hook(hook)


def count_calls(model: Model) -> list[int]:
    calls: list[int] = []
    model.denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return calls


@pytest.mark.parametrize("output", ["image", "latent"])
def test_interrupted_is_the_same_as_unbroken(output: str, toy: Toy, tmp_path: Path) -> None:
    model = load(toy("sd_v"))
    settings = {"batch_size": 2, "output": output, "num_inference_steps": 3}
    unbroken = sample(model, PROMPTS, SEEDS, **settings)
    handle = interrupt_after(model, 4)  # three steps of the first batch, one of the second
    with pytest.raises(KeyboardInterrupt):
        sample(model, PROMPTS, SEEDS, out=tmp_path, **settings)
    handle.remove()
    assert [file.name for file in tmp_path.glob("rows-*")] == ["rows-0000000.safetensors"]
    calls = count_calls(model)
    resumed = sample(model, PROMPTS, SEEDS, out=tmp_path, **settings)
    assert torch.equal(resumed, unbroken)
    assert len(calls) == 2 * 3
    assert torch.equal(sample(model, PROMPTS, SEEDS, out=tmp_path, **settings), unbroken)
    assert len(calls) == 2 * 3


def test_going_on_with_another_batch_size(sd: Model, tmp_path: Path) -> None:
    unbroken = sample(sd, PROMPTS, SEEDS, **STEPS)
    sample(sd, PROMPTS, SEEDS, out=tmp_path, batch_size=2, **STEPS)
    (tmp_path / "rows-0000002.safetensors").unlink()
    calls = count_calls(sd)
    resumed = sample(sd, PROMPTS, SEEDS, out=tmp_path, batch_size=1, **STEPS)
    assert (resumed - unbroken).abs().max() < 1e-4
    assert len(calls) == 2 * 4  # two missing rows; PNDM takes one more step


def test_batches_come_one_by_one(sd: Model, tmp_path: Path) -> None:
    chunks = list(iterate(sd, PROMPTS, SEEDS, batch_size=2, **STEPS))
    assert [chunk.rows for chunk in chunks] == [(0, 1), (2, 3), (4,)]
    whole = sample(sd, PROMPTS, SEEDS, batch_size=2, **STEPS)
    assert torch.equal(torch.cat([chunk.images for chunk in chunks]), whole)


def test_pictures_of_another_run_are_refused(sd: Model, tmp_path: Path) -> None:
    sample(sd, PROMPTS, SEEDS, out=tmp_path, **STEPS)

    def refused(changed: str, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS, **other: object) -> None:
        with pytest.raises(CheckpointError, match=f"holds another run; nothing was changed; found: {changed}"):
            sample(sd, prompts, seeds, out=tmp_path, **{**STEPS, **other})

    refused("prompts", prompts=["a cat", *PROMPTS[1:]])
    refused("seeds", seeds=[9, *SEEDS[1:]])
    refused("settings", guidance_scale=2.0)
    refused("settings", output="latent")
    with torch.no_grad():
        next(sd.pipe.text_encoder.parameters()).add_(1)
    refused("weights")


def test_damaged_or_foreign_rows_are_refused(sd: Model, tmp_path: Path) -> None:
    sample(sd, PROMPTS, SEEDS, out=tmp_path / "one", batch_size=3, **STEPS)
    sample(sd, PROMPTS[::-1], SEEDS, out=tmp_path / "two", batch_size=3, **STEPS)
    file = tmp_path / "one" / "rows-0000003.safetensors"
    whole = file.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            sample(sd, PROMPTS, SEEDS, out=tmp_path / "one", **STEPS)

    file.write_bytes(whole[:-5])
    refused("damaged")
    file.write_bytes((tmp_path / "two" / file.name).read_bytes())
    refused("does not belong to this run")
    file.write_bytes(whole)
    twin = file.with_name("rows-0000004.safetensors")
    twin.write_bytes(whole)
    refused("does not belong to this run")
    twin.unlink()
    record = tmp_path / "one" / "sample.json"
    record.write_text("[]")
    refused("sample.json is not a file of the format unteach-sample")
    record.unlink()
    refused("no sample.json")


def test_settings_are_checked_all_at_once(sd: Model) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)5 mistakes.*height.*20.*width.*0.*steps.*1 to 1000.*scale.*output.*png"
    ):
        sample(sd, ["a"], [0], height=20, width=0, num_inference_steps=0, guidance_scale=-1, output="png")
    with pytest.raises(ConfigError, match="one seed for each prompt; found: 2 prompts and 1 seeds"):
        sample(sd, ["a", "b"], [0])
    with pytest.raises(ConfigError, match="prompts are a list"):
        sample(sd, "a", [0])
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        sample(sd, ["a"], [0], batch_size=0)
    with pytest.raises(ConfigError, match="nothing to sample"):
        sample(sd, [], [])


def test_pictures_that_are_not_finite_are_an_error(sd: Model, tmp_path: Path) -> None:
    with torch.no_grad():
        sd.pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"1 of 1 pictures.*prompt 'a dog', seed 3, weights in torch\.float32"):
        sample(sd, ["a dog"], [3], out=tmp_path, **STEPS)
    assert not list(tmp_path.glob("rows-*"))


def test_half_precision_gives_float32_pictures(toy: Toy) -> None:
    for kind in toys.KINDS:
        model = load(toy(kind), dtype=torch.bfloat16)
        pictures = sample(model, PROMPTS[:1], SEEDS[:1], num_inference_steps=2)
        assert pictures.dtype == torch.float32 and torch.isfinite(pictures).all()
