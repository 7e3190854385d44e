"""What a method of continual learning is: settings, a list of terms, and where needed a rule on the gradient."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unteach.continual.memory import Memory
from unteach.continual.objective import Batch, TaskLoss, Term, View, current
from unteach.core.registry import Registry
from unteach.core.settings import Settings, setting
from unteach.core.settings import make as make_settings
from unteach.errors import ConfigError

if TYPE_CHECKING:
    from unteach.continual.learner import Learner

__all__ = ["Combined", "Method", "Replay", "Rule", "make", "methods", "presets", "setting"]

Form = Literal["exact", "exact up to a constant", "exact given the weights", "limit", "approximate", "outside"]
"""How a method stands to the one objective (refresh.md §1.3)."""

methods: Registry[type["Method"]] = Registry("method")
"""Every method of continual learning, by name."""

presets: Registry[tuple[str, Mapping[str, Any]]] = Registry("preset")
"""Named settings: preset name to (method name, the settings that differ from the method's defaults)."""


class Rule(ABC):
    """A rule on the gradient of the objective, with state: projections such as A-GEM, OGD, GPM."""

    @abstractmethod
    def apply(self, view: View, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients to use in place of these; one entry a parameter."""

    def begin_task(self, learner: "Learner") -> None:  # noqa: B027 (most rules have nothing to do)
        """A task begins."""

    def end_task(self, learner: "Learner") -> None:  # noqa: B027
        """A task has ended."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over a saved state."""


@dataclass(frozen=True, kw_only=True)
class Method(Settings, ABC):
    """A method and its settings. ``terms`` is all that most methods need.

    Class attributes:
        form: how the method stands to the one objective.
        boundaries: it must be told where tasks begin and end.
    """

    kind: ClassVar[str] = "method"
    form: ClassVar[Form] = "exact"
    boundaries: ClassVar[bool] = False

    @abstractmethod
    def terms(self, learner: "Learner") -> list[Term]:
        """The terms of the objective, made once a run; they carry the method's state."""

    def rule(self, learner: "Learner") -> Rule | None:
        """A rule on the gradient, or None."""
        return None

    def memory(self, learner: "Learner") -> Memory | None:
        """The memory, or None."""
        return None

    def remember(self, view: View, x: Tensor) -> None:
        """Called after each step with the current batch as stored (``x``, not augmented): fill the memory."""

    def end_task(self, learner: "Learner") -> None:
        """Called when a task has ended, after the terms' own: herding, training from memory."""

    def stages(self, tasks: int) -> list[list[int]]:
        """Which tasks' data is trained on at each stage; stage t is evaluated as "after task t" if it trains."""
        return [[task] for task in range(tasks)]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The module that is trained, made of the network (variational methods put another around it)."""
        return network

    def optimizer(self, learner: "Learner") -> torch.optim.Optimizer | None:
        """An optimiser of the method's own, or None for the run's."""
        return None

    def scores(self, learner: "Learner", x: Tensor) -> Tensor | None:
        """Scores (B, C) to judge by in place of the logits (nearest mean), or None."""
        return None

    @property
    def label(self) -> str:
        """Its name, for a table."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """A method with a memory that is filled while training.

    Args:
        buffer: samples kept.
        policy: how they are chosen.
    """

    stores_logits: ClassVar[bool] = False

    buffer: int = setting(200, low=1)
    policy: Literal["reservoir", "balanced", "ring"] = "reservoir"

    def memory(self, learner: "Learner") -> Memory:
        """A memory of ``buffer`` samples, as they come in the stream."""
        x = learner.stream.tasks[0].x
        return Memory(
            self.buffer,
            tuple(x.shape[1:]),
            classes=learner.classes,
            dtype=x.dtype,
            policy=self.policy,
            logits=self.stores_logits,
            seed=learner.seed,
            device=learner.device,
        )

    def remember(self, view: View, x: Tensor) -> None:
        """Offer the current batch to the memory, with its logits where the method stores them."""
        learner = view.learner
        assert learner.memory is not None
        kept = None
        if self.stores_logits:
            kept = view.last if view.last is not None else learner.forward(view.batch.x).detach()
        learner.memory.insert(x, view.batch.y, task=learner.task, logits=kept, step=view.index)


@dataclass(frozen=True)
class Combined:
    """Several methods as one: all their terms, one task loss, at most one memory and one rule.

    Written "der++ + online-ewc"; the first part that has a memory keeps it for all. A part whose task loss is not
    the plain one gives it to all. A variational method combines with what needs no boundaries ("vcl + er").
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        for what in ("rule", "optimizer", "wrap", "scores", "stages"):
            own = [p for p in self.parts if getattr(type(p), what) is not getattr(Method, what)]
            others = [p.name for p in self.parts if p not in own and p.boundaries] if what == "wrap" and own else []
            if len(own) > 1 or others or (own and what == "stages"):
                found = f"{' and '.join(p.name for p in own)} with {what} of their own"
                raise ConfigError(
                    "these methods cannot be combined",
                    found=found + (f", and {' and '.join(others)}" if others else ""),
                    fix="leave one out",
                )

    @property
    def name(self) -> str:
        """The names, joined."""
        return " + ".join(part.name for part in self.parts)

    label = name

    @property
    def form(self) -> Form:
        """The weakest of the parts'."""
        order: list[Form] = [
            "exact",
            "exact up to a constant",
            "exact given the weights",
            "limit",
            "approximate",
            "outside",
        ]
        return max((part.form for part in self.parts), key=order.index)

    @property
    def boundaries(self) -> bool:
        """One part needs boundaries."""
        return any(part.boundaries for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The name and the parts' settings."""
        return {"method": self.name, "parts": [part.to_dict() for part in self.parts]}

    def terms(self, learner: "Learner") -> list[Term]:
        """All parts' terms with one task loss: the one that is not plain, if there is one.

        Raises:
            ConfigError: two parts have such a task loss.
        """
        found = [term for part in self.parts for term in part.terms(learner)]
        data = [term for term in found if term.part == "data"]
        special = [term for term in data if not _plain(term)]
        if len(special) > 1:
            raise ConfigError(
                "these methods cannot be combined",
                found=f"{self.name}: {len(special)} task losses that are not plain cross-entropy",
                fix="leave one out",
            )
        kept = (special or data)[0]
        return [kept, *(term for term in found if term.part != "data")]

    def rule(self, learner: "Learner") -> Rule | None:
        """The rule of the part that has one."""
        return next((rule for part in self.parts if (rule := part.rule(learner)) is not None), None)

    def memory(self, learner: "Learner") -> Memory | None:
        """The memory of the first part that has one; it stores logits if any part needs them."""
        return next((kept for part in self._keepers() if (kept := part.memory(learner)) is not None), None)

    def _keepers(self) -> Sequence[Method]:
        # a part that stores logits comes first: its memory serves the others too
        return sorted(self.parts, key=lambda part: not getattr(part, "stores_logits", False))

    def remember(self, view: View, x: Tensor) -> None:
        """Fill the memory once."""
        if view.learner.memory is not None:
            for part in self._keepers():
                if isinstance(part, Replay):
                    part.remember(view, x)
                    return

    def end_task(self, learner: "Learner") -> None:
        """Each part's own."""
        for part in self.parts:
            part.end_task(learner)

    def stages(self, tasks: int) -> list[list[int]]:
        """One task after the other."""
        return [[task] for task in range(tasks)]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, as the part that wraps it has it."""
        for part in self.parts:
            network = part.wrap(network)
        return network

    def optimizer(self, learner: "Learner") -> torch.optim.Optimizer | None:
        """The optimiser of the part that has one."""
        return next((own for part in self.parts if (own := part.optimizer(learner)) is not None), None)

    def scores(self, learner: "Learner", x: Tensor) -> Tensor | None:
        """Scores of the part that has its own."""
        return next((found for part in self.parts if (found := part.scores(learner, x)) is not None), None)


def _plain(term: Term) -> bool:
    """Whether it is cross-entropy of the current batch over all classes, weight 1."""
    return type(term) is TaskLoss and term.source is current and term.classes == "all" and term.weight == 1


def make(name: object, /, **settings: Any) -> Method | Combined:
    """The method, preset, or combination ("der++ + online-ewc") of this name.

    For a combination each setting goes to every part that has one of that name.

    Raises:
        ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
    """
    if isinstance(name, str) and " + " in name:
        names, taken, parts = name.split(" + "), set[str](), []
        for one in names:
            known = {f.name for f in dataclasses.fields(type(_make(one.strip(), {})))}
            taken |= known & set(settings)
            parts.append(_make(one.strip(), {key: settings[key] for key in known & set(settings)}))
        if left := sorted(set(settings) - taken):
            raise ConfigError(f"no part of '{name}' has these settings", found=", ".join(left))
        return Combined(tuple(parts))
    return _make(name, settings)


def _make(name: object, settings: Mapping[str, Any]) -> Method:
    return make_settings("method", methods, presets, name, settings)


AnyMethod = Method | Combined
Batches = Sequence[Batch]
