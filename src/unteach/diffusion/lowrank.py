"""Low-rank fine-tuning (LoRA, Hu et al. 2021) without changing a model: W + B·A stands in for W in each call.

The factors are plain tensors beside the model, so no module is wrapped, a mask can be kept by leaving weights out, and
the model's own weights are bit for bit what they were. A kernel (out, in, kh, kw) is taken as a matrix (out, in·kh·kw).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from unteach.core import seeds
from unteach.core.loop import History, Loop, Step
from unteach.diffusion.finetune import Batches, Finetune, update
from unteach.diffusion.model import Model
from unteach.errors import ConfigError


def has_form(name: str, tensor: Tensor) -> bool:
    """Whether a tensor can have factors: the weight of a linear layer or of a 2-D convolution."""
    return name.endswith("weight") and tensor.ndim in (2, 4)


class LowRank:
    """Factors for chosen weights: A uniform in ±1/√in, B zero, so W + B·A = W at the start (scale α/r = 1).

    Args:
        weights: name to weight; these are read, never written.
        rank: r, at most what a weight can have.
        seed: seed of the draw that A starts from.

    Attributes:
        factors: "name/A" (r, in) and "name/B" (out, r), float32 parameters.

    Raises:
        ConfigError: no weight, a rank below 1, or a tensor that has no matrix form.
    """

    def __init__(self, weights: Mapping[str, Tensor], rank: int, seed: int) -> None:
        wrong = [name for name, value in weights.items() if not has_form(name, value)]
        if rank < 1 or not weights or wrong:
            raise ConfigError(
                "low-rank factors need a rank of at least 1 and weights of linear or convolution layers",
                found=f"rank {rank}, {len(weights)} weights" + (f", such as {wrong[0]}" if wrong else ""),
            )
        self.weights, self.rank = dict(weights), rank
        self.factors: dict[str, nn.Parameter] = {}
        for name, value in self.weights.items():
            out, inside = value.flatten(1).shape
            r = min(rank, out, inside)
            start = torch.rand(r, inside, generator=seeds.generator(seed, f"low rank {name}")) * 2 - 1
            self.factors[f"{name}/A"] = nn.Parameter((start / math.sqrt(inside)).to(value.device))
            self.factors[f"{name}/B"] = nn.Parameter(torch.zeros(out, r, device=value.device))

    def merged(self) -> dict[str, Tensor]:
        """Name to W + B·A, for ``Model.predict(params=...)``; gradients flow to the factors."""
        return {
            name: value.detach() + (self.factors[f"{name}/B"] @ self.factors[f"{name}/A"]).view_as(value).to(value)
            for name, value in self.weights.items()
        }


def finetune_lowrank(
    model: Model,
    batches: Batches,
    config: Finetune,
    lowrank: LowRank,
    *,
    seed: int = 0,
    out: Path | None = None,
    data_id: str = "",
    save_every: int = 100,
) -> History:
    """Train factors on the denoising loss, with the data, noise, update and settings of :func:`finetune`.

    ``config.train`` and ``config.average`` have no meaning here. Arguments and errors otherwise as there.
    """
    params = lowrank.factors
    values = list(params.values())
    optimizer = torch.optim.AdamW(values, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)

    def step(s: Step) -> dict[str, float | Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = config.rate(s.index)
        loss, norm = update(s, model, batches, config, values, optimizer, lowrank.merged())
        return {"loss": loss.detach(), "gradient norm": norm}

    settings = {"finetune": asdict(config), "rank": lowrank.rank, "data": data_id}
    loop = Loop(
        steps=config.steps, seed=seed, params=params, state={"optimiser": optimizer}, config=settings,
        out=out, save_every=save_every, label="low rank",
    )  # fmt: skip
    return loop.run(step)
