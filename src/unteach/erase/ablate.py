"""Concept Ablation, model-based (Kumari et al., ICCV 2023, arXiv 2303.13516; erasure §6).

The student's output under the target prompt is drawn to the teacher's output under the anchor prompt, point
by point, on anchor latents: no picture of the target is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unteach.core.loop import Step
from unteach.erase.method import methods, setting
from unteach.erase.train import Objective, Run, Trained, averaged


@methods.add("ablate")
@dataclass(frozen=True, kw_only=True)
class Ablate(Trained):
    """Concept Ablation.

    Args:
        teacher: who answers the anchor prompt: the "original" model, or the "current" student, without gradient
            (the paper's), whose anchor may drift away while it learns.
        retain_weight: λ of the loss on the prompts to keep; needed when target and anchor share words.
    """

    name: ClassVar[str] = "ablate"

    teacher: Literal["current", "original"] = "original"
    retain_weight: float = setting(1.0, low=0)

    def objective(self, run: Run) -> Objective:
        """MSE(ε_θ(x_t, c*, t), sg ε(x_t, c, t)) + λ L_r."""

        def step(step: Step) -> Mapping[str, float | Tensor]:
            batch = run.batch(step, "unlearn")
            target, anchor = run.prompts(batch)
            if self.teacher == "original":
                wanted = run.teacher(batch, anchor)
            else:
                with torch.no_grad():
                    wanted = run.output(batch, anchor)
            loss = F.mse_loss(run.output(batch, target), wanted)
            log, grads = {"unlearn_loss": loss}, run.student.grads(loss)
            if self.retain_weight > 0:
                kept = run.retain_loss(step)
                added = run.student.grads(kept)
                grads = [a + self.retain_weight * b for a, b in zip(grads, added, strict=True)]
                log["retain_loss"] = kept
            run.update(run.clipped(step.reduce(grads)), step.index)
            return averaged(step, log)

        return step, {}


methods.preset(
    "ablate-paper",
    "ablate",
    steps=100,
    learning_rate=1.6e-5,
    retain_weight=0.0,
    retain_target="noise",
    teacher="current",
    kept_words=0,
    contexts=0,
    look_every=0,
    guidance_scale=6.0,
    num_inference_steps=50,
)
# The same data and updates as ``doco-canvas``: its control on the bundled model.
methods.preset(
    "ablate-canvas",
    "ablate",
    contexts=0,
    look_every=0,
    steps=170,
    learning_rate=5e-4,
    teacher="original",
    retain_target="teacher",
    images=96,
    retain_images=160,
    num_inference_steps=10,
)
