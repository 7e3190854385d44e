"""Settings of mask learning: the default ``freezeasguard``, and ``official``, the released code's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unteach.core.registry import Registry
from unteach.core.settings import Settings, setting
from unteach.core.settings import make as make_settings


@dataclass(frozen=True, kw_only=True)
class FreezeAsGuard(Settings):
    """How a mask is learned (freezeasguard.md §1; defaults as recommended in §6.4).

    Args:
        rho: share to freeze.
        budget: share of what: tensors, parameters, or FLOPs of weight gradients.
        granularity: what one logit freezes: a tensor, a module, a block.
        steps: publisher and user steps together.
        interval: one publisher step, then ``interval`` - 1 user steps.
        batch_size: samples of each publisher and user step, half illegal and half innocent.
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
        relearn_steps: of the full fine-tuning before, at most.
        relearn_rate: its learning rate (AdamW).
        relearn_batch: samples of each of its steps; 0 is ``batch_size``.
        relearned: the weights that it gives: the "best" on the publisher's pictures, which it does not see (it stops
            when they got no better for 40 % of its steps and are not getting better), or the "last" (the released
            code).
        timesteps: of a batch, in relearning and in both players' steps: "stratified" over the range, or "uniform", each
            drawn on its own (the released code).
        noise: "shared" by the i-th illegal and the i-th innocent sample, so that it cancels in the difference of their
            losses; or "independent" (the released code).
        balanced: half of each batch is innocent; else samples are drawn from the pooled data, in relearning too.
        patience: publisher steps that the hard mask must stay as it is to stop early; 0 never stops.
        difference: precision of θ_pre - θ_ft.
        scale: what the two sides of L_up are measured in: "gain", each in what the relearned model gained on it, so
            that a domain which is further away does not decide alone; or "raw" losses (the released code).
        innocent_weight: weight of the innocent side beside the illegal one's 1; below 1 hinders more, and both.
    """

    kind: ClassVar[str] = "guard"
    name: ClassVar[str] = "freezeasguard"

    rho: float = setting(0.3, low=0, high=1)
    budget: Literal["tensors", "parameters", "flops"] = "tensors"
    granularity: Literal["tensor", "module", "block"] = "tensor"
    steps: int = setting(240, low=1)
    interval: int = setting(2, low=1)
    batch_size: int = setting(32, low=2)
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
    relearn_steps: int = setting(100, low=0)
    relearn_rate: float = setting(3e-4, above=0)
    relearn_batch: int = setting(0, low=0)
    relearned: Literal["best", "last"] = "best"
    timesteps: Literal["stratified", "uniform"] = "stratified"
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


presets: Registry[tuple[str, Mapping[str, Any]]] = Registry("preset")
"""Named settings of mask learning."""
presets.add("official")(
    (
        "freezeasguard",
        {
            "interval": 5,
            "batch_size": 16,
            "start": "uniform",
            "logits": "bf16",
            "normalise": False,
            "project": False,
            "sparsity": 5e3,
            "mask_rate": 10.0,
            "mask_average": 0.0,
            "user": "sgd",
            "user_rates": (1e-5,),
            "reset_every": 0,
            "user_start": "relearned",
            "balanced": False,
            "difference": "bf16",
            "scale": "raw",
            "rho": 0.2,
            "steps": 2001,
            "relearn_steps": 2000,
            "relearn_rate": 1e-5,
            "relearn_batch": 4,
            "relearned": "last",
            "timesteps": "uniform",
            "noise": "independent",
        },
    )
)
_known: Registry[type[FreezeAsGuard]] = Registry("guard")
_known.add("freezeasguard")(FreezeAsGuard)


def make(name: object = "freezeasguard", /, **settings: Any) -> FreezeAsGuard:
    """The default or a preset, with ``settings`` laid over it.

    Raises:
        ConfigError: no such name, or wrong settings (all are listed).
    """
    return make_settings("guard", _known, presets, name, settings)
