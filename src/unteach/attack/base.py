"""What every attack is: a frozen, checked configuration with a name, and ``run``: from a model, data and a measure to a
curve of what came back.

An attack is one file: its settings next to what it does to the model, and one line that registers it.
"""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unteach.attack.probes import Probes, check_disjoint
from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.core.loop import Step
from unteach.core.registry import Methods
from unteach.core.settings import Settings, setting
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.examples import Examples
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import NumericsError
from unteach.records.attack import Curve

__all__ = ["Attack", "Job", "Measure", "attacks", "restored"]

Measure = Callable[[Model], Mapping[str, float]]
"""Looks at a model: names to finite numbers that fall when the concept comes back, such as a denoising loss."""

attacks: Methods["Attack"] = Methods("attack")
"""Every attack, by name, and their presets."""


@dataclass(kw_only=True, eq=False)
class Job:
    """One run of an attack.

    Attributes:
        model: what is attacked; it must be bit for bit as before when the attack ends, however it ends.
        data: what the attacker has.
        frozen: names of the denoiser's tensors that this attacker does not train.
        measure: looks at the model.
        points: steps at which is measured, from 0 to the last one.
        events, label: told of each step, under this name.
        trained_tensors, trained_parameters: how much moves; :meth:`moves` says it.
        stand_in: gives the tensors that the attacked model has in place of the denoiser's own, where there are any.
        at, losses: what was measured so far.
    """

    model: Model
    data: Examples
    frozen: frozenset[str]
    measure: Measure
    points: Sequence[int]
    events: Events = SILENT
    label: str = "attack"
    trained_tensors: int = 0
    trained_parameters: int = 0
    stand_in: Callable[[], Mapping[str, Tensor]] = dict
    at: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def moves(self, changed: Mapping[str, Tensor], trained: Mapping[str, Tensor] | None = None) -> None:
        """Say, before the first step, what the attack changes, and what it trains where that is something else."""
        self.trained_tensors = len(changed)
        self.trained_parameters = sum(value.numel() for value in (changed if trained is None else trained).values())

    def batches(self, step: Step, items: range) -> tuple[Tensor, Conditioning]:
        """The data of a step; a step begins with its data, so the model is then measured as the steps before left it.

        Raises:
            NumericsError: what was measured is not finite.
        """
        if step.index in self.points:
            self.look(step.index)
        self.events.step(self.label, step.index + 1, self.points[-1])
        return self.data.batches(step, items)

    def look(self, step: int) -> None:
        """Measure the model after ``step`` steps.

        Raises:
            NumericsError: what was measured is not finite.
        """
        with torch.no_grad(), _standing_in(self.model, self.stand_in()):
            found = self.measure(self.model)
        if not all(map(math.isfinite, found.values())):
            raise NumericsError(f"a probe's loss is not finite after {step} steps", found=found)
        for name, value in found.items():
            self.losses.setdefault(name, []).append(value)
        self.at.append(step)


@dataclass(frozen=True, kw_only=True)
class Attack(Settings, ABC):
    """An attack and its settings; immutable, checked as a whole when it is made.

    Args:
        steps: how many steps; a longer attack contains the shorter ones.
        eval_steps: steps at which to measure; 0 and ``steps`` always are.
        learning_rate: learning rate, constant.
        batch_size: images a step.
        seed: root of every random draw of the attack.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    kind: ClassVar[str] = "attack"

    steps: int = setting(40, low=0)
    eval_steps: tuple[int, ...] = ()
    learning_rate: float = setting(3e-4, low=0)
    batch_size: int = setting(16, low=1)
    seed: int = setting(0, low=0)

    def mistakes(self) -> list[str]:
        """Points outside of the attack."""
        inside = all(0 <= at <= self.steps for at in self.eval_steps)
        return [] if inside else [f"eval_steps must lie between 0 and steps ({self.steps}), found {self.eval_steps}"]

    @property
    def points(self) -> list[int]:
        """Steps at which is measured."""
        return sorted({0, self.steps, *self.eval_steps})

    @abstractmethod
    def train(self, job: Job) -> None:
        """Attack ``job.model``, look at it at every point, and leave it as it was, also when an error ends it.

        Training that takes its data from :meth:`Job.batches` looks at all points but the last, which is
        ``job.look(self.steps)`` before the model is put back.
        """

    def recorded(self) -> dict[str, Any]:
        """Fields of the curve that this attack alone knows."""
        return {"mode": "full", "rank": 0}

    def identity(self) -> dict[str, Any]:
        """What decides the curve, as plain data."""
        return self.to_dict() | {"eval_steps": self.points}

    @final
    def run(
        self,
        model: Model | Pipeline,
        data: Examples,
        measure: Measure,
        *,
        frozen: Collection[str] = (),
        honoured: bool = True,
        mask_data: Sequence[Examples] = (),
        events: Events = SILENT,
        label: str = "attack",
    ) -> Curve:
        """Attack a model and return the curve; its weights are bit for bit as before on return, whatever happens.

        Args:
            model: what is attacked: a model, or a diffusers pipeline.
            data: what the attacker has.
            measure: looks at the model at each point; :class:`unteach.attack.probes.Probes` is the usual one.
            frozen: names of the tensors that the mask freezes.
            honoured: False trains what is frozen too: open weights are not protected (freezeasguard.md §6.1).
            mask_data: what the mask was learned from; it must not share an image with ``data`` or the probes, nor
                they with each other.
            events: told of each step that begins, from 1; an exception from it stops the attack.
            label: name of this attack for the events.

        Raises:
            DataError: sets that overlap.
            ModelError: a frozen name that the denoiser has not, or wrapped weights.
        """
        begin = time.monotonic()
        model = Model.of(model, edit=True)
        probes = measure if isinstance(measure, Probes) else None
        check_disjoint(data, probes.sets if probes else {}, mask_data)
        held = frozenset(frozen if honoured else ())
        job = Job(
            model=model, data=data, frozen=held, measure=measure, points=self.points, events=events, label=label
        )  # fmt: skip
        diverged = False
        try:
            # Whatever mode the caller is in, training needs gradients.
            with torch.inference_mode(False), torch.enable_grad():
                self.train(job)
        except NumericsError:
            diverged = True
        return Curve(
            **self.recorded(),
            honoured=honoured,
            frozen=state.fingerprint(sorted(frozen)),
            frozen_tensors=len(set(frozen)),
            trained_tensors=job.trained_tensors,
            trained_parameters=job.trained_parameters,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
            data=(data.name, data.digest()),
            probes=probes.digests() if probes else dict.fromkeys(job.losses, ""),
            at=tuple(job.at),
            losses={name: tuple(values) for name, values in job.losses.items()},
            diverged=diverged,
            seconds=time.monotonic() - begin,
        )


@contextlib.contextmanager
def restored(model: Model, values: Mapping[str, Tensor]) -> Iterator[None]:
    """At the end of the block these tensors of the model have the bits that they have now, also after an error."""
    before = {name: value.detach().clone() for name, value in values.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(before[name])
        model.weights_changed()


@contextlib.contextmanager
def _standing_in(model: Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these tensors in place of the denoiser's own of the same names, which are not written to."""
    own = {name: value for name, value in model.denoiser.named_parameters() if name in tensors}
    before = {name: value.data for name, value in own.items()}
    try:
        for name, value in own.items():
            value.data = tensors[name]
        yield
    finally:
        for name, value in own.items():
            value.data = before[name]
