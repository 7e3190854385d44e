"""Several methods as one, and any method by its name."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from unteach.continual.learner import Learner
from unteach.continual.memory.buffer import Memory
from unteach.continual.methods.base import Form, Method, Replay, methods
from unteach.continual.sources import CurrentBatch
from unteach.continual.terms import Rule, TaskLoss, Term
from unteach.continual.view import View
from unteach.errors import ConfigError


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
        return max((part.form for part in self.parts), key=get_args(Form).index)

    @property
    def boundaries(self) -> bool:
        """One part needs boundaries."""
        return any(part.boundaries for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The name and the parts' settings."""
        return {"method": self.name, "parts": [part.to_dict() for part in self.parts]}

    def terms(self, learner: Learner) -> list[Term]:
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

    def rule(self, learner: Learner) -> Rule | None:
        """The rule of the part that has one."""
        return next((rule for part in self.parts if (rule := part.rule(learner)) is not None), None)

    def memory(self, learner: Learner) -> Memory | None:
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

    def end_task(self, learner: Learner) -> None:
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

    def optimizer(self, learner: Learner) -> torch.optim.Optimizer | None:
        """The optimizer of the part that has one."""
        return next((own for part in self.parts if (own := part.optimizer(learner)) is not None), None)

    def scores(self, learner: Learner, x: Tensor) -> Tensor | None:
        """Scores of the part that has its own."""
        return next((found for part in self.parts if (found := part.scores(learner, x)) is not None), None)


def _plain(term: Term) -> bool:
    """Whether it is cross-entropy of the current batch over all classes, weight 1."""
    return (
        type(term) is TaskLoss and isinstance(term.source, CurrentBatch) and term.classes == "all" and term.weight == 1
    )


def make(name: object, /, **settings: Any) -> Method | Combined:
    """The method, preset, or combination ("der++ + online-ewc") of this name.

    For a combination each setting goes to every part that has one of that name.

    Raises:
        ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
    """
    if isinstance(name, str) and " + " in name:
        names, taken, parts = name.split(" + "), set[str](), []
        for one in names:
            kind = type(methods.make(one.strip()))
            known = {f.name for f in dataclasses.fields(kind)} | set(kind.renamed)
            taken |= known & set(settings)
            parts.append(methods.make(one.strip(), **{key: settings[key] for key in known & set(settings)}))
        if left := sorted(set(settings) - taken):
            raise ConfigError(f"no part of '{name}' has these settings", found=", ".join(left))
        return Combined(tuple(parts))
    return methods.make(name, **settings)


AnyMethod = Method | Combined
