"""A mask (``mask.json``): which tensors of a model may not be trained, how they were chosen, and how that was learned.

What a mask says of the model is its :class:`Policy`, the content of the freeze manifest beside the weights
(:mod:`unteach.guard.manifest`); the rest is its history.
"""

import json
import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from unteach.core.convert import Checked, convert
from unteach.errors import CheckpointError, ConfigError
from unteach.records.base import Record

__all__ = ["CASTS", "Budget", "FrozenTensor", "Granularity", "Mask", "Measure", "Policy", "Provenance", "Step"]

CASTS = ("fp32", "fp16", "bf16")
"""Number formats that people save models in; a frozen tensor has a hash in each."""
Granularity = Literal["tensor", "module", "block"]
Measure = Literal["tensors", "parameters", "flops"]
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FrozenTensor:
    """One tensor of the model, frozen or not.

    Attributes:
        name: canonical (diffusers') name relative to the component.
        shape: its sizes.
        frozen: whether fine-tuning may not change it.
        score: what the choice was made by, such as the soft mask; None when there was none.
        hashes: where it is frozen, SHA-256 (hex) of its bytes cast to each of :data:`CASTS`; else empty.
    """

    name: str
    shape: tuple[int, ...]
    frozen: bool
    score: float | None = None
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Budget:
    """How much is frozen, exactly.

    Attributes:
        measure: what the budget was a share of.
        rho: the share that was asked for, in [0, 1]; None when the tensors were simply named.
        frozen_tensors, tensors, frozen_parameters, parameters: counts.
        share_of_tensors, share_of_parameters: their quotients.
    """

    measure: Measure
    rho: float | None
    frozen_tensors: int
    tensors: int
    frozen_parameters: int
    parameters: int
    share_of_tensors: float
    share_of_parameters: float

    @classmethod
    def of(cls, tensors: Collection[FrozenTensor], measure: Measure = "tensors", rho: float | None = None) -> "Budget":
        """Count these tensors."""
        frozen = [tensor.size for tensor in tensors if tensor.frozen]
        held, total = sum(frozen), sum(tensor.size for tensor in tensors)
        shares = len(frozen) / max(len(tensors), 1), held / max(total, 1)
        return cls(measure, rho, len(frozen), len(tensors), held, total, *shares)


@dataclass(frozen=True)
class Provenance(Checked):
    """Where a mask comes from.

    Attributes:
        method: name and settings of what made it, and the names of the domains ("illegal", "innocent").
        seeds: every seed that it depends on; the first split the pictures.
        data: name of a data set → digest.
        versions: package → version.

    Raises:
        ConfigError: the method's settings are not JSON.
    """

    method: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            plain = json.loads(json.dumps(self.method, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError("a manifest's record of its method must be JSON", found=error) from error
        object.__setattr__(self, "method", plain)  # as it will be read again: lists, not tuples


@dataclass(frozen=True, kw_only=True)
class Policy(Checked):
    """What is frozen of one model, and by what; checked when it is made.

    Attributes:
        policy: id of the policy.
        family: the model's family ("sd").
        component: the part of the pipeline that it is about ("unet").
        model: digest of that part, over names, shapes and values of all its tensors (``Model.digest``).
        granularity: what was frozen as one: a tensor, a module, a block.
        budget: exact counts and shares.
        tensors: every tensor of the component, in the model's order.
        components: other parts of the pipeline → digest; a verifier compares them when they are here.
        provenance: what made the mask.
        created: time in UTC, ISO 8601.

    Raises:
        CheckpointError: it contradicts itself; lists every contradiction.
    """

    HASHED: ClassVar[bool] = False
    """Whether every frozen tensor must have its hashes (a mask of release 0.1 kept none)."""

    policy: str
    family: str
    component: str
    model: str
    granularity: Granularity
    budget: Budget
    tensors: tuple[FrozenTensor, ...]
    provenance: Provenance
    created: str
    components: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := self._contradictions():
            raise CheckpointError("the freeze policy contradicts itself", found="; ".join(problems[:8]))

    @property
    def name(self) -> str:
        """Name of the method that chose the tensors."""
        return str(self.provenance.method.get("name") or "mask")

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the model's order."""
        return tuple(tensor.name for tensor in self.tensors if tensor.frozen)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name → its sizes."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def illegal(self) -> tuple[str, ...]:
        """Names of the domains that the mask keeps from being learned."""
        return tuple(map(str, self.provenance.method.get("illegal") or ()))

    @property
    def innocent(self) -> tuple[str, ...]:
        """Names of the domains that stay learnable."""
        return tuple(map(str, self.provenance.method.get("innocent") or ()))

    @property
    def seed(self) -> int:
        """Seed that split the pictures."""
        return next(iter(self.provenance.seeds), 0)

    def _contradictions(self) -> list[str]:
        problems = []
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            problems.append("a tensor is listed twice")
        if not names:
            problems.append("it lists no tensor")
        digests = {"model": self.model, **self.components}
        problems += [f"the digest of '{k}' is not 64 hex digits" for k, d in digests.items() if not _HEX.fullmatch(d)]
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.component):
            problems.append(f"the component '{self.component}' is not a name")
        for tensor in self.tensors:
            if not tensor.name or not tensor.name.isprintable() or any(size < 0 for size in tensor.shape):
                problems.append(f"{tensor.name!r} has a bad name or shape")
            wanted = set(CASTS) if tensor.frozen and (self.HASHED or tensor.hashes) else set()
            if tensor.hashes.keys() != wanted or not all(_HEX.fullmatch(value) for value in tensor.hashes.values()):
                what = "hashes for " + ", ".join(CASTS) if wanted else "no hashes"
                problems.append(f"'{tensor.name}' must have {what}")
        if not problems and self.budget != Budget.of(self.tensors, self.budget.measure, self.budget.rho):
            problems.append("the budget does not fit the tensors")
        return problems


@dataclass(frozen=True)
class Step:
    """One publisher step: mean mask, Jaccard of the hard mask with the one a step before, largest |gradient|."""

    step: int
    mean: float
    jaccard: float
    largest: float | None = None


@dataclass(frozen=True, kw_only=True)
class Mask(Record):
    """A mask with its history; :mod:`unteach.guard.policy` makes one of a model.

    Attributes:
        manifest: what it says of the model, and by what method; the freeze manifest's content.
        model_name: name of the model, for a reader.
        log: one record a publisher step; empty without learning.
        steps: learning steps that were done.
        seconds: wall time of making it.
        environment, command: where and how.

    Raises:
        CheckpointError: it contradicts itself.
    """

    FORMAT, VERSION, FILE = "unteach-mask", 2, "mask.json"

    manifest: Policy
    model_name: str = ""
    log: tuple[Step, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(name := self.method.get("name"), str) or not name:
            problems.append("its method has no name")
        if self.budget.rho is not None and not 0 <= self.budget.rho <= 1:
            problems.append(f"rho is a share, found {self.budget.rho}")
        if min(self.steps, self.seconds, *self.manifest.provenance.seeds) < 0:
            problems.append("seeds, steps and seconds are not negative")
        if problems:
            raise CheckpointError("the mask's record contradicts itself", found="; ".join(problems))

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.manifest.name

    @property
    def method(self) -> dict[str, Any]:
        """The method's name and settings."""
        made = self.manifest.provenance.method
        return {key: value for key, value in made.items() if key not in ("illegal", "innocent", "erased")}

    @property
    def tensors(self) -> tuple[FrozenTensor, ...]:
        """Every tensor of the network, in its order."""
        return self.manifest.tensors

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the network's order."""
        return self.manifest.frozen

    @property
    def budget(self) -> Budget:
        """How much was to be frozen, and is."""
        return self.manifest.budget

    @classmethod
    def modern(cls, fields: dict[str, Any], version: int) -> dict[str, Any]:
        """Release 0.1 (version 1) told the policy flat and without hashes."""
        old = convert(fields, _Version1)
        named = old.method.get("name") or old.method.get("guard")
        domains = {"illegal": list(old.data.illegal), "innocent": list(old.data.innocent)}
        history = {"log", "steps", "seconds", "environment", "command"} & fields.keys()
        return {
            "manifest": {
                "policy": "",
                "family": "",
                "component": old.component,
                "model": old.model.digest,
                "granularity": old.method.get("granularity", "tensor"),
                "budget": asdict(Budget.of(old.tensors, old.budget.measure, old.budget.rho)),
                "tensors": fields["tensors"],
                "provenance": {
                    "method": {**old.method, **domains, "name": named},
                    "seeds": list(dict.fromkeys((old.data.seed, old.seed))),
                    "data": old.data.digests,
                },
                "created": "",
            },
            "model_name": old.model.name,
            **{key: fields[key] for key in history},
        }


@dataclass(frozen=True)
class _Model1:
    name: str
    digest: str = ""


@dataclass(frozen=True)
class _Budget1:
    measure: Measure
    rho: float | None = None


@dataclass(frozen=True)
class _Data1:
    illegal: tuple[str, ...] = ()
    innocent: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Version1(Checked):
    """The fields of version 1."""

    method: dict[str, Any]
    model: _Model1
    tensors: tuple[FrozenTensor, ...]
    budget: _Budget1
    component: str = "unet"
    seed: int = 0
    log: tuple[Step, ...] = ()
    steps: int = 0
    data: _Data1 = _Data1()
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
