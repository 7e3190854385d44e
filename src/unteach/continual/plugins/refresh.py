"""Refresh: J preconditioned steps *up* the loss, with noise, before the host's step down (refresh §2.2, §4.6).

Wang et al., *A Unified and General Framework for Continual Learning*, ICLR 2024 (arXiv 2403.13249). With the
gradient g of the loss to unlearn, the preconditioner P = (F + λI)⁻¹ and white noise ξ, for j = 1..J:

    θ ← θ + γ d + √(2γT) P^(1/2) ξ,   d = P g  (or d_l = ‖θ_l‖ (P g)_l / ‖(P g)_l‖, "per-tensor")

then the host's update with its gradient at the θ so reached. F is the Fisher information of the tasks that
have ended (F ← τF + F_task, batch norm in evaluation mode); before the first has ended there is none and P = I.
The released code (``inverse_form="official"``) rescales first and divides afterwards, noise included:

    θ ← θ + γ (‖θ_l‖ g_l / ‖g_l‖ + ν ξ) / (1 + λF)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unteach.continual.learner import Learner
from unteach.continual.plugins.base import Plugin, PluginState, plugins, setting
from unteach.continual.plugins.diagnostics import Diagnostics
from unteach.continual.plugins.running_fisher import FisherKind, RunningFisher
from unteach.continual.step import StepContext
from unteach.continual.view import Loss
from unteach.core.ascent import InverseForm, Noise, Normalise, climb_, normalise
from unteach.errors import ModelError


@plugins.add("refresh")
@dataclass(frozen=True, kw_only=True)
class Refresh(Plugin):
    """Unlearn a little, then relearn.

    Args:
        gamma: γ, size of an unlearn step; 0 is the host method bit for bit.
        gamma_unit: γ as it is ("absolute"), or as a multiple of the learning rate of the moment ("lr").
        steps: J, unlearn steps before each update.
        preconditioner: which Fisher information P is made of; "none" is P = I.
        damping: λ.
        inverse_form: P = 1/(F + λ) ("damped"), or 1/(1 + λF) after rescaling ("official").
        normalise: rescale d: to length 1 ("global"), to each tensor's own norm ("per-tensor").
        temperature: T of the Langevin noise.
        noise: ν, noise in units of γ, as in the released code.
        drift: take the ascent step; off, only the noise is left (a control).
        loss: what to unlearn: the host's loss, the current batch's task loss, or the memory terms.
        restore: undo the ascent before the update, as in SAM; nothing is unlearned then (a control).
        every: unlearn in every n-th step only.
        skip_1d: leave out biases and the scales of normalisation layers.
        tau: τ, what is kept of the Fisher information of earlier tasks.
        fisher_samples: samples a task for the Fisher information; None takes all.
        fisher_augment: compute it on augmented data.
    """

    gamma: float = setting(0.01, low=0)
    gamma_unit: Literal["absolute", "lr"] = "absolute"
    steps: int = setting(1, low=1)
    preconditioner: FisherKind = "exact"
    damping: float = setting(1.0, low=0)
    inverse_form: InverseForm = "damped"
    normalise: Normalise = "none"
    temperature: float = setting(0.0, low=0)
    noise: float = setting(0.0, low=0)
    drift: bool = True
    loss: Loss = "current"
    restore: bool = False
    every: int = setting(1, low=1)
    skip_1d: bool = False
    tau: float = setting(1.0, low=0, high=1)
    fisher_samples: int | None = setting(1024, low=1)
    fisher_augment: bool = False

    def mistakes(self) -> list[str]:
        """Noise of two kinds or of none where only noise is left, P without damping, a temperature for a radius."""
        found = []
        if self.preconditioner != "none" and self.inverse_form == "damped" and self.damping == 0:
            found.append("1/(F + damping) is infinite where F is 0: damping must be above 0")
        if self.temperature and self.noise:
            found.append("temperature and noise are two scales for the same noise: set one of them to 0")
        if self.temperature and self.normalise != "none":
            found.append(f"temperature needs a step size γ, but with normalise='{self.normalise}' γ is a radius")
        if not self.drift and not self.noisy and self.gamma:
            found.append("without drift and without noise nothing is left to do: set temperature, noise or gamma=0")
        return found

    @property
    def noisy(self) -> bool:
        """Whether there is noise of either kind."""
        return self.temperature > 0 or self.noise > 0

    def rate(self, lr: float) -> float:
        """γ at learning rate ``lr``."""
        return self.gamma * lr if self.gamma_unit == "lr" else self.gamma

    def start(self, learner: Learner) -> "RefreshState":
        """No Fisher information yet: P = I."""
        return RefreshState(self, learner)


class RefreshState(PluginState):
    """Refresh in one run: the preconditioner, and diagnostics of what the steps do."""

    def __init__(self, settings: Refresh, learner: Learner) -> None:
        self.settings = settings
        params = list(learner.params)
        self.moving = [i for i, param in enumerate(params) if not settings.skip_1d or param.ndim > 1]
        if not self.moving:
            raise ModelError(
                "refresh has nothing to move: the network has no tensor with two or more axes",
                found=f"{len(params)} parameters that move",
                fix="set skip_1d=False",
            )
        chosen, names = [params[i] for i in self.moving], [learner.names[i] for i in self.moving]
        kind, samples, augment = settings.preconditioner, settings.fisher_samples, settings.fisher_augment
        damping, form = settings.damping, settings.inverse_form
        self._fisher = RunningFisher(names, chosen, kind, damping, form, settings.tau, samples, augment)
        self._noise = Noise(chosen) if settings.noisy else None
        bounded = settings.drift and not settings.restore and settings.normalise == "none"
        self._diagnostics = Diagnostics(
            settings.steps, bounded=bounded, undone=settings.restore, device=chosen[0].device
        )
        self._diagnostics.expect(learner.lr, settings.rate(learner.lr))

    def step(self, context: StepContext) -> Mapping[str, Tensor]:
        """Ascent steps, then the host's update; gives :class:`~unteach.continual.plugins.diagnostics.Diagnostics`'."""
        s = self.settings
        gamma = s.rate(context.lr)
        if gamma == 0 or context.index % s.every or (s.loss == "memory" and not context.has_memory):
            context.update(context.gradient())
            return {}
        params: list[Tensor] = [context.params[i] for i in self.moving]
        before = [param.detach().clone() for param in params] if s.restore else []
        generator = context.generator("refresh")
        drift: list[Tensor] = []
        noise: list[Tensor] = []
        unlearned: list[Tensor] = []
        for _ in range(s.steps):
            if s.drift:
                gradient = self._dense(context.gradient(s.loss, frozen_stats=True), params)
                unlearned = unlearned or gradient
                drift = _moved(params, self._direction(gradient, params), gamma, drift)
            if self._noise is not None:
                noise = _moved(params, *self._scaled(self._noise.draw(generator), gamma), noise)
        relearn = context.gradient()
        record = self._diagnostics.step(
            context.lr, gamma, relearn, self._dense(relearn, params), unlearned, drift, noise
        )
        if s.restore:
            with torch.no_grad():
                torch._foreach_copy_(params, before)
        context.update(relearn)
        return record

    def _dense(self, gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
        chosen = [gradients[i] for i in self.moving]
        return [torch.zeros_like(p) if g is None else g for g, p in zip(chosen, params, strict=True)]

    def _direction(self, gradient: list[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        if self.settings.inverse_form == "official":
            return self._p(normalise(gradient, params, self.settings.normalise))
        return normalise(self._p(gradient), params, self.settings.normalise)

    def _scaled(self, white_noise: list[Tensor], gamma: float) -> tuple[list[Tensor], float]:
        """The noise of one step, and its factor."""
        if self.settings.noise:
            return self._p(white_noise), gamma * self.settings.noise
        p = self._fisher.preconditioner
        return white_noise if p is None else p.root(white_noise), math.sqrt(2 * gamma * self.settings.temperature)

    def _p(self, tensors: list[Tensor]) -> list[Tensor]:
        p = self._fisher.preconditioner
        return tensors if p is None else p.times(tensors)

    def end_task(self, learner: Learner) -> None:
        """Take the task's Fisher information in, and say what the steps of the task did."""
        self._diagnostics.close(learner.task)
        if self.settings.gamma > 0:
            self._fisher.take(learner)
            self._diagnostics.precondition(self._fisher.preconditioner)
        self._diagnostics.expect(learner.lr, self.settings.rate(learner.lr))

    def summary(self) -> dict[str, float]:
        """Medians of the ratios, the share of steps that climbed the loss, and the spread of P in the task."""
        return self._diagnostics.summary()

    def warnings(self) -> list[str]:
        """A setting that is inert, or that outweighs the descent."""
        return [f"refresh: {message}" for message in self._diagnostics.messages()]

    def state_dict(self) -> dict[str, Tensor]:
        """The Fisher information, and the diagnostics of the task under way."""
        curvature = {f"curvature.{name}": value for name, value in self._fisher.tensors.items()}
        return curvature | {f"watch.{name}": value for name, value in self._diagnostics.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of the same settings on the same network."""
        self._fisher.load(_under("curvature.", state))
        self._diagnostics.precondition(self._fisher.preconditioner)
        self._diagnostics.load_state_dict(_under("watch.", state))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _moved(params: list[Tensor], direction: list[Tensor], size: float, before: list[Tensor]) -> list[Tensor]:
    """Move the parameters by ``size`` times the direction, and give how far they moved in all."""
    move = list(torch._foreach_mul(direction, size))
    climb_(params, move)
    return list(torch._foreach_add(before, move)) if before else move


# γ of the paper's own grid (0.02 to 0.04). With P = F⁻¹ and hardly any damping the noise and γP are far larger
# than the descent step: this is the formula, not a setting that trains (refresh §4.4).
_PAPER: dict[str, Any] = {"gamma": 0.03, "loss": "host", "preconditioner": "exact", "tau": 1.0}
plugins.preset("refresh-paper", "refresh", **_PAPER, temperature=1.0, damping=1e-3)
plugins.preset("refresh-paper-quiet", "refresh", **_PAPER, temperature=0.0, damping=1.0)
plugins.preset(
    "refresh-official-code",
    "refresh",
    gamma=1e-5,
    normalise="per-tensor",
    preconditioner="official",
    inverse_form="official",
    damping=1e-3,
    noise=1e-3,
    tau=1e-5,
    loss="current",
    fisher_samples=None,
    fisher_augment=True,
)
