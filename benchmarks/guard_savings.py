"""What freezing saves: exact bytes and interleaved times, beside full fine-tuning and any other way to train.

A frozen tensor saves its gradient, its optimizer state, the product that computes its weight gradient, and the
input kept for that product; activation gradients still flow through it (freezeasguard §2). So the share of
*parameters* matters, not that of tensors.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unteach.core import freeze as core
from unteach.errors import ConfigError
from unteach.guard.enforce import Policy, enforce, load_frozen

__all__ = ["FULL", "GUARDED", "Cost", "Savings", "count", "measure"]

FULL, GUARDED = "full", "guarded"


@dataclass(frozen=True)
class Cost:
    """What one way to train costs. All sizes in bytes; memory that is shared counts once.

    Attributes:
        trained: parameters that move.
        weights: parameters and buffers.
        gradients: gradients after a backward pass.
        state: the optimizer's state after a step.
        activations: tensors that autograd keeps from a forward pass for the backward pass, without the weights;
            those that gradient checkpointing computes again are not seen.
        seconds: one step each (forward, backward, update), in the order of the rounds.
    """

    trained: int
    weights: int
    gradients: int
    state: int
    activations: int
    seconds: tuple[float, ...] = ()

    @property
    def static(self) -> int:
        """Weights, gradients and optimizer state: what is there whatever the batch."""
        return self.weights + self.gradients + self.state

    @property
    def peak(self) -> int:
        """``static`` and the activations of one forward pass: an upper bound, because they are freed on the way."""
        return self.static + self.activations


@dataclass(frozen=True)
class Savings:
    """Costs by arm, the first of which is "full".

    Attributes:
        share: how much was frozen in the arm "guarded".
        arms: name to cost.
    """

    share: core.Share
    arms: Mapping[str, Cost]

    def time_ratio(self, arm: str) -> tuple[float, float, float]:
        """Median, smallest and largest ratio of an arm's step to full fine-tuning's step in the same round."""
        pairs = zip(self.arms[arm].seconds, self.arms[FULL].seconds, strict=True)
        ratios = [mine / full for mine, full in pairs]
        if not ratios:
            raise ConfigError("no step was timed", found="steps = 0", fix="measure with at least one step")
        return median(ratios), min(ratios), max(ratios)

    def memory_ratio(self, arm: str) -> float:
        """Static bytes of an arm over those of full fine-tuning."""
        return self.arms[arm].static / self.arms[FULL].static

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file: per arm all sizes, the median step and the ratios."""
        timed = any(cost.seconds for cost in self.arms.values())
        return {
            "frozen_share": {"tensors": self.share.of_tensors, "parameters": self.share.of_parameters},
            "arms": {
                name: {
                    "trained": cost.trained,
                    "weights": cost.weights,
                    "gradients": cost.gradients,
                    "state": cost.state,
                    "activations": cost.activations,
                    "static": cost.static,
                    "memory_ratio": self.memory_ratio(name),
                    **({"seconds": median(cost.seconds), "time_ratio": list(self.time_ratio(name))} if timed else {}),
                }
                for name, cost in self.arms.items()
            },
        }


def measure(
    model: nn.Module,
    frozen: Policy,
    loss: Callable[[nn.Module, int], Tensor],
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    *,
    steps: int = 8,
    warm_up: int = 2,
    others: Mapping[str, Callable[[nn.Module], nn.Module]] | None = None,
) -> Savings:
    """Train copies of a model side by side, each arm one step a round, and count what each one holds.

    Interleaving lets a busy machine slow all arms alike; the order turns by one each round. Every arm is a
    copy, so all of them must fit in memory together. ``model`` itself is not changed.

    Args:
        model: the plain model.
        frozen: the mask of the arm "guarded", as in :func:`unteach.guard.enforce.enforce`.
        loss: (model, step) -> scalar; the step from 0, warm-up included, is the same for every arm.
        optimizer: makes an optimizer from a list of parameters.
        steps: rounds that are timed; 0 counts bytes only.
        warm_up: rounds before that, at least one, after which bytes are counted.
        others: further arms by name, such as LoRA's: given a copy whose parameters all have ``requires_grad``,
            returns the model to train, in which what has ``requires_grad`` trains.

    Raises:
        ConfigError: no warm-up, or an arm is called "full" or "guarded".
    """
    if warm_up < 1 or steps < 0:
        raise ConfigError("steps must be at least 0 and warm_up at least 1", found=(steps, warm_up))
    taken = {FULL, GUARDED} & set(others or {})
    if taken:
        raise ConfigError("an arm has a name that is taken", found=sorted(taken), fix="rename it")
    names = load_frozen(frozen)
    share = core.share(model, names)
    arms: dict[str, tuple[nn.Module, Optimizer]] = {}
    for name, build in {FULL: _same, GUARDED: _same, **(others or {})}.items():
        trained = build(copy.deepcopy(model).requires_grad_(True))
        made = optimizer([p for p in trained.parameters() if p.requires_grad])
        if name == GUARDED:
            enforce(trained, made, frozen=names)
        arms[name] = trained, made

    seconds: dict[str, list[float]] = {name: [] for name in arms}
    costs: dict[str, Cost] = {}
    for step in range(warm_up + steps):
        order = list(arms)
        turn = step % len(order)
        for name in order[turn:] + order[:turn]:
            trained, made = arms[name]
            if step == warm_up - 1:
                costs[name] = count(trained, made, lambda m, step=step: loss(m, step))  # type: ignore[misc]
                continue
            _settle(trained)
            begin = time.perf_counter()
            made.zero_grad(set_to_none=True)
            loss(trained, step).backward()  # type: ignore[no-untyped-call]
            made.step()
            _settle(trained)
            if step >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    measured = {name: Cost(**{**vars(costs[name]), "seconds": tuple(seconds[name])}) for name in arms}
    return Savings(share, measured)


def count(model: nn.Module, optimizer: Optimizer, loss: Callable[[nn.Module], Tensor]) -> Cost:
    """Take one training step and count what it holds; ``seconds`` stays empty."""
    weights = [*model.parameters(), *model.buffers()]
    places = _places(weights)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Held on to until all is counted, so that no address is used twice.
        if tensor.untyped_storage().data_ptr() not in places:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    optimizer.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model)
    activations = sum(_places(list(kept.values())).values())
    value.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    optimizer.step()
    state: list[Tensor] = []
    for entry in optimizer.state.values():
        _tensors(entry, state)
    return Cost(
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        weights=sum(places.values()),
        gradients=sum(_places(gradients).values()),
        state=sum(_places(state).values()),
        activations=activations,
    )


def _same(model: nn.Module) -> nn.Module:
    return model


def _tensors(value: Any, found: list[Tensor]) -> None:
    """All tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            _tensors(item, found)
    elif isinstance(value, list | tuple):
        for item in value:
            _tensors(item, found)


def _places(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes of memory by address, each piece of memory once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def _settle(model: nn.Module) -> None:
    """Wait for the device, so that a clock shows work and not its queue."""
    if any(parameter.is_cuda for parameter in model.parameters()):
        torch.cuda.synchronize()
