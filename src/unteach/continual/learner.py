"""The state of one run of continual learning, and what terms, rules and plug-ins may ask of it."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unteach.continual import augment
from unteach.continual.batch import Batch
from unteach.continual.memory.buffer import Memory
from unteach.continual.streams.base import Stream
from unteach.core import seeds
from unteach.core.kernels import channels_last_is_safe, mend_group_norms
from unteach.core.settings import Settings, setting
from unteach.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """How a network is trained on each task.

    Args:
        epochs: passes over each task's data.
        batch_size: samples a step of the current task.
        memory_batch_size: samples a draw from memory.
        optimizer: "sgd" or "adamw".
        learning_rate: learning rate, η.
        momentum: momentum of SGD.
        weight_decay: weight decay of the optimizer.
        milestones: epochs of each task after which the learning rate is multiplied by ``lr_decay``.
        lr_decay: factor at a milestone.
        reset_optimizer: forget momenta when a task begins.
        clip: largest norm of the gradient; 0 for none.
        augment: views while training; "stream" takes the stream's own.
        head: classes an evaluation may answer: "seen" so far (Mammoth now), or "all" (the refresh code).
        precision: "bf16" runs the network under autocast.
        channels_last: keep images and convolutions with channels innermost, which is faster on most machines (other
            rounding, so other bits). Left off where a strided 1x1 convolution has fewer than 8 inputs.
        compile: compile the network (worth it on a GPU).
        eval_batch_size: samples a batch when evaluating.
    """

    kind: ClassVar[str] = "training"
    name: ClassVar[str] = "training"
    renamed: ClassVar[Mapping[str, str]] = {
        "lr": "learning_rate",
        "memory_batch": "memory_batch_size",
        "eval_batch": "eval_batch_size",
    }

    epochs: int = setting(5, low=1)
    batch_size: int = setting(32, low=1)
    memory_batch_size: int = setting(32, low=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = setting(0.03, above=0)
    momentum: float = setting(0.0, low=0, high=1)
    weight_decay: float = setting(0.0, low=0)
    milestones: tuple[int, ...] = ()
    lr_decay: float = setting(0.1, above=0)
    reset_optimizer: bool = True
    clip: float = setting(0.0, low=0)
    augment: Literal["stream", "none", "shift", "crop", "crop-flip"] = "stream"
    head: Literal["seen", "all"] = "seen"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = True
    eval_batch_size: int = setting(512, low=1)


class Learner:
    """A network on its way through a stream: what terms, rules and plug-ins may ask of a run.

    Args:
        stream: the tasks.
        network: the network.
        settings: how it is trained.
        seed: root of all random draws.
        device: where everything is.
        wrap: makes the module that is trained, of the network as it is on the device.

    Attributes:
        model: the network that is trained.
        params: the tensors that move, in the model's order; ``names`` beside them.
        classes: width of the head, C.
        task: index of the current task.
        seen: classes seen so far, bool (C,).
        current: classes of the current task, bool (C,).
        task_columns: classes of each task, bool (T, C).
        optimizer: the run's; ``own_optimizer`` says that the method put another in its place.
        memory: the method's memory, or None.
        old: the network as it was when the last task ended (only if a term needs it).
        lr: the current learning rate.
        needs_two: batch norm of the network has no statistics of a batch of one.
    """

    def __init__(
        self,
        stream: Stream,
        network: nn.Module,
        settings: Training,
        seed: int,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        self.stream, self.settings, self.seed, self.device = stream, settings, seed, device
        self.classes = stream.classes
        self.network = network.to(device)
        images, safe = len(stream.shape) == 3 and stream.shape[0] < 64, channels_last_is_safe(network)
        self.channels_last = settings.channels_last and images and safe
        if self.channels_last or not safe:  # a network that came with channels innermost and must not have them
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            self.network = self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.needs_two = needs_two(self.network, stream.shape)
        mend_group_norms(self.network)
        self.model = wrap(self.network)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.names, self.params = [name for name, _ in named], [p for _, p in named]
        self._initial = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.data = [(task.x.to(device), task.y.to(device)) for task in stream.tasks]
        self.lr = settings.learning_rate
        self.task = 0
        self.stage_tasks: list[int] = [0]
        self.seen = torch.zeros(self.classes, dtype=torch.bool, device=device)
        self.current = self.seen.clone()
        self.task_columns = torch.zeros(len(stream.tasks), self.classes, dtype=torch.bool, device=device)
        for columns, task in zip(self.task_columns, stream.tasks, strict=True):
            columns[list(task.classes)] = True
        self.mask_training = stream.scenario == "task"
        self.old: nn.Module | None = None
        self.random = any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in self.model.modules()
        ) or getattr(self.model, "random", False)
        self._forward = torch.compile(self.model) if settings.compile else self.model
        self.own_optimizer = False
        self.optimizer: torch.optim.Optimizer = self._optimizer()
        self.memory: Memory | None = None

    def _optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        if s.optimizer == "adamw":
            return torch.optim.AdamW(self.params, lr=s.learning_rate, weight_decay=s.weight_decay, foreach=True)
        return torch.optim.SGD(
            self.params, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay, foreach=True
        )

    def generator(self, purpose: str, *index: int) -> torch.Generator:
        """Random numbers for one purpose; a function of the seed, the purpose and the index alone."""
        return seeds.generator(self.seed, purpose, *index)

    def sizes(self, samples: int) -> list[int]:
        """How many of so many samples each batch of a pass has; a last single one that batch norm cannot take alone
        goes with the batch before."""
        size = self.settings.batch_size
        whole, rest = divmod(samples, size)
        if rest == 1 and whole and self.needs_two:
            return [size] * (whole - 1) + [size + 1]
        return [size] * whole + [rest] * (rest > 0)

    def check_batches(self, samples: Mapping[str, int]) -> None:
        """Refuse batches of one sample where batch norm cannot train on them.

        Args:
            samples: number of samples of each task that is trained on, by name.

        Raises:
            ConfigError: a batch size of 1, of the stream or of a memory, or a task of one sample.
        """
        if not self.needs_two:
            return
        sizes = {"batch_size": self.settings.batch_size}
        if self.memory is not None:
            sizes["memory_batch_size"] = self.settings.memory_batch_size
        problems = [f"{name} is 1: use 2 or more" for name, size in sizes.items() if size == 1]
        problems += [f"the task '{name}' has one sample: give it more" for name, n in samples.items() if n == 1]
        if problems:
            raise ConfigError.many(problems, where="batch norm here cannot train on a single sample, and in this run")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) in float32; a single sample that batch norm cannot take sees the running statistics."""
        if self.needs_two and len(x) == 1 and self.model.training:
            with running_statistics(self.model):
                return self._logits(self._forward, x)
        return self._logits(self._forward, x)

    def _logits(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        half = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            out = network(x)
        return out.float() if out.dtype in (torch.bfloat16, torch.float16) else out

    @torch.no_grad()
    def forward_old(self, x: Tensor) -> Tensor:
        """Logits (B, C) of the network as it was when the last task ended."""
        assert self.old is not None
        return self._logits(self.old, x)

    def snapshot(self) -> nn.Module:
        """A frozen copy of the model in evaluation mode."""
        made = copy.deepcopy(self.model).eval()
        return made.requires_grad_(False)

    def restart(self) -> None:
        """Take the network back to its initial weights and statistics."""
        self.model.load_state_dict(self._initial)

    @property
    def past(self) -> Tensor:
        """Classes of the tasks before this one, bool (C,); they may come again, as on a domain-incremental stream."""
        return self.task_columns[: self.stage_tasks[0]].any(0)

    def views(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Stored samples (B, ...) as the network sees them: augmented with a generator, else only normalised."""
        kind = self.stream.augment if self.settings.augment == "stream" else self.settings.augment
        if generator is not None and kind != "none":
            x = augment.augment(x, kind, generator)
        seen = augment.normalise(x, self.stream.mean, self.stream.std)
        return seen.contiguous(memory_format=torch.channels_last) if self.channels_last else seen

    def draw(self, key: str, step: int, size: int | None = None, task: int | None = None) -> Batch | None:
        """A batch from memory, a function of the memory, the key and the step; None while it is empty."""
        if self.memory is None or len(self.memory) == 0:
            return None
        generator = self.generator(f"memory {key}", step)
        drawn = self.memory.draw(size or self.settings.memory_batch_size, generator, task=task)
        if len(drawn.y) == 0:
            return None
        return Batch(self.views(drawn.x, generator), drawn.y, drawn.logits, drawn.task, drawn.slots)

    def batches(self, purpose: str, *, augment: bool = False, limit: int | None = None) -> Iterator[Batch]:
        """The data of this stage once, in a random order fixed by the purpose; at most ``limit`` samples."""
        x = torch.cat([self.data[task][0] for task in self.stage_tasks])
        y = torch.cat([self.data[task][1] for task in self.stage_tasks])
        order = seeds.permutation(len(y), self.seed, purpose, self.task).to(self.device)[:limit]
        size = max(self.settings.batch_size, 32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            generator = self.generator(f"{purpose} views", self.task, start) if augment else None
            task = torch.full((len(rows),), self.task, device=self.device)
            yield Batch(self.views(x[rows], generator), y[rows], task=task, current=len(rows))

    def begin_stage(self, tasks: Sequence[int], *, anew: bool = True) -> None:
        """Training on these tasks' data begins; not anew where a run goes on within it."""
        self.task, self.stage_tasks = tasks[-1], list(tasks)
        self.current = self.task_columns[self.stage_tasks].any(0)
        self.model.train()
        if anew and self.stream.boundaries:  # else classes are seen as their samples come
            self.seen |= self.current
            if self.settings.reset_optimizer:
                self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves apart from the parameters."""
        buffers = {name: b for name, b in self.model.named_buffers() if name in self.model.state_dict()}
        return {
            "buffers": buffers,
            "optimizer": self.optimizer.state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "old": None if self.old is None else dict(self.old.state_dict()),
            "seen": self.seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        with torch.no_grad():
            known = dict(self.model.named_buffers())
            for name, value in state["buffers"].items():
                known[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
        if state["old"] is not None:
            self.old = self.snapshot()
            self.old.load_state_dict(state["old"])
        self.seen = state["seen"].to(self.device)


def needs_two(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether batch norm fails in training on one sample (1, *shape), because it gets one value a channel."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return False
    probe = copy.deepcopy(network).train()
    x = torch.zeros(1, *shape, device=next(probe.parameters()).device)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            probe(x)
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    return False


@contextlib.contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm that trains uses its running statistics and leaves them as they are."""
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for module in found:
        module.training = False
    try:
        yield
    finally:
        for module in found:
            module.training = True


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics and leaves its running ones alone."""
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for module in found:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in found:
            module.track_running_stats = True
