"""Whether the pipeline gives its denoiser what :meth:`Model.predict` gives it: a model that works otherwise is refused.

Methods noise latents and ask the denoiser themselves, so the scheduler's noise rates, timesteps and scaling of the
input, and every argument of the pipeline's call, must be those of this package.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from unteach.core import seeds
from unteach.diffusion.foreign import foreign, unremarked
from unteach.errors import ModelError

Model = Any
"""A :class:`unteach.diffusion.model.Model`; not imported here, because it checks itself by this module."""

_STEPS = 50
# Schedulers that stop between training timesteps are up to 3 % off (KDPM2); other conventions are off by 30 % and more.
_NEAR = 0.1


def check(model: Model) -> None:
    """Compare noise, scaling, timestep and arguments of one step; the denoiser itself does not run.

    Raises:
        ModelError: they differ, or the pipeline cannot be run with its scheduler.
    """
    name = type(model.pipe.scheduler).__name__
    steps = min(_STEPS, model.num_timesteps)
    problem = f"the scheduler {name} does not work in this pipeline"
    with foreign(problem, fix="use the scheduler it was trained with"), unremarked():
        scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        mistake = _noise(model, scheduler) or _call(model, scheduler, steps)
    if mistake:
        raise ModelError(
            f"the scheduler {name} does not noise and call the denoiser in the way that is known here",
            found=mistake,
            fix=f"use a scheduler that a {type(model.pipe).__name__} is published with, in its usual settings",
        )


def _noise(model: Model, scheduler: Any) -> str:
    """What the scheduler makes of a latent and noise, scaled for the denoiser, against ``Model.noise``; "" if equal."""
    x0, eps = (seeds.randn(model.latent_shape, 0, f"conventions {what}", 0, [0]) for what in ("latent", "noise"))
    for t in (scheduler.timesteps[0], scheduler.timesteps[len(scheduler.timesteps) // 2]):
        # In a copy: a scheduler remembers which steps it was asked for.
        found = model.conventions.noised(copy.deepcopy(scheduler), x0, eps, t)
        if mistake := _differs(model, found, t, x0, eps):
            return mistake
    return ""


def _differs(model: Model, found: Tensor, t: Tensor, x0: Tensor, eps: Tensor) -> str:
    if mistake := _no_time(model, t):
        return mistake
    wanted = model.noise(x0, eps, model.schedule.nearest(float(t)))
    off = float((found.float() - wanted).norm() / wanted.norm())
    # Written so that NaN is a difference.
    return "" if off <= _NEAR else f"at timestep {float(t):.4g} the denoiser's input is off by {off:.0%}"


def _no_time(model: Model, t: Tensor) -> str:
    if 0 <= float(t) <= model.schedule.last:
        return ""
    return f"timestep {float(t):.4g}, where training timesteps go from 0 to {model.schedule.last:g}"


def _start(model: Model, found: Tensor, t: Tensor, eps: Tensor) -> str:
    """The first input is noise alone, at its timestep's rate, or at 1 (with what would be left of a picture)."""
    if mistake := _no_time(model, t):
        return mistake
    factor = float((found.float() * eps).sum() / eps.square().sum())
    rest = float((found.float() - factor * eps).norm() / eps.norm())
    low = float(model.schedule.rates(model.schedule.nearest(float(t)), eps)[1])
    fits = low * (1 - _NEAR) <= factor <= 1 + _NEAR and rest <= _NEAR
    return "" if fits else f"the pipeline starts with noise times {factor:.3g}, where {low:.3g} to 1 is known"


def _call(model: Model, scheduler: Any, steps: int) -> str:
    """What the pipeline's first step gives to the denoiser, against ``Model.predict``; "" if equal."""
    cond = model.encode([""])
    pipe = copy.copy(model.pipe)
    pipe.scheduler = copy.deepcopy(scheduler)
    pipe.set_progress_bar_config(disable=True)
    eps = seeds.randn(model.latent_shape, 0, "conventions call", 0, [0])
    _, height, width = model.image_shape
    theirs = _arguments(
        model.denoiser,
        lambda: pipe(
            **model.conventions.pipeline_inputs(cond, None),
            latents=eps.to(model.device, model.dtype),
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=height,
            width=width,
            output_type="latent",
        ),
    )
    sample, t = (theirs.pop(name).cpu() for name in model.conventions.arguments)
    if mistake := _start(model, sample, t, eps):
        return mistake
    now = model.schedule.nearest(float(t))
    ours = _arguments(model.denoiser, lambda: model.predict(sample.to(model.device), now, cond))
    extra = sorted(theirs.keys() ^ (ours.keys() - set(model.conventions.arguments)))
    if extra:
        return f"the pipeline and this package disagree on the arguments {', '.join(extra)}"
    other = sorted(name for name, value in theirs.items() if not _same(value, ours[name]))
    return f"other values of {', '.join(other)}" if other else ""


class _Seen(Exception):
    """Carries a call's arguments out of it."""


def _arguments(denoiser: nn.Module, run: Any) -> dict[str, Any]:
    """The denoiser's arguments in its first call, by name, without those that are None; it does not compute."""
    signature = inspect.signature(denoiser.forward)

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind(*args, **kwargs).arguments
        raise _Seen({name: value for name, value in given.items() if value is not None and name != "return_dict"})

    handle = denoiser.register_forward_pre_hook(see, with_kwargs=True, prepend=True)
    try:
        with torch.no_grad():
            run()
    except _Seen as seen:
        arguments: dict[str, Any] = seen.args[0]
        return arguments
    finally:
        handle.remove()
    raise RuntimeError("the pipeline did not call its denoiser")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3)
    return bool(a == b)
