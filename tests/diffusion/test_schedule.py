import pytest
import torch
from diffusers import DDPMScheduler

from unteach.core import seeds
from unteach.diffusion import Model
from unteach.errors import ConfigError

TIMES = torch.tensor([0, 500, 999])


def noise(model: Model, batch: int = 3, purpose: str = "test") -> torch.Tensor:
    return seeds.randn(model.latent_shape, 0, purpose, 0, range(batch))


def test_noise_and_target_agree_with_diffusers(model: Model) -> None:
    ddpm = DDPMScheduler.from_config(model.pipe.scheduler.config)
    x0, eps = noise(model, purpose="x0"), noise(model, purpose="eps")
    torch.testing.assert_close(model.noise(x0, eps, TIMES), ddpm.add_noise(x0, eps, TIMES))
    theirs = eps if model.prediction == "epsilon" else ddpm.get_velocity(x0, eps, TIMES)
    torch.testing.assert_close(model.target(x0, eps, TIMES), theirs)
    torch.testing.assert_close(model.schedule.signal.float() ** 2, ddpm.alphas_cumprod)


def test_conversions_come_back_without_clamping(model: Model) -> None:
    x0, eps = 50 * noise(model, purpose="x0").double(), noise(model, purpose="eps").double()
    x_t, out = model.noise(x0, eps, TIMES), model.target(x0, eps, TIMES)
    torch.testing.assert_close(model.to_x0(x_t, out, TIMES), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.to_eps(x_t, out, TIMES), eps, rtol=1e-9, atol=1e-9)
    anything = noise(model, purpose="out").double()
    rebuilt = model.noise(model.to_x0(x_t, anything, TIMES), model.to_eps(x_t, anything, TIMES), TIMES)
    torch.testing.assert_close(rebuilt, x_t, rtol=1e-9, atol=1e-9)
    assert model.to_x0(x_t, out, TIMES).abs().max() > 50


def test_x0_weighs_the_gradient_by_the_noise_to_signal_ratio(model: Model) -> None:
    """Doco §1.7: d x0 / d ε = −√((1−ᾱ_t)/ᾱ_t); for v it is −√(1−ᾱ_t)."""
    ddpm = DDPMScheduler.from_config(model.pipe.scheduler.config)
    alpha_bar = ddpm.alphas_cumprod[TIMES]
    out = noise(model).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.to_x0(noise(model), out, TIMES).sum(), out)
    ratio = (1 - alpha_bar).sqrt() / (alpha_bar.sqrt() if model.prediction == "epsilon" else 1)
    torch.testing.assert_close(gradient, -ratio.view(3, 1, 1, 1).expand_as(gradient))
    if model.prediction == "epsilon":
        assert [round(value, 1) for value in ratio.tolist()] == [0.0, 1.6, 14.6]


def test_conversions_are_at_least_float32(model: Model) -> None:
    half = noise(model).half()
    for value in (model.noise(half, half, 5), model.to_x0(half, half, 5), model.to_eps(half, half, 5)):
        assert value.dtype == torch.float32
    assert model.noise(half.double(), half.double(), 5).dtype == torch.float64


def test_timesteps_are_checked(sd: Model) -> None:
    x = noise(sd)
    for wrong, message in (
        (torch.tensor([0.5, 1, 2]), "timesteps are integers"),
        (torch.tensor([0, 1]), "3 latents need as many timesteps"),
        (-1, "from 0 to 999; found: -1"),
        (1000, "from 0 to 999; found: 1000"),
    ):
        with pytest.raises(ConfigError, match=message):
            sd.noise(x, x, wrong)
