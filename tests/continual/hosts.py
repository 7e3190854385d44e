"""A host method and a learner of a few dozen weights, for the tests of plug-ins: an MLP, cross-entropy, a memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unteach.continual.plugins import Plugin
from unteach.continual.plugins.base import PluginState
from unteach.continual.plugins.refresh import Refresh, RefreshState
from unteach.continual.view import Loss
from unteach.core import seeds

CLASSES, FEATURES = 3, 4


def network(dtype: torch.dtype = torch.float64, *, norm: bool = False, seed: int = 0) -> nn.Sequential:
    """4 → 5 → 3, smooth, so that expansions hold; ``norm`` puts a batch norm in place of the first bias.

    (A bias before a batch norm has a gradient of rounding errors only, which rescaling would blow up.)
    """
    middle = [nn.BatchNorm1d(5)] if norm else []
    model = nn.Sequential(nn.Linear(FEATURES, 5, bias=not norm), *middle, nn.Tanh(), nn.Linear(5, CLASSES)).to(dtype)
    generator = seeds.generator(seed, "tests network")
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.5 * torch.randn(param.shape, generator=generator, dtype=torch.float64))
    return model


def data(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeds.generator(seed, "tests data")
    x = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(CLASSES, (n,), generator=generator)
    return x, y


@dataclass
class Run:
    """Host and learner in one: plain SGD on CE(batch) + β CE(memory), one batch of 16 a step."""

    model: nn.Module = field(default_factory=network)
    lr: float = 0.1
    seed: int = 0
    beta: float = 0.5
    samples: int = 64
    memory: bool = True
    task: int = 0
    index: int = 0
    calls: list[tuple[str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = list(self.model.named_parameters())
        self.names, self.params = [n for n, _ in named], [p for _, p in named]
        self.optimizer = torch.optim.SGD(self.params, lr=self.lr, momentum=0.9)

    @property
    def has_memory(self) -> bool:
        return self.memory and self.task > 0

    def _batch(self) -> tuple[Tensor, Tensor]:
        return data(16, 1000 + self.index, self.params[0].dtype)

    def losses(self) -> tuple[Tensor, Tensor]:
        """CE of the batch, and β CE of the memory (0 without one)."""
        x, y = self._batch()
        current = cross_entropy(self.model(x), y)
        if not self.has_memory:
            return current, current * 0
        x, y = data(16, 2000 + self.index, self.params[0].dtype)
        return current, self.beta * cross_entropy(self.model(x), y)

    def loss(self, which: Loss = "host") -> Tensor:
        current, memory = self.losses()
        return {"host": current + memory, "current": current, "memory": memory}[which]

    def gradient(self, loss: Loss = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        self.calls.append((loss, frozen_stats))
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        gradients = torch.autograd.grad(self.loss(loss), self.params, allow_unused=True)
        if frozen_stats:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(kept[name])
        return list(gradients)

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.optimizer.step()

    def generator(self, purpose: str, *index: int) -> torch.Generator:
        return seeds.generator(self.seed, purpose, *(index or (self.index,)))

    def batches(self, purpose: str, *, augment: bool = False, limit: int | None = None) -> Iterator[SimpleNamespace]:
        total = min(self.samples, limit or self.samples)
        x, y = data(total, 3000 + self.task, self.params[0].dtype)
        for start in range(0, total, 16):
            yield SimpleNamespace(x=x[start : start + 16], y=y[start : start + 16])

    def weights(self) -> Tensor:
        return torch.cat([param.detach().reshape(-1) for param in self.params]).clone()


class Caught(Run):
    """Does not move at the update, but keeps the gradient and where the weights stood."""

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        self.caught = [g for g in gradients if g is not None]
        self.reached = self.weights()


def curvature(run: Run, scale: float = 1.0) -> dict[str, Tensor]:
    """An uneven made-up diagonal, of order ``scale``."""
    draw = seeds.generator(0, "tests curvature")
    shapes = zip(run.names, run.params, strict=True)
    return {n: scale * torch.rand(p.shape, generator=draw, dtype=torch.float64).to(p.dtype) for n, p in shapes}


def primed(settings: Refresh, run: Run, tensors: dict[str, Tensor]) -> RefreshState:
    """At work with the Fisher information given."""
    running = settings.start(run)
    empty = running.state_dict()
    running.load_state_dict({**empty, **{f"curvature.{name}": value for name, value in tensors.items()}})
    return running


def train(plugin: Plugin | PluginState, run: Run, steps: int) -> tuple[PluginState, list[dict[str, Tensor]]]:
    """``steps`` more steps of the plug-in on the run."""
    running = plugin.start(run) if isinstance(plugin, Plugin) else plugin
    records = []
    for _ in range(steps):
        records.append(dict(running.step(run)))
        run.index += 1
    return running, records


def end_task(running: PluginState, run: Run) -> None:
    running.end_task(run)
    run.task += 1
