"""``mask.json``: a mask with what made it, as a file that is checked when it is read, and its freeze manifest."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cattrs

from unteach.core import state
from unteach.diffusion.delta import versions
from unteach.diffusion.export import loaded
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ConfigError, ModelError
from unteach.guard.config import FreezeAsGuard
from unteach.guard.files import Safetensors, bounded_json
from unteach.guard.hashes import InMemory, component_digest
from unteach.guard.learn import Learned
from unteach.guard.manifest import FreezeManifest, Measure, Provenance, explain, strict

__all__ = ["MaskBudget", "MaskData", "MaskModel", "MaskRecord", "MaskStep", "MaskTensor"]

FORMAT, VERSION = "unteach-mask", 1
_SETTINGS = tuple(field.name for field in dataclasses.fields(FreezeAsGuard))


@dataclass(frozen=True)
class MaskTensor:
    """A tensor of the denoiser: its name and shape, whether it is frozen, its score (None without one)."""

    name: str
    shape: tuple[int, ...]
    frozen: bool
    score: float | None = None


@dataclass(frozen=True)
class MaskModel:
    """The model that the mask is for: a name to show and ``Model.digest`` (with the erasure laid on, if any)."""

    name: str
    digest: str


@dataclass(frozen=True)
class MaskBudget:
    """The share that was asked for, and of what; None when the tensors were simply counted or named."""

    measure: Measure
    rho: float | None


@dataclass(frozen=True)
class MaskStep:
    """One publisher step: its number, mean mask, largest |g|, Jaccard index with the hard mask a step before."""

    step: int
    mean: float
    largest: float
    jaccard: float


@dataclass(frozen=True)
class MaskData:
    """Domains that the mask was made from, digests of the sets, and the seed that split the pictures."""

    illegal: tuple[str, ...]
    innocent: tuple[str, ...]
    digests: dict[str, str]
    seed: int


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """A mask and its history. Made by :meth:`of` or :meth:`from_learned`; checked when it is made.

    Attributes:
        method: "name", and the settings (``FreezeAsGuard.to_dict`` where one was used).
        seed: root of all draws.
        model, component: what it is for.
        tensors: every tensor of the component, in the model's order.
        budget: what was asked for.
        log: one record a publisher step; empty without learning.
        steps: learning steps that were done.
        data: what it was made from.
        seconds: of making it.
        environment, command: where and how.

    Raises:
        CheckpointError: it contradicts itself.
    """

    method: dict[str, Any]
    seed: int
    model: MaskModel
    component: str
    tensors: tuple[MaskTensor, ...]
    budget: MaskBudget
    log: tuple[MaskStep, ...]
    steps: int
    data: MaskData
    seconds: float
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    format: str = FORMAT
    version: int = VERSION

    def __post_init__(self) -> None:
        if problems := list(_contradictions(self)):
            raise CheckpointError("the mask's record contradicts itself", found="; ".join(problems[:8]))

    @classmethod
    def of(
        cls,
        model: Model | Pipeline,
        frozen: Collection[str],
        *,
        name: str,
        method: Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
        measure: Measure = "tensors",
        rho: float | None = None,
        log: Sequence[Mapping[str, float]] = (),
        steps: int = 0,
        **more: Any,
    ) -> "MaskRecord":
        """The record of a mask of a model that is in memory.

        Args:
            model: what it is for: a model, or a diffusers pipeline.
            frozen: names of the frozen tensors.
            name: what to call the method in tables.
            method: its settings.
            scores: tensor → score.
            measure, rho: the budget that was asked for.
            log, steps: as in :class:`unteach.guard.learn.Learned`.
            more: seed, data, seconds, environment, command; ``model_name`` (default: the model's folder).

        Raises:
            ModelError: a name that the denoiser has not.
        """
        model = Model.of(model)
        held, scores = set(frozen), dict(scores or {})
        shapes = {key: tuple(value.shape) for key, value in model.denoiser.named_parameters()}
        if unknown := sorted((held | scores.keys()) - shapes.keys()):
            raise ModelError(f"{len(unknown)} names of the mask are not in the denoiser", found=unknown[0])
        shown = more.pop("model_name", None) or (model.path.name if model.path else "")
        return cls(
            method={"name": name, **method},
            model=MaskModel(shown, model.digest(fresh=True)),
            component=model.conventions.denoiser,
            tensors=tuple(MaskTensor(key, shape, key in held, scores.get(key)) for key, shape in shapes.items()),
            budget=MaskBudget(measure, rho),
            log=tuple(
                MaskStep(int(row["step"]), *(float(row[key]) for key in ("mean", "largest", "jaccard"))) for row in log
            ),
            steps=steps,
            **more,
        )

    @classmethod
    def from_learned(cls, model: Model, learned: Learned, *, name: str, **more: Any) -> "MaskRecord":
        """The record of a learned mask; arguments as in :meth:`of`, what ``learned`` knows is taken from there."""
        config = learned.config
        return cls.of(
            model,
            learned.frozen,
            name=name,
            method=config.to_dict(),
            scores=learned.scores,
            measure=config.budget,
            rho=config.rho,
            log=learned.log,
            steps=learned.steps,
            seed=learned.seed,
            **more,
        )

    def learned(self) -> Learned:
        """Back to :class:`Learned`, for masks that are made from a learned one.

        Raises:
            ConfigError: this mask was not learned, or its settings are of another release.
        """
        settings = {key: value for key, value in self.method.items() if key in _SETTINGS}
        if self.method.get(FreezeAsGuard.kind) != FreezeAsGuard.name or any(t.score is None for t in self.tensors):
            raise ConfigError("this mask was not learned", found=f"method '{self.name}'")
        return Learned(
            self.frozen,
            {tensor.name: float(tensor.score or 0.0) for tensor in self.tensors},
            {tensor.name: math.prod(tensor.shape) for tensor in self.tensors},
            FreezeAsGuard.build(settings),
            self.seed,
            self.steps,
            [asdict(row) for row in self.log],
            dict(self.data.digests),
        )

    @property
    def name(self) -> str:
        """What the method is called."""
        return str(self.method["name"])

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the model's order."""
        return tuple(tensor.name for tensor in self.tensors if tensor.frozen)

    def check(self, model: Model) -> None:
        """Refuse a model that the mask is not for.

        Raises:
            ModelError: other tensors, or other weights.
        """
        check_model(model, {t.name: t.shape for t in self.tensors}, self.model.digest, "the mask")

    def manifest(
        self, model: Model, *, policy: str | None = None, erased: Mapping[str, Any] | None = None
    ) -> FreezeManifest:
        """The freeze manifest of this mask; it vouches for the pipeline's other parts too.

        Args:
            model: what will be published, in memory.
            policy: an id; made from the mask when None.
            erased: record of the erasure that was laid on, for the provenance.

        Raises:
            ModelError: the model is not the mask's, or its tensors cannot be hashed.
        """
        self.check(model)
        parts = [part for part in model.parts if part != self.component]
        made = {
            **self.method,
            "illegal": list(self.data.illegal),
            "innocent": list(self.data.innocent),
            **({"erased": dict(erased)} if erased else {}),
        }
        return FreezeManifest.from_model(
            model.denoiser,
            self.frozen,
            {t.name: t.score for t in self.tensors if t.score is not None},
            policy=policy,
            family=model.family,
            component=self.component,
            granularity=self.method.get("granularity", "tensor"),
            measure=self.budget.measure,
            rho=self.budget.rho,
            provenance=Provenance(made, (self.seed,), dict(self.data.digests), versions()),
            components={part: _component(model, part) for part in parts},
        )

    def save(self, path: Path | str) -> Path:
        """Write it as readable JSON, atomically; errors as in :func:`unteach.core.state.replacing`."""
        return state.write_json(path, self)

    @classmethod
    def load(cls, path: Path | str) -> "MaskRecord":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: missing, damaged, no mask, of another version, with unknown or missing keys, or
                contradicting itself.
        """
        data = bounded_json(Path(path))
        if data.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is not a mask",
                found=f"format {data.get('format')!r:.40}",
                fix="give the mask.json that 'unteach guard learn' wrote",
            )
        if data.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has another version of the mask format",
                found=f"version {data.get('version')!r:.40}, this release reads {VERSION}",
                fix="use the release of unteach that wrote it, or a newer one",
            )
        try:
            return strict.structure(data, cls)
        except CheckpointError as error:
            raise CheckpointError(f"{path} cannot be used: {error.problem}", found=error.found) from error
        except Exception as error:  # cattrs raises exception groups of many kinds
            mistakes = cattrs.transform_error(error, path="mask", format_exception=explain)
            raise CheckpointError(f"{path} is not a whole mask", found="; ".join(mistakes[:8])) from error


def check_model(model: Model, shapes: Mapping[str, tuple[int, ...]], digest: str, what: str) -> None:
    """Refuse a model with other tensors or other weights than ``what`` is for.

    Raises:
        ModelError: says which.
    """
    own = {name: tuple(value.shape) for name, value in model.denoiser.named_parameters()}
    if own != dict(shapes):
        odd = sorted(own.items() ^ shapes.items())
        raise ModelError(f"{what} is for another model", found=f"{len(odd)} differences, such as '{odd[0][0]}'")
    found = model.digest(fresh=True)
    if found != digest:
        raise ModelError(
            f"{what} is for other weights than these",
            found=f"digest {found[:12]}, expected {digest[:12]}",
            fix="give the model and the erasure (--erased) that the mask was learned on",
        )


def _component(model: Model, part: str) -> str:
    """Digest of another part of the pipeline as it will be published: from its files, where it was loaded from some."""
    if model.path is None:
        return component_digest({k: InMemory(v) for k, v in getattr(model.pipe, part).state_dict().items()})
    with ExitStack() as stack:
        files = [stack.enter_context(Safetensors(path)) for path in loaded(model, part)]
        return component_digest({name: entry for file in files for name, entry in file.entries.items()})


def _contradictions(record: MaskRecord) -> list[str]:
    problems = []
    names = [tensor.name for tensor in record.tensors]
    if record.format != FORMAT or record.version != VERSION:
        problems.append(f"it calls itself {record.format} {record.version}, not {FORMAT} {VERSION}")
    if not isinstance(record.method.get("name"), str) or not record.method["name"]:
        problems.append("its method has no name")
    if not names or len(set(names)) != len(names):
        problems.append("a tensor is listed twice, or none is")
    if any(not tensor.name or any(size < 0 for size in tensor.shape) for tensor in record.tensors):
        problems.append("a tensor has a bad name or shape")
    if not re.fullmatch(r"[0-9a-f]{64}", record.model.digest):
        problems.append("the model's digest is not 64 hex digits")
    if record.budget.rho is not None and not 0 <= record.budget.rho <= 1:
        problems.append(f"rho is a share, found {record.budget.rho}")
    if record.seed < 0 or record.steps < 0 or record.seconds < 0:
        problems.append("seed, steps and seconds are not negative")
    return problems
