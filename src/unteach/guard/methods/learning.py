"""Settings of mask learning, which all guards share that learn a mask or are made from a learned one."""

from abc import ABC
from dataclasses import dataclass
from typing import Literal

from unteach.core.settings import setting
from unteach.guard.methods.base import Guard
from unteach.guard.methods.relearn import Relearning
from unteach.records.mask import Granularity, Measure

__all__ = ["Learning"]


@dataclass(frozen=True, kw_only=True)
class Learning(Relearning, Guard, ABC):
    """How a mask is learned (freezeasguard.md §1; defaults as recommended in §6.4).

    Args as in :class:`Relearning`, and:
        rho: share to freeze.
        budget: share of what: tensors, parameters, or FLOPs of weight gradients.
        granularity: what one logit freezes: a tensor, a module, a block.
        steps: publisher and user steps together.
        interval: one publisher step, then ``interval`` - 1 user steps.
        temperature: T of the sigmoid.
        start: logits at the start: all "equal", or "uniform" in [0, 1) (the released code).
        logits: their precision.
        normalise: divide the tensors' gradients by their root mean square at every step.
        project: bring the mean of the mask back to rho exactly after every step; else the sparsity term does it.
        sparsity: c, weight of (rho - mean m)² when there is no projection.
        mask_rate: η_m.
        mask_average: decay of a running mean of the mask's gradients; 0 takes each step's own.
        user: the simulated user's optimizer.
        moments: where AdamW's two moments are: in "memory" (two more weight sets), or on "disk" (same updates).
        user_rates: the pool of learning rates; one is drawn at each reset.
        user_ranks: the pool of ranks; 0 is full fine-tuning, r keeps updates in a random subspace of r inputs.
        user_start: where each simulated user starts: at the "relearned" weights, or at the "published" ones as a real
            one does (then reset_every=20 or so: early steps count; such masks hinder less and cost less).
        reset_every: steps after which a new user starts; 0 never.
        unrolled: add the one-step term of §1.3.
        noise: "shared" by the i-th illegal and the i-th innocent sample, so that it cancels in the difference of their
            losses; or "independent" (the released code).
        balanced: half of each batch is innocent; else samples are drawn from the pooled data, in relearning too.
        patience: publisher steps that the hard mask must stay as it is to stop early; 0 never stops.
        difference: precision of θ_pre - θ_ft.
        scale: what the two sides of L_up are measured in: "gain", each in what the relearned model gained on it, so
            that a domain which is further away does not decide alone; or "raw" losses (the released code).
        innocent_weight: weight of the innocent side beside the illegal one's 1; below 1 hinders more, and both.
    """

    rho: float = setting(0.3, low=0, high=1)
    budget: Measure = "tensors"
    granularity: Granularity = "tensor"
    steps: int = setting(240, low=1)
    interval: int = setting(2, low=1)
    temperature: float = setting(0.2, above=0)
    start: Literal["equal", "uniform"] = "equal"
    logits: Literal["fp32", "bf16"] = "fp32"
    normalise: bool = True
    project: bool = True
    sparsity: float = setting(0.0, low=0)
    mask_rate: float = setting(0.005, above=0)
    mask_average: float = setting(0.9, low=0, high=0.999)
    user: Literal["adamw", "sgd"] = "adamw"
    moments: Literal["memory", "disk"] = "memory"
    user_rates: tuple[float, ...] = (1e-4, 3e-4)
    user_ranks: tuple[int, ...] = (0,)
    user_start: Literal["relearned", "published"] = "relearned"
    reset_every: int = setting(50, low=0)
    unrolled: bool = False
    noise: Literal["shared", "independent"] = "shared"
    balanced: bool = True
    patience: int = setting(0, low=0)
    difference: Literal["fp32", "bf16"] = "fp32"
    scale: Literal["gain", "raw"] = "gain"
    innocent_weight: float = setting(1.0, low=0)

    def mistakes(self) -> list[str]:
        """Empty pools, and a budget that nothing keeps."""
        found = []
        if not self.user_rates or not self.user_ranks:
            found.append("user_rates and user_ranks need at least one entry each")
        if any(rate <= 0 for rate in self.user_rates) or any(rank < 0 for rank in self.user_ranks):
            found.append("user_rates are above 0 and user_ranks at least 0")
        if not self.project and self.sparsity == 0:
            found.append("without project=true the sparsity term must have a weight, or nothing keeps the budget")
        return found
