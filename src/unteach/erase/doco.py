"""DoCo: concept domain correction with the concept-preserving gradient (Wu et al., AAAI 2025, arXiv
2405.15304).

A discriminator D learns to tell the student's outputs under target prompts from the original model's outputs
under anchor prompts; the student learns to pass. Gradient surgery takes out of its update whatever would
raise the loss on what must stay. Section numbers (§) are those of the project's page on the paper; the
official code deviates from the algorithm in places, and the presets ``doco-official-*`` follow it there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unteach.core import seeds
from unteach.core.loop import Step
from unteach.core.surgery import project
from unteach.erase.method import methods, setting
from unteach.erase.train import Batch, Objective, Run, Trained, averaged


@methods.add("doco")
@dataclass(frozen=True, kw_only=True)
class DoCo(Trained):
    """Domain correction (DoCo) with the concept-preserving gradient.

    Args:
        warm_up: first steps, in which only the discriminator learns; part of ``steps``.
        space: what the discriminator sees: the clean latents that the outputs imply ("x0"), or the noise
            ("eps"). In x0, high-noise steps weigh much more (§1.7).
        d_learning_rate: learning rate of the discriminator (Adam, β = 0.5, 0.999).
        d_width: channels of its first layer.
        projection: λ, how much of a conflict is taken out; 0 turns the surgery off (§2).
        scope: one conflict test a tensor, or one for all together.
        formula: "orthogonal" is the algorithm, "official_cosine" what the code of November 2024 does (§2).
        retain_weight: how much of the retain gradient is added, too; 0 is the paper's.
        pair_weight: weight of Concept Ablation's pointwise loss beside the adversarial one; 0 is the paper's, whose
            adversary alone often gives scribbles where the anchor should be (docs/doco.md).
        leak: let D descend the student's loss as well, as the official code does by not freezing it (§4.1).
    """

    name: ClassVar[str] = "doco"
    renamed: ClassVar[Mapping[str, str]] = {**Trained.renamed, "d_lr": "d_learning_rate"}

    warm_up: int = setting(100, low=0)
    space: Literal["x0", "eps"] = "x0"
    d_learning_rate: float = setting(1e-4, above=0)
    d_width: int = setting(64, low=1)
    projection: float = setting(1.0, low=0)
    scope: Literal["per_tensor", "global"] = "per_tensor"
    formula: Literal["orthogonal", "official_cosine"] = "orthogonal"
    retain_weight: float = setting(1.0, low=0)
    pair_weight: float = setting(10.0, low=0)
    leak: bool = False

    def mistakes(self) -> list[str]:
        """Contradictions between settings."""
        found = super().mistakes()
        if self.warm_up >= self.steps:
            found.append(f"warm_up must leave updates: it must be below steps, found {self.warm_up} of {self.steps}")
        return found

    def updates(self) -> int:
        """How many of the steps change the denoiser (§1.4)."""
        return self.steps - self.warm_up

    def objective(self, run: Run) -> Objective:
        """The two players' step."""
        seed = seeds.integer(run.seed, "discriminator")
        discriminator = Discriminator(run.model.latent_shape, self.d_width, seed).to(run.model.device)
        game = Game(self, run, discriminator)
        return game.step, {"discriminator": discriminator, "discriminator optimizer": game.optimizer}


class Discriminator(nn.Sequential):
    """PatchGAN on latents, ``(B, C, h, w)`` → logits ``(B, 1, h', w')``; 1 means target, 0 anchor (§1.5).

    Four 4×4 convolutions of stride 2 at the size of SD (C = 4, 64 × 64: 2,767,553 parameters, 3 × 3 logits).
    For smaller latents as many as leave a 4 × 4 map, and at least two layers, the rest with stride 1. Batch
    norm always uses the batch's own statistics. PyTorch's default initialisation, drawn from ``seed``.
    """

    def __init__(self, latent_shape: tuple[int, int, int], width: int = 64, seed: int = 0) -> None:
        channels, height, stride_layers = latent_shape[0], min(latent_shape[1:]), 1
        while stride_layers < 4 and height // 2 ** (stride_layers + 1) >= 4:
            stride_layers += 1
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for i in range(max(2, stride_layers)):
                kernel, stride = (4, 2) if i < stride_layers else (3, 1)
                layers.append(nn.Conv2d(channels, width * 2**i, kernel, stride, padding=1))
                channels = width * 2**i
                if i > 0:
                    layers.append(nn.BatchNorm2d(channels, track_running_stats=False))
                layers.append(nn.LeakyReLU(0.2))
            layers.append(nn.Conv2d(channels, 1, 4, 1, padding=1))
        super().__init__(*layers)


def towards(logits: Tensor, label: float) -> Tensor:
    """Binary cross-entropy of logits against one label, mean over batch and patches."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


@dataclass(frozen=True, eq=False)
class Move:
    """What the student and the teacher said in one step, in the space that D sees."""

    u_s: Tensor
    u_a: Tensor
    pointwise: Tensor


class Game:
    """One training step of DoCo (§1.4), symbol by symbol."""

    def __init__(self, method: DoCo, run: Run, discriminator: nn.Module) -> None:
        self.method, self.run, self.d = method, run, discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=method.d_learning_rate, betas=(0.5, 0.999))

    def step(self, step: Step) -> Mapping[str, float | Tensor]:
        """The student's update, after the warm-up, and D's update against the student as it was before."""
        learning = step.index >= self.method.warm_up
        move = self.play(self.run.batch(step, "unlearn"), learning)
        log, leaked = self.student_step(move, step) if learning else ({}, None)
        return log | self.discriminator_step(move, step, leaked)

    def play(self, batch: Batch, learning: bool) -> Move:
        """e_s = ε_θ(x_t, t, c*) and e_a = ε_0(x_t, t, c): same latent, noise and time; then u_s and u_a."""
        target, anchor = self.run.prompts(batch)
        e_a = self.run.teacher(batch, anchor)
        with torch.set_grad_enabled(learning):
            e_s = self.run.output(batch, target)
            seen = self.run.model.to_x0 if self.method.space == "x0" else self.run.model.to_eps
            u_s, u_a = (seen(batch.x_t, e, batch.t).float() for e in (e_s, e_a))
            return Move(u_s, u_a, F.mse_loss(e_s, e_a))

    def student_step(self, move: Move, step: Step) -> tuple[dict[str, Tensor], list[Tensor] | None]:
        """Descend L_u = BCE(D(u_s), 0), without what raises L_r; with ``leak`` also return ∇_D L_u."""
        method, run = self.method, self.run
        loss_u = towards(self.d(move.u_s), 0.0)
        players = list(self.d.parameters()) if method.leak else []
        grads = run.student.grads(loss_u + method.pair_weight * move.pointwise, players)
        count = len(run.student.live)
        g_u, leaked = run.clipped(step.reduce(grads[:count])), grads[count:] or None
        log = {"unlearn_loss": loss_u, "pointwise_loss": move.pointwise}
        if method.projection > 0 or method.retain_weight > 0:
            loss_r = run.retain_loss(step)
            g_r = run.clipped(step.reduce(run.student.grads(loss_r)))
            g, conflict = project(g_u, g_r, strength=method.projection, scope=method.scope, formula=method.formula)
            if method.retain_weight > 0:
                g = [a + method.retain_weight * b for a, b in zip(g, g_r, strict=True)]
            log |= {
                "retain_loss": loss_r,
                "conflict_share": conflict.share,
                "conflict_cosine": conflict.mean_cosine,
            }
        else:
            g = g_u
        run.update(g, step.index - method.warm_up)
        return averaged(step, log), leaked

    def discriminator_step(self, move: Move, step: Step, leaked: list[Tensor] | None) -> dict[str, Tensor]:
        """Descend L_D = BCE(D(u_a), 0) + BCE(D(u_s), 1); each domain alone, for batch norm."""
        params = list(self.d.parameters())
        said_a, said_s = self.d(move.u_a), self.d(move.u_s.detach())
        loss = towards(said_a, 0.0) + towards(said_s, 1.0)
        grads = list(torch.autograd.grad(loss, params))
        if leaked is not None:
            grads = [a + b for a, b in zip(grads, leaked, strict=True)]
        for param, grad in zip(params, step.reduce(grads), strict=True):
            param.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        right = ((said_a < 0).float().mean() + (said_s > 0).float().mean()) / 2
        return averaged(step, {"discriminator_loss": loss, "discriminator_accuracy": right})


_PLAIN = {"retain_weight": 0.0, "pair_weight": 0.0}
_PAPER = {
    **_PLAIN,
    "kept_words": 0,
    "contexts": 0,
    "look_every": 0,
    "retain_target": "noise",
    "steps": 2000,
    "warm_up": 1000,
    "learning_rate": 4.8e-5,
    "d_learning_rate": 5e-4,
    "images": 1000,
    "retain_images": 1000,
    "num_inference_steps": 25,
    "guidance_scale": 6.0,
}
# The official code compares strictly and so warms up one step longer (§4.5); its retain set is the anchors
# (§1.3.5).
methods.preset("doco-paper", "doco", **_PAPER)
methods.preset(
    "doco-official-2024-11", "doco", **{**_PAPER, "warm_up": 1001, "formula": "official_cosine", "leak": True}
)
methods.preset(
    "doco-official-2024-10",
    "doco",
    **{**_PAPER, "steps": 1000, "warm_up": 201, "space": "eps", "learning_rate": 1.6e-5, "clip": 0.0, "leak": True},
)
# Objects (instances) and nudity: a slower discriminator, and in the older state half of a conflict is left (§1.6).
_OBJECT = {"d_learning_rate": 1e-4}
for _name, _changes in {
    "doco-paper": _OBJECT,
    "doco-official-2024-11": _OBJECT,
    "doco-official-2024-10": {**_OBJECT, "projection": 0.5},
}.items():
    methods.preset(f"{_name}-object", "doco", **{**methods.presets[_name][1], **_changes})
# Sized for the bundled model, whose small weights need a larger rate (docs/doco.md).
methods.preset(
    "doco-canvas",
    "doco",
    **_PLAIN,
    contexts=0,
    look_every=0,
    steps=200,
    warm_up=30,
    learning_rate=5e-4,
    d_learning_rate=5e-4,
    retain_target="teacher",
    images=96,
    retain_images=160,
    num_inference_steps=10,
)
