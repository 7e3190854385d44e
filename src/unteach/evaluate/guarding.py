"""A guard's files as typed records: ``mask.json`` (what is frozen) and ``relearning.json`` (what attacks reached).

Both load without a model. A file that is missing, cut off, of something else, of a newer version or that contradicts
itself is refused with every mistake named; keys that this version does not know are passed over.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import cattrs
from cattrs.gen import make_dict_structure_fn

from unteach.core import state
from unteach.errors import CheckpointError
from unteach.records.erasure import _converter, _explain
from unteach.records.stats import Mean, t_mean

__all__ = ["Attack", "Mask", "Mean", "Reach", "Relearning", "Setting", "check_same"]

VERSION = 1
MASK, RELEARNING = "mask.json", "relearning.json"
UNPROTECTED = "unprotected"
"""The mask of a record without one."""

Arm = Literal["unprotected", "kept", "ignored"]
"""The attack on the model without a mask, by one who keeps it, by one who ignores it."""
Role = Literal["illegal", "innocent", "unseen"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A model and the digest of its weights."""

    name: str
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class MaskTensor:
    """One tensor of the network; ``score`` is its soft mask, None when the method gives none."""

    name: str
    shape: tuple[int, ...]
    frozen: bool
    score: float | None = None

    @property
    def size(self) -> int:
        """Parameters."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What was to be frozen: a share ``rho`` of tensors, parameters or flops; None when the method takes no share."""

    measure: str
    rho: float | None = None


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One publisher step: mean mask, largest |gradient|, Jaccard of the hard mask with the one a step before."""

    step: int
    mean: float
    jaccard: float
    largest: float | None = None


@dataclass(frozen=True, kw_only=True)
class MaskData:
    """Domains by role, digests of the sets made of them, and the seed of the split."""

    illegal: tuple[str, ...] = ()
    innocent: tuple[str, ...] = ()
    digests: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which of all tensors of a network are frozen, and how that was learned; ``method`` is its name and settings."""

    method: dict[str, Any]
    model: ModelName
    tensors: tuple[MaskTensor, ...]
    budget: Budget
    component: str = "unet"
    seed: int = 0
    log: tuple[LogEntry, ...] = ()
    steps: int = 0
    data: MaskData = field(default_factory=MaskData)
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(t.name for t in self.tensors).items() if count > 1]
        numbers = [self.seconds, self.budget.rho, *(t.score for t in self.tensors)]
        numbers += [x for entry in self.log for x in (entry.mean, entry.jaccard, entry.largest)]
        _refuse(
            "the mask",
            [
                *(["it names no tensor"] if not self.tensors else []),
                *(f"tensor '{name}' is there twice" for name in twice),
                *(f"tensor '{t.name}' has shape {list(t.shape)}" for t in self.tensors if min(t.shape, default=1) < 0),
                *_not_finite(numbers),
            ],
        )

    @property
    def name(self) -> str:
        """Name of the method."""
        return str(self.method.get("name") or self.method.get("guard") or "unnamed")

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the network's order."""
        return tuple(t.name for t in self.tensors if t.frozen)

    @classmethod
    def load(cls, path: Path | str) -> "Mask":
        """Read a ``mask.json``, or the one in a folder.

        Raises:
            CheckpointError: the file is missing, damaged, foreign, newer, or wrong (all mistakes are named).
        """
        return _load(cls, Path(path), MASK, "unteach-mask")


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
class Attack:
    """One attack and what it reached.

    Attributes:
        domain: what was fine-tuned on.
        mask, honoured: its name, or "unprotected", and whether it was kept.
        at: steps at which was measured, from 0 (before) on.
        losses: probe to the mean denoising loss on its held-out pictures at each of ``at``.
        recovery: probe to the share of the unprotected model's fall at each of ``at``; None: nothing to compare with.
        frozen: digest of the mask's names; "" when not known.
        diverged: something was not finite after the last of ``at``.
    """

    domain: str
    mask: str
    honoured: bool
    mode: Literal["full", "lora"]
    learning_rate: float
    seed: int
    at: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]
    recovery: dict[str, tuple[float | None, ...]]
    batch_size: int = 0
    rank: int = 0
    frozen: str = ""
    diverged: bool = False

    def __post_init__(self) -> None:
        counts = {f"losses of '{probe}'": len(row) for probe, row in self.losses.items()}
        counts |= {f"recovery of '{probe}'": len(row) for probe, row in self.recovery.items()}
        _refuse(
            f"the attack {self.title}",
            [
                *(["steps must rise from 0"] if list(self.at) != sorted({0, *self.at}) and self.at else []),
                *(f"{what}: {n} values at {len(self.at)} steps" for what, n in counts.items() if n != len(self.at)),
                *_not_finite([x for rows in (self.losses, self.recovery) for row in rows.values() for x in row]),
                *_not_finite([self.learning_rate]),
            ],
        )

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
class Relearning:
    """Attacks on a model without a mask and with one.

    Attributes:
        mask: None when only the unprotected model was attacked.
        domains: what was fine-tuned on.
        probes: names of the held-out sets; a domain's own probe has its name.
    """

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

    @classmethod
    def load(cls, path: Path | str) -> "Relearning":
        """Read a ``relearning.json``, or the one in a folder; errors as :meth:`Mask.load`."""
        return _load(cls, Path(path), RELEARNING, "unteach-relearning")

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
    if attacks.model.digest and mask.model.digest and attacks.model.digest != mask.model.digest:
        wrong.append(f"model {attacks.model.digest[:12]}, the mask is for {mask.model.digest[:12]}")
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


def _not_finite(numbers: Iterable[float | None]) -> list[str]:
    wrong = [x for x in numbers if x is not None and not math.isfinite(x)]
    return [f"{len(wrong)} numbers are not finite"] if wrong else []


def _load(kind: type[T], path: Path, name: str, form: str) -> T:
    path = path / name if path.is_dir() else path
    data = state.read_json(path)
    if not isinstance(data, dict) or data.get("format") != form:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(f"{path}: not a file of the format {form}", found=found, fix="check the path")
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        found = f"version {version}; this release reads {VERSION}"
        raise CheckpointError(f"{path}: written by another release of Unteach", found=found, fix="upgrade unteach")
    try:
        return _converter.structure(data, kind)
    except Exception as error:  # cattrs raises exception groups of many kinds
        mistakes = cattrs.transform_error(error, path=form, format_exception=_explain)
        said = f"{path}: {len(mistakes)} mistake(s): {'; '.join(mistakes[:8])}"
        raise CheckpointError(said, fix="make the file again") from error


for _kind in (ModelName, MaskTensor, Budget, LogEntry, MaskData, Mask, AttackedMask, Domain, Attack, Relearning):
    _converter.register_structure_hook(
        _kind, make_dict_structure_fn(_kind, _converter, _cattrs_forbid_extra_keys=False)
    )
