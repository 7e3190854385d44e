"""Relearning: fine-tune a model on a concept, with a freeze mask honoured or ignored, and watch what comes back.

The same code measures innocent adaptation. The attacker who ignores the mask is the unprotected one.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unteach.attack.base import Attack, Job, attacks, restored
from unteach.core.settings import setting
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.lowrank import LowRank, finetune_lowrank, has_form
from unteach.diffusion.model import Model
from unteach.errors import ModelError
from unteach.records.attack import Mode

__all__ = ["Relearn", "trainable"]


@attacks.add("relearn")
@dataclass(frozen=True, kw_only=True)
class Relearn(Attack):
    """Fine-tune on what must not come back: AdamW on all that is not frozen, or on low-rank factors.

    Args:
        mode: "full" fine-tuning, or "lora": factors on all linear and convolution weights of modules that own no frozen
            tensor (as :func:`unteach.guard.enforce.enforce` asks).
        rank: LoRA rank.
    """

    name: ClassVar[str] = "relearn"

    mode: Mode = "full"
    rank: int = setting(4, low=1)

    def recorded(self) -> dict[str, Any]:
        """Mode, and the rank of the factors where there are any."""
        return {"mode": self.mode, "rank": self.rank if self.mode == "lora" else 0}

    def identity(self) -> dict[str, Any]:
        """As release 0.1 named its cells."""
        more = {"points": self.points, "batch_size": self.batch_size, "rate": self.learning_rate, "seed": self.seed}
        return self.recorded() | more

    def train(self, job: Job) -> None:
        """Fine-tune with :func:`unteach.diffusion.finetune.finetune`, or its low-rank twin."""
        model, free = job.model, trainable(job.model, job.frozen, self.mode)
        config = Finetune(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate, train=_patterns(model, free)
        )
        if not free:
            for point in self.points:
                job.look(point)
        elif self.mode == "lora":
            lowrank = LowRank(free, self.rank, self.seed)
            job.moves(free, lowrank.factors)
            job.stand_in = lambda: {name: value.detach() for name, value in lowrank.merged().items()}
            finetune_lowrank(model, job.batches, config, lowrank, seed=self.seed)
            job.look(self.steps)
        else:
            job.moves(free)
            with restored(model, free):
                finetune(model, job.batches, config, seed=self.seed)
                job.look(self.steps)


def trainable(model: Model, frozen: Collection[str], mode: Mode = "full") -> dict[str, torch.nn.Parameter]:
    """What an attacker who keeps the mask may train: all that is not frozen; in "lora", the weights to adapt.

    Raises:
        ModelError: a frozen name that the denoiser has not.
    """
    params = dict(model.denoiser.named_parameters())
    if unknown := sorted(set(frozen) - set(params)):
        raise ModelError(
            f"{len(unknown)} frozen names are not in the denoiser", found=unknown[0], fix="use the model's own names"
        )
    held = set(frozen)
    if mode == "full":
        return {name: value for name, value in params.items() if name not in held}
    owners = {name.rpartition(".")[0] for name in held}
    return {n: v for n, v in params.items() if has_form(n, v) and n.rpartition(".")[0] not in owners}


def _patterns(model: Model, free: Mapping[str, Tensor]) -> tuple[str, ...]:
    """One pattern for exactly these parameters; the default when it is all of them."""
    total = sum(1 for _ in model.denoiser.named_parameters())
    return (".*",) if len(free) in (0, total) else ("|".join(re.escape(name) for name in free),)
