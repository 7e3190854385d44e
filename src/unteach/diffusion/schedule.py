"""The noise schedule of a model and what its denoiser's output means.

Every family here writes a noisy latent as ``x_t = a(t)·x0 + s(t)·ε``. A *prediction* says which mixture of x0 and
ε the denoiser is trained to give; the conversions below follow from that alone (doco §1.1), are computed in at
least float32 and never clamp. Shapes: latents ``(B, C, h, w)``, ``t`` ``(B,)`` or a single number: integers in a
:class:`Discrete` schedule, any number in a :class:`Flow`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from unteach.core.loop import Step
from unteach.core.registry import Registry
from unteach.errors import ConfigError, ModelError


class Prediction(ABC):
    """One meaning of the denoiser's output; ``a`` is the signal rate and ``s`` the noise rate."""

    @staticmethod
    @abstractmethod
    def target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """What the denoiser should give."""

    @staticmethod
    @abstractmethod
    def to_x0(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The clean latent that an output implies."""

    @staticmethod
    @abstractmethod
    def to_eps(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The noise that an output implies."""


predictions: Registry[type[Prediction]] = Registry("prediction type")


@predictions.add("epsilon")
class Epsilon(Prediction):
    """The output is the noise ε (Ho et al. 2020)."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give ε."""
        return eps

    @staticmethod
    def to_x0(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """(x_t − s ε) / a, so d x0 / d ε = −s/a."""
        return (x_t - s * out) / a

    @staticmethod
    def to_eps(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The output itself."""
        return out


@predictions.add("v_prediction")
class Velocity(Prediction):
    """The output is v = a ε − s x0 (Salimans and Ho 2022), with a² + s² = 1."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give a ε − s x0."""
        return a * eps - s * x0

    @staticmethod
    def to_x0(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give a x_t − s v."""
        return a * x_t - s * out

    @staticmethod
    def to_eps(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give s x_t + a v."""
        return s * x_t + a * out


class FlowVelocity(Prediction):
    """The output is dx_t/ds = ε − x0 on the straight line x_t = (1 − s) x0 + s ε (rectified flow, Liu et al. 2022)."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give ε − x0."""
        return eps - x0

    @staticmethod
    def to_x0(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give x_t − s v."""
        return x_t - s * out

    @staticmethod
    def to_eps(x_t: Tensor, out: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Give x_t + a v."""
        return x_t + a * out


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Schedule(ABC):
    """Signal and noise rates by time, the times that are trained on, and the model's prediction type.

    Attributes:
        prediction: what the denoiser's output means: "epsilon", "v_prediction" or "flow".
        last: the largest time; the smallest is 0.
    """

    prediction: str
    last: float
    _kind: type[Prediction]

    @abstractmethod
    def __len__(self) -> int:
        """Number of training timesteps; in continuous time, the unit in which times are told to the denoiser."""

    @abstractmethod
    def nearest(self, t: float) -> int | float:
        """The time of this schedule that is nearest to a sampler's time."""

    @abstractmethod
    def at(self, places: Tensor) -> Tensor:
        """Times at places in [0, 1) of the distribution that is trained on."""

    @abstractmethod
    def draw(self, step: Step, purpose: str, items: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """A training time for each item on its own, ``(len(items),)``, from ``low`` to ``high`` as shares of all."""

    def spread(self, step: Step, items: Sequence[int], batch: int) -> Tensor:
        """Stratified times: one random offset a step, the ``batch``'s items spread evenly over the distribution."""
        offset = step.rand("timestep offset", (), [0])
        return self.at((offset + torch.tensor(list(items), dtype=torch.float32) / batch) % 1)

    @abstractmethod
    def _rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rates of checked times, on the device of ``like``."""

    def rates(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise rate at ``t``, shaped to multiply ``like``: ``(B, 1, 1, 1)``.

        Raises:
            ConfigError: t is out of range, does not fit the batch, or (in discrete time) is not integral.
        """
        t = torch.as_tensor(t)
        if t.numel() not in (1, like.shape[0]) or t.ndim > 1:
            raise ConfigError(f"{like.shape[0]} latents need as many timesteps, or one", found=tuple(t.shape))
        if t.device.type == "cpu" and t.numel() and not 0 <= t.min().item() <= t.max().item() <= self.last:
            found = f"{t.min().item():g} to {t.max().item():g}"
            raise ConfigError(f"timesteps go from 0 to {self.last:g}", found=found)
        dtype = torch.promote_types(like.dtype, torch.float32)
        a, s = self._rates(t.to(like.device).reshape(-1, *[1] * (like.ndim - 1)), like)
        return a.to(dtype), s.to(dtype)

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """x_t = a x0 + s ε."""
        a, s = self.rates(t, x0)
        return a * _wide(x0) + s * _wide(eps)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """What the denoiser should give for this latent, noise and time."""
        return self._kind.target(_wide(x0), _wide(eps), *self.rates(t, x0))

    def to_x0(self, x_t: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """The clean latent that an output implies, not clamped."""
        return self._kind.to_x0(_wide(x_t), _wide(out), *self.rates(t, x_t))

    def to_eps(self, x_t: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """The noise that an output implies."""
        return self._kind.to_eps(_wide(x_t), _wide(out), *self.rates(t, x_t))


class Discrete(Schedule):
    """Integer timesteps with a table of rates, all equally likely in training.

    Args:
        signal: factor of the clean latent, ``(T,)``, falling with t.
        sigma: factor of the noise, ``(T,)``, rising with t.
        prediction: a name in :data:`predictions`.

    Raises:
        ModelError: the prediction type is unknown, or noise is predicted where no signal is left (then x0 is
            lost).
    """

    def __init__(self, signal: Tensor, sigma: Tensor, prediction: str) -> None:
        if prediction not in predictions:
            raise ModelError(
                "the scheduler's prediction_type is not supported",
                found=f"'{prediction}'",
                fix=f"use a model with one of: {', '.join(predictions.names())}",
            )
        if prediction == "epsilon" and bool((signal <= 0).any()):
            raise ModelError(
                "the model predicts noise, but its schedule ends without any signal (zero terminal SNR)",
                found=f"smallest signal rate {signal.min().item():g}",
                fix="correct the scheduler's prediction_type or its rescale_betas_zero_snr",
            )
        self.prediction, self._kind = prediction, predictions[prediction]
        self.signal, self.sigma, self.last = signal, sigma, len(signal) - 1

    def __len__(self) -> int:
        return self.signal.shape[0]

    def nearest(self, t: float) -> int:
        """The nearest integer."""
        return round(t)

    def at(self, places: Tensor) -> Tensor:
        """Places spread over ``0 … T - 1``, int64."""
        return (places * len(self)).long().clamp(max=len(self) - 1)

    def draw(self, step: Step, purpose: str, items: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform integers, int64; the range has at least one."""
        total = len(self)
        end = max(round(low * total) + 1, round(high * total))
        start = min(round(low * total), end - 1, total - 1)
        return start + step.randint(purpose, min(end, total) - start, items)

    def _rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if t.is_floating_point() or t.dtype == torch.bool:
            raise ConfigError("timesteps are integers", found=t.dtype)
        if self.signal.device != like.device:
            self.signal, self.sigma = self.signal.to(like.device), self.sigma.to(like.device)
        return self.signal[t], self.sigma[t]


class Flow(Schedule):
    """Continuous time on the straight line from picture to noise: s = t / T, a = 1 − s; the output is its velocity.

    Training times are logit-normal, shifted to more noise for larger pictures: s = σ(z + ln shift) with z ~ N(0, 1)
    (Esser et al. 2024, arXiv 2403.03206, §3.1 and §5.3.2, as diffusers' training scripts draw them).

    Args:
        unit: T, the time of pure noise.
        shift: factor on s / (1 − s).
    """

    def __init__(self, unit: int, shift: float) -> None:
        self.prediction, self._kind = "flow", FlowVelocity
        self.last, self._shift = unit, math.log(shift)

    def __len__(self) -> int:
        return int(self.last)

    def nearest(self, t: float) -> float:
        """The time itself."""
        return t

    def at(self, places: Tensor) -> Tensor:
        """Quantiles of the distribution, float32."""
        return (torch.sigmoid(torch.special.ndtri(places.double()) + self._shift) * self.last).float()

    def draw(self, step: Step, purpose: str, items: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """From the distribution, cut to the range; float32."""
        ends = torch.special.ndtr(torch.logit(torch.tensor([low, high], dtype=torch.float64)) - self._shift)
        return self.at(ends[0] + (ends[1] - ends[0]) * step.rand(purpose, (), items).double())

    def _rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        s = t.double() / self.last
        return 1 - s, s
