"""The noise schedule of a model and what its denoiser's output means.

Every family here writes a noisy latent as ``x_t = signal[t]·x0 + sigma[t]·ε``. A *prediction* says which
mixture of x0 and ε the denoiser is trained to give; the conversions below follow from that alone (doco §1.1),
are computed in at least float32 and never clamp. Shapes: latents ``(B, C, h, w)``, ``t`` int64 ``(B,)`` or a
single integer.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

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


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Schedule:
    """Signal and noise rates by training timestep, with the model's prediction type.

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
        self.prediction = prediction
        self.signal, self.sigma = signal, sigma
        self._kind = predictions[prediction]

    def __len__(self) -> int:
        return self.signal.shape[0]

    def rates(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise rate at ``t``, shaped to multiply ``like``: ``(B, 1, 1, 1)``.

        Raises:
            ConfigError: t is not integral, is out of range or does not fit the batch.
        """
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ConfigError("timesteps are integers", found=t.dtype)
        if t.numel() not in (1, like.shape[0]) or t.ndim > 1:
            raise ConfigError(f"{like.shape[0]} latents need as many timesteps, or one", found=tuple(t.shape))
        if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < len(self):
            raise ConfigError(f"timesteps go from 0 to {len(self) - 1}", found=f"{int(t.min())} to {int(t.max())}")
        if self.signal.device != like.device:
            self.signal, self.sigma = self.signal.to(like.device), self.sigma.to(like.device)
        rows = t.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return self.signal[rows].to(dtype), self.sigma[rows].to(dtype)

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """x_t = a x0 + s ε."""
        a, s = self.rates(t, x0)
        return a * _wide(x0) + s * _wide(eps)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """What the denoiser should give for this latent, noise and time."""
        return self._kind.target(_wide(x0), _wide(eps), *self.rates(t, x0))

    def to_x0(self, x_t: Tensor, out: Tensor, t: Tensor | int) -> Tensor:
        """The clean latent that an output implies, not clamped."""
        return self._kind.to_x0(_wide(x_t), _wide(out), *self.rates(t, x_t))

    def to_eps(self, x_t: Tensor, out: Tensor, t: Tensor | int) -> Tensor:
        """The noise that an output implies."""
        return self._kind.to_eps(_wide(x_t), _wide(out), *self.rates(t, x_t))
