"""F2: a scheduler that noises by other rules is refused; those of the usual kind, in all usual settings, are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests import toys

from unteach.diffusion import Model, load
from unteach.diffusion.families import StableDiffusion
from unteach.diffusion.foreign import unremarked
from unteach.errors import ModelError

Toy = Callable[[str], Path]
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS: list[dict[str, Any]] = [{"timestep_spacing": way} for way in ("leading", "linspace", "trailing")]
SIGMAS: list[dict[str, Any]] = [{f"use_{way}_sigmas": True} for way in ("karras", "exponential", "beta")]
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [*SPACINGS, ZERO_SNR, {"prediction_type": "v_prediction"}],
    "DDPMScheduler": [*SPACINGS, {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.001] * 1000}],
    "PNDMScheduler": [{"skip_prk_steps": True, "steps_offset": 1}, {}],
    "LMSDiscreteScheduler": [*SPACINGS, *SIGMAS],
    "EulerDiscreteScheduler": [*SPACINGS, *SIGMAS, ZERO_SNR],
    "EulerAncestralDiscreteScheduler": [*SPACINGS, ZERO_SNR],
    "HeunDiscreteScheduler": [{}, *SIGMAS],
    "DPMSolverMultistepScheduler": [
        *SPACINGS,
        *SIGMAS,
        {"use_lu_lambdas": True},
        {"algorithm_type": "sde-dpmsolver++"},
    ],
    "DPMSolverSinglestepScheduler": [{}, *SIGMAS],
    "UniPCMultistepScheduler": [*SPACINGS, *SIGMAS],
    "DEISMultistepScheduler": [{}],
    "KDPM2DiscreteScheduler": [{}, *SIGMAS],
    "KDPM2AncestralDiscreteScheduler": [{}],
    "LCMScheduler": [{}],
}


@pytest.fixture(scope="module")
def pipes(toy: Toy) -> Callable[[str], Any]:
    """A loaded toy of each kind, to put schedulers into."""
    made: dict[str, Any] = {}
    return lambda kind: made.setdefault(kind, load(toy(kind)).pipe)


@pytest.mark.parametrize("name", SETTINGS)
def test_f2_no_scheduler_of_the_usual_kind_is_refused(name: str, pipes: Callable[[str], Any]) -> None:
    assert name in StableDiffusion.schedulers
    for place, settings in enumerate(SETTINGS[name]):
        pipe = pipes(("sd", "sdxl")[place % 2])
        with unremarked():
            pipe.scheduler = getattr(diffusers, name)(**{**BETAS, **settings})
        model = Model(pipe)
        assert model.num_timesteps == 1000 and model.prediction == settings.get("prediction_type", "epsilon")


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "EDM Euler": (lambda: diffusers.EDMEulerScheduler(), "no betas.*found: EDMEulerScheduler"),
    "EDM DPM-Solver++": (lambda: diffusers.EDMDPMSolverMultistepScheduler(), "no betas.*EDMDPMSolver"),
    "flow matching": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), "no betas.*FlowMatchEuler"),
    "variance exploding": (lambda: diffusers.ScoreSdeVeScheduler(), "no betas.*ScoreSdeVe"),
    "consistency": (lambda: diffusers.CMStochasticIterativeScheduler(), "no betas.*CMStochastic"),
    "flow sigmas": (
        lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, use_flow_sigmas=True),
        "flow matching; found: DPMSolverMultistepScheduler",
    ),
}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("case", OTHERS)
def test_f2_schedulers_of_other_kinds_are_refused(case: str, kind: str, pipes: Callable[[str], Any]) -> None:
    make, message = OTHERS[case]
    pipe = pipes(kind)
    pipe.scheduler = make()
    with pytest.raises(ModelError, match=f"noises in a way that is not known.*{message}.*DDIM"):
        Model(pipe)


class Unscaled(diffusers.EulerDiscreteScheduler):
    """Has betas, but does not scale the denoiser's input."""

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        return sample


class Shifted(diffusers.EulerDiscreteScheduler):
    """Has betas, but tells the denoiser its times in units of one."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **more: Any) -> None:
        super().set_timesteps(num_inference_steps, device, **more)
        self.timesteps = self.timesteps / 1000


class Broken(diffusers.DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        raise ZeroDivisionError("no steps")


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Unscaled, "input is off by"), (Shifted, "input is off by"), (Broken, "does not work.*ZeroDivisionError")],
)
def test_f2_the_first_step_is_compared_whatever_the_class_is_called(
    kind: Any, message: str, pipes: Callable[[str], Any]
) -> None:
    pipe = pipes("sd")
    pipe.scheduler = kind(**BETAS)
    with pytest.raises(ModelError, match=message):
        Model(pipe)


def test_f2_a_denoiser_that_is_given_more_than_is_known_here_is_refused(toy: Toy, tmp_path: Path) -> None:
    """An LCM's U-Net in a plain pipeline: the guidance scale comes as an argument of its own."""
    folder = Path(shutil.copytree(toy("sd"), tmp_path / "lcm"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    unet = diffusers.UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 8})
    unet.save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match="disagree on the arguments timestep_cond"):
        load(folder)


def test_f2_a_folder_with_another_scheduler_is_refused_before_loading(toy: Toy, tmp_path: Path) -> None:
    for scheduler in (diffusers.EDMEulerScheduler(), diffusers.FlowMatchEulerDiscreteScheduler()):
        name = type(scheduler).__name__
        folder = Path(shutil.copytree(toy("sdxl"), tmp_path / name))
        shutil.rmtree(folder / "scheduler")
        scheduler.save_pretrained(folder / "scheduler")
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("EulerDiscreteScheduler", name))
        with pytest.raises(ModelError, match=f"scheduler of .* is not of a known kind; found: {name}; .*EDM"):
            load(folder)


def test_the_check_leaves_the_pipeline_as_it_was_and_runs_no_denoiser(toy: Toy) -> None:
    model = load(toy("sdxl"))
    before, scheduler = toys.weights(model), model.pipe.scheduler
    calls: list[int] = []
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    again = Model(model.pipe)
    assert again.pipe.scheduler is scheduler and scheduler.num_inference_steps is None and not calls
    assert all(torch.equal(before[name], value) for name, value in toys.weights(again).items())
