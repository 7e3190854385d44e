"""Diagnostics of unlearn steps: is the setting inert, or does it undo the descent?

Everything is kept on the device and read at the end of a task only.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unteach.core.ascent import EPS, Preconditioner, dot, norm
from unteach.errors import CheckpointError

INERT = 1e-3
"""Below this share of the descent step, or this relative spread of P, a setting does next to nothing."""

_KEYS = ("unlearn_ratio", "noise_ratio", "cancelling")


class Diagnostics:
    """What the steps of a task did, with η the learning rate and g the gradient that the host descends.

    - ``unlearn_ratio``: γ‖d‖/(η‖g‖), the ascent (of all J steps together) against the descent step;
    - ``noise_ratio``: the same for the noise;
    - ``precond_spread``: max |P − mean P| over the entries (or eigenvalues) of P; 0 for P = I;
    - ``cancelling``: 1 where the whole step, −ηg plus ascent and noise, raises the unlearned loss to first order.

    Args:
        steps: J.
        bounded: γP is a step size, so that γ·max P < η is what descent requires (refresh §2.4); false where the
            ascent is undone or rescaled.
        undone: the ascent is undone before the descent.
        device: where the parameters are.
    """

    def __init__(self, steps: int, *, bounded: bool, undone: bool, device: torch.device) -> None:
        self._steps, self._bounded, self._undone, self._device = steps, bounded, undone, device
        self._spread = torch.zeros((), device=device)
        self._flat, self._largest, self._worst, self._said = False, 1.0, 0.0, 0.0
        self._summary: dict[str, float] = {}
        self._rows: list[Tensor] = []
        self._messages: list[str] = []

    def precondition(self, preconditioner: Preconditioner | None) -> None:
        """Take in the P of the steps to come; waits for the device."""
        values = [] if preconditioner is None else preconditioner.eigenvalues()
        if not values:
            self._spread, self._flat, self._largest = torch.zeros((), device=self._device), False, 1.0
            return
        total = torch.stack([value.sum() for value in values]).sum()
        mean = total / sum(value.numel() for value in values)
        self._spread = torch.stack([(value - mean).abs().max() for value in values]).max()
        self._largest = max(float(value.max()) for value in values)
        self._flat = float(self._spread) < INERT * float(mean)

    def step(
        self,
        lr: float,
        gamma: float,
        relearn: Sequence[Tensor | None],
        descent: Sequence[Tensor],
        unlearned: Sequence[Tensor],
        drift: Sequence[Tensor],
        noise: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Note one step; nothing waits for the device.

        Args:
            lr: η.
            gamma: γ.
            relearn: g, all of it.
            descent: g of the tensors that move.
            unlearned: their gradient of the unlearned loss before the ascent; empty if it was not computed.
            drift: the ascent, how far they moved.
            noise: the noise that was added to them; ``drift`` or ``noise`` may be empty.
        """
        length = lr * norm([gradient for gradient in relearn if gradient is not None]) + EPS
        uphill = list(unlearned) or list(descent)
        rise = -lr * dot(descent, uphill)
        for part in () if self._undone else (drift, noise):
            rise = rise + dot(part, uphill) if part else rise
        row = torch.stack([norm(drift).to(length) / length, norm(noise).to(length) / length, (rise > 0).to(length)])
        self._rows.append(row)
        self._worst = max(self._worst, self._reach(lr, gamma))
        return {**dict(zip(_KEYS, row.unbind(), strict=True)), "precond_spread": self._spread}

    def expect(self, lr: float, gamma: float) -> None:
        """Say what is known of the steps to come, before the first is done."""
        reach = self._reach(lr, gamma)
        if reach >= 1 and self._said < 1:
            self._messages.append(
                f"where P is largest the unlearn step is no shorter than the descent step: γ·max P is {reach:.3g} "
                f"times the learning rate {lr:g}, so the loss may grow without bound; lower gamma or raise damping"
            )
        if self._flat:
            self._messages.append(
                f"the Fisher information makes no difference: P deviates from its mean by at most "
                f"{float(self._spread):.1e}, so preconditioner='none' gives nearly the same steps without its cost"
            )

    def close(self, task: int) -> None:
        """Judge the task that has ended (``task`` counts from 0) and begin anew; waits for the device."""
        self._summary = self._measure()
        self._messages = self._judge(f"in task {task + 1}", self._summary)
        self._said, self._rows, self._worst = self._worst, [], 0.0

    def summary(self) -> dict[str, float]:
        """Medians of the ratios, the mean of ``cancelling``, and ``precond_spread``: of the task closed, or so far."""
        return self._measure() if self._rows else dict(self._summary)

    def messages(self) -> list[str]:
        """What :meth:`expect` and :meth:`close` had to say, and what the steps since then say."""
        return self._messages + (self._judge("so far", self._measure()) if self._rows else [])

    def _measure(self) -> dict[str, float]:
        if not self._rows:
            return {}
        ascent, noise, cancelling = torch.stack(self._rows).double().cpu().unbind(1)
        values = (float(ascent.median()), float(noise.median()), float(cancelling.mean()))
        return {**dict(zip(_KEYS, values, strict=True)), "precond_spread": float(self._spread)}

    def _judge(self, where: str, measured: Mapping[str, float]) -> list[str]:
        if not measured:
            return []
        said, longest = [], max(measured["unlearn_ratio"], measured["noise_ratio"])
        if longest < INERT:
            said.append(
                f"{where} the unlearn step was {longest:.1e} of the descent step (median), so this run can hardly "
                "differ from its host; raise gamma"
            )
        if measured["cancelling"] > 0.5 and not self._undone:
            said.append(
                f"{where} {measured['cancelling']:.0%} of the steps, taken as a whole, climbed the unlearned loss; "
                "lower gamma"
            )
        if self._worst >= 1:
            said.append(
                f"{where} γ·max P came to {self._worst:.3g} times the learning rate: where P is largest the unlearn "
                "step was no shorter than the descent step; lower gamma or raise damping, or let γ follow the learning "
                "rate with gamma_unit='lr'"
            )
        return said

    def state_dict(self) -> dict[str, Tensor]:
        """The rows of the task under way, (steps, 3), and the largest γ·max P / η in it, ()."""
        rows = torch.stack(self._rows).cpu() if self._rows else torch.zeros(0, len(_KEYS))
        return {"rows": rows, "reach": torch.tensor(self._worst, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave."""
        if state.keys() != {"rows", "reach"} or state["rows"].ndim != 2 or state["rows"].shape[1] != len(_KEYS):
            raise CheckpointError(
                "the checkpoint's record of unlearn steps is not whole",
                found=", ".join(sorted(state)) or "nothing",
                fix="resume with the settings that the run was started with",
            )
        self._rows = list(state["rows"].to(self._device).unbind())
        self._worst = float(state["reach"])

    def _reach(self, lr: float, gamma: float) -> float:
        """J γ·max P / η, or 0 where γP is not a step size."""
        if not self._bounded:
            return 0.0
        ascent = self._steps * gamma * self._largest
        return ascent / lr if lr > 0 else math.inf
