"""An optimizer with block-wise quantised moments, as 8-bit AdamW has: uint8 codes and one fp32 scale a block."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 32


def pack(x: Tensor, low: float) -> tuple[Tensor, Tensor]:
    """Codes 0..255 for [low, 1] times the largest magnitude of each block."""
    rows = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
    codes = ((rows / scale - low) / (1 - low) * 255).round().clamp(0, 255).to(torch.uint8)
    return codes, scale


def unpack(codes: Tensor, scale: Tensor, like: Tensor, low: float) -> Tensor:
    rows = (codes.float() / 255 * (1 - low) + low) * scale
    return rows.flatten()[: like.numel()].view_as(like)


class EightBitAdamW(torch.optim.Optimizer):
    """AdamW (decoupled decay) with the first moment in [-1, 1] codes and the root of the second in [0, 1] codes."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                p.mul_(1 - group["lr"] * group["weight_decay"])  # like some, it decays also without a gradient
                if p.grad is None:
                    continue
                if not state:
                    state["step"] = 0
                    state["m"], state["m_scale"] = pack(torch.zeros_like(p), -1.0)
                    state["v"], state["v_scale"] = pack(torch.zeros_like(p), 0.0)
                state["step"] += 1
                m = unpack(state["m"], state["m_scale"], p, -1.0).lerp_(p.grad, 1 - b1)
                root = unpack(state["v"], state["v_scale"], p, 0.0)
                v = (b2 * root * root).addcmul_(p.grad, p.grad, value=1 - b2)
                state["m"], state["m_scale"] = pack(m, -1.0)
                state["v"], state["v_scale"] = pack(v.sqrt(), 0.0)
                m_hat, v_hat = m / (1 - b1 ** state["step"]), v / (1 - b2 ** state["step"])
                p.addcdiv_(m_hat, v_hat.sqrt().add_(group["eps"]), value=-group["lr"])
