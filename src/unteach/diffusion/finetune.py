"""The plain denoising-loss trainer: what a user's fine-tuning does, and how the bundled model was made.

Loss: mean squared error between the denoiser's output and the family's target at random timesteps (stratified over the
batch, so every batch covers the whole range). Used by ``canvas`` to train from scratch and by ``attack`` and ``guard``
to fine-tune.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from unteach.core import masks
from unteach.core.events import SILENT, Events
from unteach.core.loop import History, Loop, Step
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import ConfigError

Batches = Callable[[Step, range], tuple[Tensor, Conditioning]]
"""``(step, items) -> latents (len(items), C, h, w), conditioning``: the data of one step, for this process."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Settings of the denoising-loss trainer.

    Attributes:
        steps: optimizer steps.
        batch_size: items a step, over all processes.
        learning_rate: peak learning rate of AdamW.
        betas: AdamW's moments.
        weight_decay: AdamW's decoupled weight decay.
        warm_up: steps of linear warm-up.
        schedule: "cosine" falls to 2 % of the peak, "constant" stays.
        clip: largest global gradient norm; 0 does not clip.
        average: decay of the running average of the weights; 0 keeps none.
        train: ordered patterns (full match) of the parameters that move; default: all.
        timesteps: "stratified" spreads a batch evenly over the range, "uniform" draws each on its own.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    warm_up: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    average: float = 0.0
    train: tuple[str, ...] = (".*",)
    timesteps: Literal["stratified", "uniform"] = "stratified"

    def __post_init__(self) -> None:
        problems = []
        if self.steps < 0:
            problems.append(f"steps must not be negative (found {self.steps})")
        if self.batch_size < 1:
            problems.append(f"batch_size starts at 1 (found {self.batch_size})")
        if not (self.learning_rate >= 0 and math.isfinite(self.learning_rate)):
            problems.append(f"learning_rate must be a finite number, 0 or more (found {self.learning_rate})")
        if not 0 <= self.average < 1:
            problems.append(f"average lies in [0, 1) (found {self.average})")
        if self.warm_up < 0 or self.clip < 0 or self.weight_decay < 0:
            problems.append("warm_up, clip and weight_decay must not be negative")
        if self.schedule not in ("constant", "cosine"):
            problems.append(f"schedule is 'constant' or 'cosine' (found '{self.schedule}')")
        if self.timesteps not in ("stratified", "uniform"):
            problems.append(f"timesteps are 'stratified' or 'uniform' (found '{self.timesteps}')")
        if problems:
            raise ConfigError.many(problems, where="the fine-tuning settings")

    def rate(self, step: int) -> float:
        """The learning rate of a step (0-based)."""
        warm = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        if self.schedule == "constant":
            return self.learning_rate * warm
        progress = step / max(self.steps, 1)
        return self.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class Finetuned:
    """What a training gave: the log, and the averaged weights by name (None when none were kept)."""

    history: History
    average: dict[str, Tensor] | None


class Watch(Protocol):
    """Looks on while a training runs; its state is part of the checkpoint."""

    def __call__(self, done: int, /) -> None:
        """After ``done`` steps."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take over what :meth:`state_dict` gave."""


class Average:
    """A running average of weights, with the usual fast start: decay min(d, (1 + n) / (10 + n))."""

    def __init__(self, params: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values = {name: value.detach().clone() for name, value in params.items()}

    @torch.no_grad()
    def update(self, params: Mapping[str, nn.Parameter]) -> None:
        """Move the average towards ``params``."""
        self.count += 1
        weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.values.values()), [params[name].detach() for name in self.values], weight)

    def state_dict(self) -> dict[str, Any]:
        """Count and averaged tensors."""
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.count = int(state_dict["count"])
        for name, value in state_dict["values"].items():
            self.values[name].copy_(value)


def finetune(
    model: Model | Pipeline,
    batches: Batches,
    config: Finetune,
    *,
    seed: int = 0,
    out: Path | None = None,
    data_id: str = "",
    save_every: int = 100,
    events: Events = SILENT,
    label: str = "fine-tune",
    watch: Watch | None = None,
) -> Finetuned:
    """Train ``model.denoiser`` in place on the denoising loss; the same call resumes from ``out``.

    Args:
        model: any family, or a diffusers pipeline; its denoiser's chosen parameters move, everything else stays.
        batches: the data, see :data:`Batches`.
        config: the settings.
        seed: root of noise, timesteps and of whatever ``batches`` draws.
        out: folder for checkpoint and log, or None.
        data_id: a name or digest of the data, so that a checkpoint of other data is refused.
        save_every: steps between checkpoints.
        events: told of each step; an exception from it stops the run.
        label: the word before the bar.
        watch: called with the number of steps done after each of them, before a checkpoint is written, which keeps its
            state too; an exception from it ends the training.

    Raises:
        ConfigError: no parameter is selected, or the batch does not divide over the processes.
        NumericsError: the loss is not finite.
        CheckpointError: the checkpoint in ``out`` is damaged or of another configuration.
    """
    model = Model.of(model, edit=True)
    params = masks.select(model.denoiser, config.train)
    for value in params.values():
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        list(params.values()), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    average = Average(params, config.average) if config.average else None

    def step(s: Step) -> dict[str, float | Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = config.rate(s.index)
        loss, norm = update(s, model, batches, config, list(params.values()), optimizer)
        if average is not None:
            average.update(params)
        if watch is not None:
            watch(s.index + 1)
        return {"loss": loss.detach(), "gradient norm": norm, "rate": config.rate(s.index)}

    extra = {"average": average, "watch": watch}
    state: dict[str, Any] = {"optimiser": optimizer, **{key: item for key, item in extra.items() if item is not None}}
    loop = Loop(
        steps=config.steps, seed=seed, params=params, state=state, config={"finetune": asdict(config), "data": data_id},
        out=out, save_every=save_every, events=events, label=label,
    )  # fmt: skip
    try:
        history = loop.run(step)
    finally:
        for value in params.values():
            value.requires_grad_(False)
            value.grad = None
        model.weights_changed()
    return Finetuned(history, None if average is None else average.values)


def update(
    s: Step,
    model: Model,
    batches: Batches,
    config: Finetune,
    values: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    params: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One step down the denoising loss: the loss () and the norm of the gradient ().

    Args:
        s: the step; data, noise and timesteps are functions of it.
        model: what predicts.
        batches: the data.
        config: batch size and clipping.
        values: what moves.
        optimizer: the optimizer of ``values``.
        params: tensors that stand in for the denoiser's, made from ``values`` (``Model.predict``).
    """
    items = s.items(config.batch_size)
    latents, conditioning = batches(s, items)
    latents = latents.to(model.device, model.dtype)
    noise = s.randn("noise", latents.shape[1:], items).to(latents)
    if config.timesteps == "uniform":
        t = model.schedule.draw(s, "timesteps", items).to(model.device)
    else:
        t = model.schedule.spread(s, items, config.batch_size).to(model.device)
    out = model.predict(model.noise(latents, noise, t), t, conditioning, params)
    loss = (out.float() - model.target(latents, noise, t).float()).pow(2).mean()
    for value, grad in zip(values, s.reduce(torch.autograd.grad(loss, list(values))), strict=True):
        value.grad = grad
    norm = nn.utils.clip_grad_norm_(values, config.clip) if config.clip else torch.zeros(())
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm
