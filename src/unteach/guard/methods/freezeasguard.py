"""FreezeAsGuard, and ``official``, the settings of the released code."""

from dataclasses import dataclass

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

    def run(self, model: Model, data: GuardData, job: Job) -> Guarded:
        """Learn what to freeze."""
        return Guarded(learn(model, data, self, seed=job.seed, out=job.out, events=job.events))


guards.preset(
    "official", "freezeasguard", rho=0.2, steps=2001, interval=5, batch_size=16, start="uniform", logits="bf16",
    normalise=False, project=False, sparsity=5e3, mask_rate=10.0, mask_average=0.0, user="sgd", user_rates=(1e-5,),
    user_start="relearned", reset_every=0, balanced=False, difference="bf16", scale="raw", relearn_steps=2000,
    relearn_rate=1e-5, relearn_batch=4, relearned="last", timesteps="uniform", noise="independent",
)  # fmt: skip
