"""What is Stable Diffusion 3's own: flow matching against diffusers' scheduler, T5 or none, where its text comes in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tests import toys
from tests.erase.common import CONCEPT, quick
from tests.guard import sets

from unteach.core import seeds
from unteach.diffusion import Model, load
from unteach.diffusion.schedule import Flow
from unteach.diffusion.tokens import name_ends
from unteach.erase import erase
from unteach.errors import ConfigError, ModelError
from unteach.guard.methods import Job, guards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("sd3")
    return lambda kind: toys.build(kind, root / kind)


@pytest.fixture
def model(folder: Callable[[str], Path]) -> Model:
    return load(folder("sd3"))


def test_noise_and_target_are_those_of_the_scheduler(model: Model) -> None:
    """A step of Euler along the target, from any time to any other, lands on the line that noise() draws."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(model.pipe.scheduler.config)
    scheduler.set_timesteps(10)
    x0, eps = (seeds.randn(model.latent_shape, 0, name, 0, [0]) for name in ("x0", "eps"))
    for now, then in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        x_t = model.noise(x0, eps, now)
        torch.testing.assert_close(x_t, scheduler.scale_noise(x0, now[None], eps))
        moved = scheduler.step(model.target(x0, eps, now), now, x_t).prev_sample
        torch.testing.assert_close(moved, model.noise(x0, eps, then), rtol=1e-4, atol=1e-5)


def test_training_times_are_logit_normal_and_shifted() -> None:
    """Esser et al.: s = sigmoid(z), then shift·s / (1 + (shift − 1)·s), here by quantiles."""
    places = torch.linspace(0, 0.99, 34)
    plain = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(places.double()))
    for shift in (1.0, 3.0):
        wanted = 1000 * shift * plain / (1 + (shift - 1) * plain)
        torch.testing.assert_close(Flow(1000, shift).at(places), wanted.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("key", ["use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"])
def test_a_scheduler_that_changes_times_or_draws_is_refused(model: Model, key: str) -> None:
    model.pipe.scheduler = FlowMatchEulerDiscreteScheduler(**{key: True})
    with pytest.raises(ModelError, match=f"not known here; found: FlowMatchEuler.* with {key}.*fixed shift"):
        Model(model.pipe)


def test_t5_may_be_left_out_of_a_pipeline_in_memory(model: Model, folder: Callable[[str], Path]) -> None:
    model.pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    without = Model(model.pipe)
    assert without.parts == load(folder("sd3_no_t5")).parts
    hidden = without.encode(["a dog"]).hidden
    assert hidden.shape == (1, toys.LENGTH + 256, 40) and not hidden[:, toys.LENGTH :].any()
    assert name_ends(without, "a dog", "dog") == (2,) and name_ends(load(folder("sd3")), "a dog", "dog") == (2, 1)


def test_the_closed_form_is_refused_where_more_than_text_comes_in(model: Model) -> None:
    with pytest.raises(ModelError, match=r"nothing but the text.*add_k_proj.*use a trained method"):
        erase(model, CONCEPT, quick("uce", train=(r".*\.add_k_proj\.weight",)))


def test_a_mask_of_the_u_nets_upper_half_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="U-Net's middle and up blocks; found: a SD3Transformer2DModel"):
        guards.make("mid-up").run(model, sets.guard_data(model, 2), Job())
