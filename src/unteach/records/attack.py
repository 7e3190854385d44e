"""Relearning attacks: what one reached (:class:`Curve`), all of a run (:class:`Relearning`, relearning.json)."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from unteach.core import state
from unteach.core.convert import Checked
from unteach.errors import CheckpointError, ConfigError
from unteach.records.base import Record
from unteach.records.mask import Mask
from unteach.records.stats import Mean, t_mean

__all__ = [
    "UNPROTECTED",
    "Arm",
    "Attack",
    "AttackedMask",
    "Curve",
    "Domain",
    "Mean",
    "Mode",
    "ModelName",
    "Reach",
    "Relearning",
    "Role",
    "Setting",
    "check_same",
    "recovery",
]

UNPROTECTED = "unprotected"
"""The mask of a record without one."""

Mode = Literal["full", "lora"]
Arm = Literal["unprotected", "kept", "ignored"]
"""The attack on the model without a mask, by one who keeps it, by one who ignores it."""
Role = Literal["illegal", "innocent", "unseen"]


@dataclass(frozen=True, kw_only=True)
class Curve(Checked):
    """One attack and what it reached.

    Attributes:
        mode: "full" or "lora".
        honoured: whether the mask was kept.
        frozen: digest of the mask's names; of no names without a mask.
        frozen_tensors: how many tensors the mask freezes, whether kept or not.
        trained_tensors, trained_parameters: what moved (the adapted weights and their factors in "lora").
        steps, learning_rate, batch_size, rank, seed: settings of the attack; rank 0 in "full".
        data: name and digest of the attack's data.
        probes: name to digest of each probe set.
        at: steps at which was measured; 0 is before the attack.
        losses: probe to its mean denoising loss at each of ``at``.
        diverged: the training or a loss was not finite; ``at`` ends before.
        seconds: wall time of the whole call; not part of what must be equal.

    Raises:
        CheckpointError: it contradicts itself.
    """

    mode: Mode
    honoured: bool
    frozen: str
    frozen_tensors: int
    trained_tensors: int
    trained_parameters: int
    steps: int
    learning_rate: float
    batch_size: int
    rank: int
    seed: int
    data: tuple[str, str]
    probes: dict[str, str]
    at: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]
    diverged: bool
    seconds: float

    def loss(self, probe: str, step: int | None = None) -> float:
        """Loss of a probe at a measured step, the last one by default.

        Raises:
            ConfigError: no such probe, or nothing was measured at this step.
        """
        if probe not in self.losses or (step is not None and step not in self.at):
            raise ConfigError(
                f"the curve has no loss of '{probe}' at step {step}",
                found=f"probes {', '.join(self.losses)} at steps {list(self.at)}",
            )
        return self.losses[probe][-1 if step is None else self.at.index(step)]

    def __post_init__(self) -> None:
        _refuse(f"the attack {self.title}", self._contradictions())

    @property
    def title(self) -> str:
        """For messages."""
        return f"in {self.mode}, rate {self.learning_rate:g}, seed {self.seed}"

    def _contradictions(self) -> list[str]:
        counts = {"frozen_tensors", "trained_tensors", "trained_parameters", "steps", "batch_size", "rank", "seed"}
        rows = self.losses.items()
        return [
            *(f"'{name}' is negative" for name in sorted(counts) if getattr(self, name) < 0),
            *(["steps must rise from 0"] if self.at and list(self.at) != sorted({0, *self.at}) else []),
            *(
                f"losses of '{probe}': {len(row)} values at {len(self.at)} steps"
                for probe, row in rows
                if len(row) != len(self.at)
            ),
        ]


def recovery(curve: Curve, unprotected: Curve, probe: str, step: int | None = None) -> float | None:
    """(loss before - loss after) / (loss before - loss of the unprotected model after), at one step.

    1 is full recovery and 0 none; it may be negative or above 1. None when either did not reach the step, or the
    unprotected model did not learn (its loss did not fall), so that there is nothing to compare with.

    Raises:
        ConfigError: the two were not measured alike (data, probes, settings), or before the attack.
    """
    alike = ("mode", "steps", "learning_rate", "batch_size", "rank", "seed", "data", "probes")
    if different := [name for name in alike if getattr(curve, name) != getattr(unprotected, name)]:
        raise ConfigError("recovery compares the same attack on two models", found=f"different {', '.join(different)}")
    step = curve.steps if step is None else step
    if step not in curve.at or step not in unprotected.at:
        return None
    gained = curve.loss(probe, 0) - curve.loss(probe, step)
    possible = unprotected.loss(probe, 0) - unprotected.loss(probe, step)
    return gained / possible if possible > 0 else None


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A model and the digest of its weights."""

    name: str
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class AttackedMask:
    """The mask that was attacked: how many tensors it freezes, of how many."""

    name: str
    tensors: int
    of: int
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What was fine-tuned on: "unseen" is innocent and was not used to learn the mask."""

    name: str
    role: Role
    images: int


class Setting(NamedTuple):
    """One attack, but for its seed and the mask."""

    domain: str
    mode: str
    rate: float


@dataclass(frozen=True, kw_only=True)
class Attack(Curve):
    """One attack of a run, beside the one on the unprotected model.

    Attributes:
        domain: what was fine-tuned on.
        mask: its name, or "unprotected".
        recovery: probe to the share of the unprotected model's fall at each of ``at``; None: nothing to compare with.
    """

    domain: str
    mask: str
    recovery: dict[str, tuple[float | None, ...]]

    def _contradictions(self) -> list[str]:
        counts = {probe: len(row) for probe, row in self.recovery.items() if len(row) != len(self.at)}
        found = [f"recovery of '{probe}': {n} values at {len(self.at)} steps" for probe, n in counts.items()]
        return [*super()._contradictions(), *found]

    @property
    def arm(self) -> Arm:
        """Which of the three attackers."""
        return "unprotected" if self.mask == UNPROTECTED else "kept" if self.honoured else "ignored"

    @property
    def setting(self) -> Setting:
        """What attacks share that are compared."""
        return Setting(self.domain, self.mode, self.learning_rate)

    @property
    def title(self) -> str:
        """For messages."""
        of = {"unprotected": "unprotected", "kept": "mask kept", "ignored": "mask ignored"}[self.arm]
        return f"on {self.domain}, {self.mode}, rate {self.learning_rate:g}, seed {self.seed}, {of}"


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far an attacker got at the best of the measured rates and lengths, against the unprotected model at its best.

    Attributes:
        share: mean over seeds of the fall of the own probe's loss over the unprotected model's fall; 1 = as without.
        rate, step, against: where this attacker's mean loss is lowest, and where the unprotected model's is.
    """

    share: Mean
    rate: float
    step: int
    against: tuple[float, int]


@dataclass(frozen=True, kw_only=True)
class Relearning(Record):
    """Attacks on a model without a mask and with one.

    Attributes:
        mask: None when only the unprotected model was attacked.
        domains: what was fine-tuned on.
        probes: names of the held-out sets; a domain's own probe has its name.
    """

    FORMAT, FILE = "unteach-relearning", "relearning.json"

    model: ModelName
    mask: AttackedMask | None
    domains: tuple[Domain, ...]
    probes: tuple[str, ...]
    records: tuple[Attack, ...]
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        domains = Counter(d.name for d in self.domains)
        masks = {UNPROTECTED, *([self.mask.name] if self.mask else [])}
        keys = Counter((r.setting, r.arm, r.seed) for r in self.records)
        plain = {(r.setting, r.seed) for r in self.records if r.arm == "unprotected"}
        _refuse(
            "the attacks",
            [
                *(f"domain '{name}' is there {count} times" for name, count in domains.items() if count > 1),
                *(f"{r.title}: no such domain" for r in self.records if r.domain not in domains),
                *(f"{r.title}: no mask called '{r.mask}'" for r in self.records if r.mask not in masks),
                *(f"{r.title}: its probes differ" for r in self.records if set(r.losses) != set(self.probes)),
                *(f"{setting}, {arm}, seed {seed}: twice" for (setting, arm, seed), n in keys.items() if n > 1),
                *(f"{r.title}: no unprotected twin" for r in self.records if (r.setting, r.seed) not in plain),
            ],
        )

    @property
    def settings(self) -> list[Setting]:
        """Domains in their order, then modes and rates in the order of the records."""
        names = [d.name for d in self.domains]
        return sorted(dict.fromkeys(r.setting for r in self.records), key=lambda s: names.index(s.domain))

    @property
    def arms(self) -> list[Arm]:
        """Those that were run, in the order unprotected, kept, ignored."""
        return [arm for arm in get_args(Arm) if any(r.arm == arm for r in self.records)]

    def runs(self, setting: Setting, arm: Arm) -> dict[int, Attack]:
        """Attacks by seed."""
        return self._runs.get((setting, arm), {})

    @cached_property
    def _runs(self) -> dict[tuple[Setting, Arm], dict[int, Attack]]:
        found: dict[tuple[Setting, Arm], dict[int, Attack]] = {}
        for record in sorted(self.records, key=lambda r: r.seed):
            found.setdefault((record.setting, record.arm), {})[record.seed] = record
        return found

    def steps(self, setting: Setting) -> list[int]:
        """Steps at which any of a setting's attacks was measured."""
        return sorted({at for arm in self.arms for run in self.runs(setting, arm).values() for at in run.at})

    def losses(self, setting: Setting, arm: Arm, step: int, probes: Sequence[str]) -> list[float]:
        """Mean loss over the probes at a step, one a seed that was measured there."""
        runs = [run for run in self.runs(setting, arm).values() if step in run.at]
        return [math.fsum(run.losses[p][run.at.index(step)] for p in probes) / len(probes) for run in runs]

    def loss(self, setting: Setting, arm: Arm, step: int, probes: Sequence[str] = ()) -> Mean | None:
        """The same, mean over seeds; of the domain's own probe by default. None unless every seed was measured."""
        probes = probes or [setting.domain]
        if not set(probes) <= set(self.probes):
            return None
        found = self.losses(setting, arm, step, probes)
        return t_mean(found) if found and len(found) == len(self.runs(setting, arm)) else None

    def recovery(self, setting: Setting, arm: Arm, step: int) -> Mean | None:
        """Recovery of the domain's own probe at a step, over the seeds that have one."""
        runs = [r for r in self.runs(setting, arm).values() if step in r.at and r.domain in r.recovery]
        found = [r.recovery[r.domain][r.at.index(step)] for r in runs]
        known = [x for x in found if x is not None]
        return t_mean(known) if known else None

    def reach(self, domain: str, mode: str, arm: Arm) -> Reach | None:
        """An attacker at the best of all measured rates and lengths; see :class:`Reach`.

        None when one of the two was not run, or the unprotected model did not learn.
        """
        mine, plain = self._best(domain, mode, arm), self._best(domain, mode, "unprotected")
        if mine is None or plain is None:
            return None
        at, against = Setting(domain, mode, mine[0]), Setting(domain, mode, plain[0])
        gained, possible = self._falls(at, arm, mine[1]), self._falls(against, "unprotected", plain[1])
        shares = [gained[seed] / possible[seed] for seed in gained if possible.get(seed, 0.0) > 0]
        return Reach(share=t_mean(shares), rate=mine[0], step=mine[1], against=plain) if shares else None

    def _best(self, domain: str, mode: str, arm: Arm) -> tuple[float, int] | None:
        """(rate, step) of the lowest loss of the own probe, mean over the seeds that got there."""
        if domain not in self.probes:
            return None
        settings = [s for s in self.settings if (s.domain, s.mode) == (domain, mode)]
        places = [(s, at, self.losses(s, arm, at, [domain])) for s in settings for at in self.steps(s) if at]
        found = [(math.fsum(losses) / len(losses), s.rate, at) for s, at, losses in places if losses]
        return min(found)[1:] if found else None

    def _falls(self, setting: Setting, arm: Arm, step: int) -> dict[int, float]:
        own = {k: (run.losses[setting.domain], run.at) for k, run in self.runs(setting, arm).items() if step in run.at}
        return {seed: losses[0] - losses[at.index(step)] for seed, (losses, at) in own.items()}


def check_same(mask: Mask, attacks: Relearning) -> None:
    """Raise CheckpointError unless the attacks were on this mask and its model."""
    wrong = []
    if attacks.model.digest and attacks.model.digest != mask.manifest.model:
        wrong.append(f"model {attacks.model.digest[:12]}, the mask is for {mask.manifest.model[:12]}")
    if attacks.mask and (attacks.mask.tensors, attacks.mask.of) != (len(mask.frozen), len(mask.tensors)):
        wrong.append(f"{attacks.mask.tensors} of {attacks.mask.of} tensors frozen, the mask: {len(mask.frozen)}")
    known = {r.frozen for r in attacks.records if r.arm != "unprotected" and r.frozen}
    if known - {state.fingerprint(sorted(mask.frozen))}:
        wrong.append("other tensors frozen")
    if wrong:
        raise CheckpointError("the attacks are of another mask", found="; ".join(wrong), fix="attack this mask again")


def _refuse(what: str, mistakes: list[str]) -> None:
    if mistakes:
        more = f"; and {len(mistakes) - 5} more" if len(mistakes) > 5 else ""
        raise CheckpointError(f"{what} does not hold together: {'; '.join(mistakes[:5])}{more}")
