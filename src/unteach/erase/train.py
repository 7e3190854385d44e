"""The common part of the methods that train: data, student and teacher, optimizer, loop.

The student is the live denoiser, of which only the selected tensors move; the teacher is the same network
with those tensors' original values put in for one call, so there is never a second copy of the network. In a
half-precision model the optimizer moves float32 masters, which are cast into the live tensors before each
step.
"""

import contextlib
import math
import statistics
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unteach.core import seeds
from unteach.core.events import Events
from unteach.core.loop import Loop, Stateful, Step
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.erase import anchors
from unteach.erase.check import Check
from unteach.erase.job import Job
from unteach.erase.method import Method, setting

Objective = tuple[Callable[[Step], Mapping[str, float | Tensor]], dict[str, Stateful]]
"""One training step, and what must be saved besides the weights and the optimizer."""


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """Settings that all trained methods share.

    Args:
        steps: training steps in all.
        batch_size: pictures a step and a half (target half, retain half), over all processes.
        learning_rate: learning rate of AdamW (not multiplied by the batch); None fits it to each tensor by ``pace``.
        pace: without ``learning_rate``: about how far one update may move a tensor's output, as a share of that
            output's size (:func:`fitted`).
        lr_warmup_steps: first updates, over which the rate rises linearly.
        lr_schedule: the rate after that.
        weight_decay: AdamW's, towards zero weights.
        look_every: updates between two looks at whether all concepts are erased, by the check that ends every erasure
            but on other prompts; then training ends. 0 never looks: the few prompts of a look can be erased while
            others are not.
        erased_at: share of the way to the anchor at which a look takes a concept as erased.
        clip: largest global norm of a gradient; 0 turns clipping off.
        t_min: first timestep of the range to train on, as a share of all timesteps.
        t_max: end of that range.
        retain_target: what the retain half is trained towards: the true "noise" (doco §1.4), or the
            "teacher", the original model's own output.
        detach_first_token: no gradient through the keys and values of the first token (doco §1.2).
        images: anchor pictures that the original model draws first.
        retain_images: pictures it draws for the prompts to keep.
        num_inference_steps: sampling steps of these pictures.
        guidance_scale: their classifier-free guidance.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "batch": "batch_size",
        "lr": "learning_rate",
        "lr_warm_up": "lr_warmup_steps",
    }

    steps: int = setting(400, low=1)
    batch_size: int = setting(8, low=1)
    learning_rate: float | None = setting(None, above=0)
    pace: float = setting(0.05, above=0)
    lr_warmup_steps: int = setting(0, low=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = setting(1e-2, low=0)
    look_every: int = setting(0, low=0)
    erased_at: float = setting(0.8, low=0, high=1)
    clip: float = setting(1.0, low=0)
    t_min: float = setting(0.0, low=0, high=1)
    t_max: float = setting(1.0, low=0, high=1)
    retain_target: Literal["noise", "teacher"] = "teacher"
    detach_first_token: bool = True
    images: int = setting(200, low=1)
    retain_images: int = setting(200, low=1)
    num_inference_steps: int = setting(20, low=1)
    guidance_scale: float = setting(3.0, low=0)

    def mistakes(self) -> list[str]:
        """Contradictions between settings."""
        if self.t_min >= self.t_max:
            return [f"t_min must be below t_max, found {self.t_min} and {self.t_max}"]
        return []

    @abstractmethod
    def objective(self, run: "Run") -> Objective:
        """One training step: losses, gradients and the update, by the paper."""

    def updates(self) -> int:
        """How many of the steps change the denoiser."""
        return self.steps

    def retained(self, job: Job) -> list[str]:
        """As for every method; without prompts of the user's own the anchor prompts stand in (doco §1.3)."""
        return [*job.concepts.retain(), *job.kept(self.kept_words)]

    def groups(self, student: "Student") -> list[dict[str, Any]]:
        """The optimizer's groups: one at ``learning_rate``, or one a tensor at the rate that fits it."""
        if self.learning_rate is not None:
            rate = self.learning_rate
            return [{"params": list(student.params.values()), "lr": rate, "base": rate}]
        found = fitted(student.before, self.pace)
        return [{"params": [p], "lr": found[name], "base": found[name]} for name, p in student.params.items()]

    def run(self, job: Job) -> WeightDelta:
        """Draw the training data, train, and return the difference times ``strength``."""
        record = job.record(self.to_dict())
        chosen = self.selected(job.model)
        data = anchors.draw(
            job,
            images=self.images,
            retain_images=self.retain_images,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            batch_size=max(self.batch_size, 16),
            keep=self.retained(job),
            offered=job.pairs(self.contexts),
        )
        with training(job.model, chosen) as student, contextlib.ExitStack() as stack:
            if self.detach_first_token:
                stack.enter_context(first_token_detached(job.model))
            optimizer = torch.optim.AdamW(self.groups(student), weight_decay=self.weight_decay)
            run = Run(self, job.model, student, data, optimizer, job.seed)
            step, state = self.objective(run)
            watch = Watch(self, job, student, data)

            def whole(now: Step) -> Mapping[str, float | Tensor]:
                student.refresh()
                return step(now)

            loop = Loop(
                steps=self.steps,
                seed=job.seed,
                params=student.params,
                state={"optimizer": optimizer, **state},
                # The strength only scales the result, so the training may be shared by several strengths.
                config=record | {"config": {**record["config"], "strength": None}},
                out=job.out,
                save_every=job.save_every,
                events=watch,
                label=self.name,
            )
            with contextlib.suppress(Erased):
                loop.run(whole)
            delta = WeightDelta.between(student.before, student.params, {**record, "steps_taken": watch.done})
        return delta.scaled(self.strength)


class Erased(Exception):
    """Raised out of the loop when a look says that all concepts are erased."""


class Watch(Events):
    """Counts the steps and, every ``look_every`` updates, looks whether training may end.

    What it finds is a function of the weights, the concepts and the seed, so an interrupted run ends at the same step.
    """

    def __init__(self, method: Trained, job: Job, student: "Student", data: anchors.Anchors) -> None:
        self.method, self.job, self.student, self.done = method, job, student, method.steps
        if self.looks():
            seed = seeds.integer(job.seed, "look")
            self.check = Check.of(job.model, job.concepts, seed, avoid=data.retain)

    def looks(self) -> bool:
        """Whether there is a look before the last step."""
        return 0 < self.method.look_every < self.method.updates()

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Handed on."""
        self.job.events.metrics(stage, step, values)

    def close(self) -> None:
        """Handed on."""
        self.job.events.close()

    def step(self, stage: str, done: int, total: int) -> None:
        """Handed on; then perhaps a look."""
        self.job.events.step(stage, done, total)
        updates = done - (self.method.steps - self.method.updates())
        if not self.looks() or updates <= 0 or updates % self.method.look_every or done == self.method.steps:
            return
        self.student.refresh()
        self.job.model.weights_changed()
        share, effects = self.method.erased_at, self.check.measure().concepts
        if all(e.prompts and e.towards >= share and e.left <= 2 * (1 - share) for e in effects):
            self.done = done
            raise Erased


@dataclass(frozen=True, eq=False)
class Student:
    """The tensors that train.

    Attributes:
        live: the denoiser's own parameters, by name.
        params: what the optimizer moves: the live ones, or their float32 masters in a half-precision model.
        before: their original values.
    """

    live: dict[str, nn.Parameter]
    params: dict[str, nn.Parameter]
    before: dict[str, Tensor]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the masters into the live tensors."""
        for name, param in self.params.items():
            if param is not self.live[name]:
                self.live[name].copy_(param)

    def grads(self, loss: Tensor, more: Sequence[Tensor] = ()) -> list[Tensor]:
        """Gradients by the live tensors and then by ``more``, float32; zeros where there is no path."""
        given = torch.autograd.grad(loss, [*self.live.values(), *more], allow_unused=True, materialize_grads=True)
        return [grad.float() for grad in given]


@contextlib.contextmanager
def training(model: Model, chosen: Mapping[str, nn.Parameter]) -> Iterator[Student]:
    """Make the chosen tensors trainable inside the block; at its end put everything back, always."""
    denoiser, mode = model.denoiser, model.denoiser.training
    flags = [(param, param.requires_grad) for param in denoiser.parameters()]
    before = {name: param.detach().clone() for name, param in chosen.items()}
    wide = {name: param.dtype in (torch.float32, torch.float64) for name, param in chosen.items()}
    params = {n: p if wide[n] else nn.Parameter(p.detach().float()) for n, p in chosen.items()}
    try:
        denoiser.eval().requires_grad_(False)
        for param in chosen.values():
            param.requires_grad_(True)
        yield Student(dict(chosen), params, before)
    finally:
        with torch.no_grad():
            for name, param in chosen.items():
                param.copy_(before[name])
        for param, flag in flags:
            param.requires_grad_(flag)
        denoiser.train(mode)


@contextlib.contextmanager
def first_token_detached(model: Model) -> Iterator[None]:
    """Inside the block no gradient reaches a cross-attention key or value through the first token (doco
    §1.2).

    The values are unchanged. The first token is the start mark, equal in all prompts: what is learned there
    would change every picture.
    """

    def detach(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        return torch.cat([out[:, :1].detach(), out[:, 1:]], 1) if torch.is_grad_enabled() else None

    owners = dict.fromkeys(name.rpartition(".")[0] for name in model.cross_attention_kv())
    handles = [model.denoiser.get_submodule(owner).register_forward_hook(detach) for owner in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Batch:
    """One half of a training batch on this process: x_t with everything that it was made from."""

    rows: list[int]
    x0: Tensor
    eps: Tensor
    t: Tensor
    x_t: Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """What one training run has at hand, and the moves that the methods share."""

    method: Trained
    model: Model
    student: Student
    data: anchors.Anchors
    optimizer: torch.optim.Optimizer
    seed: int

    def batch(self, step: Step, half: Literal["unlearn", "retain"]) -> Batch:
        """The step's latents, in shuffled passes over the data, with their noise and timesteps.

        Each is a function of (seed, step, global item), so neither processes nor interruptions change it.
        """
        items = step.items(self.method.batch_size)
        latents = self.data.latents if half == "unlearn" else self.data.retain_latents
        rows = []
        for item in items:
            epoch, place = divmod(step.index * self.method.batch_size + item, len(latents))
            rows.append(int(seeds.permutation(len(latents), step.seed, f"{half} order", epoch)[place]))
        t = self.model.schedule.draw(step, f"{half} t", items, self.method.t_min, self.method.t_max)
        device = self.model.device
        x0 = latents[rows].to(device)
        eps = step.randn(f"{half} noise", latents.shape[1:], items).to(device)
        t = t.to(device)
        return Batch(rows, x0, eps, t, self.model.noise(x0, eps, t))

    def prompts(self, batch: Batch) -> tuple[Conditioning, Conditioning]:
        """The target and the anchor prompts of an unlearning batch."""
        pairs = [self.data.pairs[row] for row in batch.rows]
        return self.model.encode([p.target for p in pairs]), self.model.encode([p.anchor for p in pairs])

    def output(self, batch: Batch, cond: Conditioning) -> Tensor:
        """The student's output, float32."""
        return self.model.predict(batch.x_t, batch.t, cond).float()

    @torch.no_grad()
    def teacher(self, batch: Batch, cond: Conditioning) -> Tensor:
        """The original model's output, float32, without gradient."""
        return self.model.predict(batch.x_t, batch.t, cond, params=self.student.before).float()

    def retain_loss(self, step: Step) -> Tensor:
        """L_r: the denoising loss on what to keep (doco §1.4), or the distance to the teacher's output."""
        batch = self.batch(step, "retain")
        cond = self.model.encode([self.data.retain[row] for row in batch.rows])
        if self.method.retain_target == "teacher":
            wanted = self.teacher(batch, cond)
        else:
            wanted = self.model.target(batch.x0, batch.eps, batch.t).float()
        return F.mse_loss(self.output(batch, cond), wanted)

    def clipped(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients, scaled together so that their global norm is at most ``clip``."""
        if self.method.clip == 0:
            return grads
        norm = nn.utils.get_total_norm(grads, foreach=False)
        factor = (self.method.clip / (norm + 1e-6)).clamp(max=1.0)
        return [grad * factor for grad in grads]

    def update(self, grads: Sequence[Tensor], index: int) -> None:
        """One AdamW step, the ``index``-th of :meth:`Trained.updates`, at the schedule's rate."""
        for group in self.optimizer.param_groups:
            group.setdefault("base", group["lr"])  # an optimizer made without Trained.groups
            group["lr"] = group["base"] * rate(self.method, index)
        for param, grad in zip(self.student.params.values(), grads, strict=True):
            param.grad = grad.to(param.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def fitted(tensors: Mapping[str, Tensor], pace: float) -> dict[str, float]:
    """A learning rate for each tensor at which one update of Adam moves its output by about the share ``pace``.

    Adam moves every number by about the rate η. An input c of n numbers then moves an output by η‖c‖₁ ≈ 0.8 η √n ‖c‖,
    while the output itself is about r‖c‖ for a matrix with root mean square r. So η = pace · r / √n.

    Args:
        tensors: original values by name; matrices and kernels, n is what one output reads. Vectors, and tensors
            of zeros, get the median of the others' rates.
        pace: the share.
    """
    size = {name: float(t.float().square().mean().sqrt()) for name, t in tensors.items()}
    found = {n: pace * size[n] / math.sqrt(t[0].numel()) for n, t in tensors.items() if t.ndim > 1 and size[n] > 0}
    # Vectors alone: as if one output read a thousand numbers.
    middle = statistics.median(found.values()) if found else pace * (statistics.median(size.values()) or 1.0) / 32
    return {name: found.get(name, middle) for name in tensors}


def rate(method: Trained, index: int) -> float:
    """Factor on the learning rate in update ``index``: linear warm-up, then constant or a half cosine."""
    warm = method.lr_warmup_steps
    if index < warm:
        return (index + 1) / warm
    if method.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (index - warm) / max(1, method.updates() - warm)))


def averaged(step: Step, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values as means over all processes, so that every process logs, and stops on, the same numbers."""
    mean = step.reduce([torch.stack([value.detach().float().mean() for value in values.values()])])[0]
    return dict(zip(values, mean.unbind(), strict=True))
