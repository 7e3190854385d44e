"""FreezeAsGuard's released updates to the letter (freezeasguard.md §1.3 to §1.5), a plain backward pass a step."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unteach.diffusion.model import Model

Losses = Callable[[Mapping[str, Tensor]], Tensor]
"""Parameters by name -> loss of each sample (B,)."""


class Official:
    """bf16 logits and difference, T = 0.2, SGD user; one entry of the mask a tensor.

    Args:
        pre, ft: θ_pre and θ_ft by name.
        x: starting logits, bf16, (N,).
        rho, c, eta_m, eta_u: constants of §1.4.
    """

    def __init__(
        self, pre: dict[str, Tensor], ft: dict[str, Tensor], x: Tensor, rho: float, c: float, eta_m: float, eta_u: float
    ) -> None:
        self.names, self.x = list(pre), x.clone()
        self.rho, self.c, self.eta_m, self.eta_u = rho, c, eta_m, eta_u
        self.gap = {name: (pre[name] - ft[name]).bfloat16() for name in pre}
        m = self.mask()
        self.theta = {n: ft[n] + float(m[i]) * self.gap[n].float() for i, n in enumerate(self.names)}

    def mask(self) -> Tensor:
        return torch.sigmoid(self.x / 0.2)

    def _gradients(self, value: Callable[[Mapping[str, Tensor]], Tensor]) -> dict[str, Tensor]:
        leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in self.theta.items()}
        grads = torch.autograd.grad(value(leaves), list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))

    def publisher(self, illegal: Losses, innocent: Losses) -> None:
        def up(params: Mapping[str, Tensor]) -> Tensor:
            bad, good = illegal(params), innocent(params)
            mean_t = bad.sum() / (bad.numel() + 1e-5)
            mean_i = good.sum() / (good.numel() + 1e-5)
            return (-mean_t + mean_i) / 2

        big_g = self._gradients(up)
        m = self.mask()
        slope = m * (1 - m) / 0.2
        count = len(self.names)
        mean = m.float().sum() / count
        new = self.x.clone()
        for i, name in enumerate(self.names):
            inner = (self.gap[name].float() * big_g[name]).sum()
            data = self.eta_m * inner * slope[i].float()
            sparse = self.c * (-2 * (self.rho - mean) * slope[i].float() / count)
            new[i] = (self.x[i].float() - (data + sparse)).bfloat16()
        old, self.x = m, new
        change = (self.mask() - old).float()
        for i, name in enumerate(self.names):
            self.theta[name] = self.theta[name] + self.gap[name].float() * change[i]

    def user(self, losses: Losses) -> None:
        g = self._gradients(lambda params: losses(params).mean())
        m = self.mask().float()
        for i, name in enumerate(self.names):
            free = 1 - m[i]
            self.gap[name] = (self.gap[name].float() + free * (self.eta_u * g[name]).bfloat16().float()).bfloat16()
            self.theta[name] = self.theta[name] - self.eta_u * free * free * g[name]


def adam(gradients: list[Tensor], rate: float) -> list[Tensor]:
    """What Adam subtracts in each step for this sequence of gradients (Kingma and Ba 2015, betas 0.9 and 0.999)."""
    first, second, moves = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0]), []
    for n, g in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g * g
        moves.append(rate * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8))
    return moves


def leave_one_out(
    model: Model,
    relearned: Mapping[str, Tensor],
    pre: Mapping[str, Tensor],
    loss: Callable[[], float],
) -> dict[str, float]:
    """How much L_up falls when one tensor alone goes back from θ_ft to θ_pre; higher is frozen first.

    The model must hold ``relearned``; it does again on return.
    """
    params: dict[str, nn.Parameter] = dict(model.denoiser.named_parameters())
    with torch.no_grad():
        whole, found = loss(), {}
        for name, value in params.items():
            value.copy_(pre[name])
            found[name] = whole - loss()
            value.copy_(relearned[name])
    assert all(math.isfinite(v) for v in found.values())
    return found
