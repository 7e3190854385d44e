"""FreezeAsGuard, and ``official``, the settings of the released code."""

from dataclasses import dataclass
from typing import ClassVar

from unteach.diffusion.model import Model
from unteach.guard.data import GuardData
from unteach.guard.methods.base import Guarded, Job, guards
from unteach.guard.methods.learner import learn
from unteach.guard.methods.learning import Learning

__all__ = ["FreezeAsGuard"]


@guards.add("freezeasguard")
@dataclass(frozen=True, kw_only=True)
class FreezeAsGuard(Learning):
    """Learned on two levels: a user who relearns, a publisher who freezes."""

    name: ClassVar[str] = "freezeasguard"

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Learn what to freeze."""
        return Guarded(learn(model, data, self, seed=job.seed, out=job.out, events=job.events))


guards.preset(
    "official",
    "freezeasguard",
    interval=5,
    batch_size=16,
    start="uniform",
    logits="bf16",
    normalise=False,
    project=False,
    sparsity=5e3,
    mask_rate=10.0,
    mask_average=0.0,
    user="sgd",
    user_rates=(1e-5,),
    reset_every=0,
    user_start="relearned",
    balanced=False,
    difference="bf16",
    scale="raw",
    rho=0.2,
    steps=2001,
    relearn_steps=2000,
    relearn_rate=1e-5,
    relearn_batch=4,
    relearned="last",
    timesteps="uniform",
    noise="independent",
)
