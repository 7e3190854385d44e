"""FreezeManifest: which tensors of a published model may not be trained, and how to know them again.

A manifest is a JSON file beside the weights. It names every tensor of the model with its shape, says which are frozen
and with which score, and keeps hashes of the frozen ones in the number formats that people save models in, so that a
checkpoint can be checked against it (:mod:`unteach.guard.verify`). It binds nobody by itself (freezeasguard §6).
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
from torch import Tensor, nn

from unteach.core import state
from unteach.core.registry import near
from unteach.errors import CheckpointError, ConfigError, ModelError, NumericsError
from unteach.guard.files import HEADER_LIMIT, PIECE, Safetensors, bounded_json, parse_json
from unteach.guard.hashes import CASTS, InMemory, Readable, cast_hashes, model_digest

__all__ = ["STAMP", "Budget", "FreezeManifest", "FrozenTensor", "Provenance", "stamp", "stamped"]

FORMAT, VERSION = "unteach-freeze-manifest", 1
STAMP = "unteach.freeze_manifest"
"""Key in a safetensors file's metadata under which :func:`stamp` writes a manifest's digest."""

Granularity = Literal["tensor", "module", "block"]
Measure = Literal["tensors", "parameters", "flops"]
_HEX = re.compile(r"[0-9a-f]{64}")
C = TypeVar("C")


@dataclass(frozen=True)
class FrozenTensor:
    """One tensor of the model, frozen or not.

    Attributes:
        name: canonical (diffusers') name relative to the component.
        shape: its sizes.
        frozen: whether fine-tuning may not change it.
        score: what the choice was made by; None when there was none.
        hashes: of a frozen tensor, SHA-256 (hex) of its bytes cast to "fp32", "fp16" and "bf16"; else empty.
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
class Provenance:
    """Where a mask comes from.

    Attributes:
        method: name and settings of what made it, as ``Settings.to_dict`` gives them.
        seeds: every seed that it depends on.
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
class FreezeManifest:
    """A freeze policy for one model. Made by :meth:`from_model` or :meth:`from_readable`; checked when it is made.

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
    format: str = FORMAT
    version: int = VERSION

    def __post_init__(self) -> None:
        problems = list(_contradictions(self))
        if problems:
            raise CheckpointError("the freeze manifest contradicts itself", found="; ".join(problems[:8]))

    @classmethod
    def from_model(
        cls,
        model: nn.Module | Mapping[str, Tensor],
        frozen: Collection[str],
        scores: Mapping[str, float] | None = None,
        **more: Any,
    ) -> "FreezeManifest":
        """The manifest of a component that is in memory: a module (its ``state_dict`` is taken) or its tensors.

        Args:
            model: e.g. ``pipe.unet``, in the precision that it is published in.
            frozen, scores, more: as in :meth:`from_readable`.

        Raises:
            ModelError: tied tensors, an unknown name, or a frozen tensor that is not fp32, fp16 or bf16.
            NumericsError: a frozen value or a score is not finite.
        """
        tensors = model.state_dict() if isinstance(model, nn.Module) else model
        places: dict[int, str] = {}
        for name, tensor in tensors.items():
            other = places.setdefault(tensor.untyped_storage().data_ptr(), name) if tensor.numel() else name
            if other != name and tensor.data_ptr() == tensors[other].data_ptr():
                raise ModelError(
                    "a manifest cannot tell tied tensors apart",
                    found=f"'{other}' and '{name}'",
                    fix="give each its own copy before it is published",
                )
        return cls.from_readable({name: InMemory(tensor) for name, tensor in tensors.items()}, frozen, scores, **more)

    @classmethod
    def from_readable(
        cls,
        tensors: Mapping[str, Readable],
        frozen: Collection[str],
        scores: Mapping[str, float] | None = None,
        *,
        policy: str | None = None,
        family: str = "sd",
        component: str = "unet",
        granularity: Granularity = "tensor",
        measure: Measure = "tensors",
        rho: float | None = None,
        provenance: Provenance | None = None,
        components: Mapping[str, str] | None = None,
        created: str | None = None,
    ) -> "FreezeManifest":
        """The manifest of tensors that are read piece by piece, e.g. ``Safetensors(path).entries``.

        Args:
            tensors: every tensor of the component by its canonical name.
            frozen: names of those that may not be trained.
            scores: name → soft score; tensors without one get None.
            policy: an id; made from the model and the frozen names when None.
            family, component, granularity, components: see :class:`FreezeManifest`.
            measure, rho: the budget that was asked for.
            provenance: what made the mask.
            created: ISO 8601 in UTC; now when None.

        Raises:
            ModelError: an unknown name, or a frozen tensor that is not fp32, fp16 or bf16.
            NumericsError: a frozen value or a score is not finite.
        """
        held, scores = set(frozen), dict(scores or {})
        for name in sorted(held | scores.keys()):
            if name not in tensors:
                raise ModelError(f"the model has no tensor '{name}'", fix=near(name, tensors))
        odd = sorted(name for name, score in scores.items() if not math.isfinite(score))
        if odd:
            raise NumericsError("a manifest's scores must be finite", found=f"'{odd[0]}': {scores[odd[0]]}")
        rows = tuple(
            FrozenTensor(
                name,
                tuple(tensor.shape),
                name in held,
                float(scores[name]) if name in scores else None,
                cast_hashes(name, tensor) if name in held else {},
            )
            for name, tensor in tensors.items()
        )
        digest = model_digest(tensors)
        return cls(
            policy=policy or f"freeze-{state.fingerprint([digest, sorted(held)])[:12]}",
            family=family,
            component=component,
            model=digest,
            granularity=granularity,
            budget=Budget.of(rows, measure, rho),
            tensors=rows,
            provenance=provenance or Provenance(),
            created=created or datetime.now(UTC).isoformat(timespec="seconds"),
            components=dict(components or {}),
        )

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the model's order."""
        return tuple(tensor.name for tensor in self.tensors if tensor.frozen)

    def canonical(self) -> bytes:
        """The bytes that a signature is over: canonical JSON, the same however the file is laid out."""
        return state.canonical(strict.unstructure(self)).encode()

    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`canonical`."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def save(self, path: Path | str) -> Path:
        """Write it as readable JSON, atomically; errors as in :func:`unteach.core.state.replacing`."""
        return state.write_json(path, strict.unstructure(self))

    @classmethod
    def load(cls, path: Path | str) -> "FreezeManifest":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: missing, damaged, not a manifest, of another version, with unknown or missing keys, or
                contradicting itself.
        """
        data = bounded_json(Path(path))
        if data.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a freeze manifest", found=f"format {data.get('format')!r:.40}")
        if data.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has another version of the manifest format",
                found=f"version {data.get('version')!r:.40}, this release reads {VERSION}",
                fix="use the release of unteach that wrote it, or a newer one",
            )
        try:
            return strict.structure(data, cls)
        except CheckpointError as error:
            raise CheckpointError(f"{path} cannot be used: {error.problem}", found=error.found) from error
        except Exception as error:  # cattrs raises exception groups of many kinds
            mistakes = cattrs.transform_error(error, path="manifest", format_exception=explain)
            raise CheckpointError(f"{path} is not a whole freeze manifest", found="; ".join(mistakes[:8])) from error


def stamped(metadata: Mapping[str, str]) -> str | None:
    """The manifest digest in a safetensors file's metadata, None when it was not stamped."""
    return metadata.get(STAMP)


def stamp(weights: Path | str, manifest: FreezeManifest) -> Path:
    """Write the manifest's digest into the metadata of a safetensors file, atomically; no tensor changes a bit.

    The file is copied piece by piece, so this needs its size in free disk space and little memory.

    Raises:
        CheckpointError: the file is damaged or cannot be written; it is then as it was before.
    """
    path = Path(weights).resolve()
    with Safetensors(path) as file:
        length = int.from_bytes(file.read(0, 8), "little")
        header = parse_json(bytes(file.read(8, length)), f"the header of {path}")
        header["__metadata__"] = dict(sorted({**file.metadata, STAMP: manifest.digest()}.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > HEADER_LIMIT:
            raise CheckpointError(f"{path} has no room for a stamp", found=f"a header of {len(text)} bytes")
        mode = path.stat().st_mode & 0o777
        with state.replacing(path) as aside:
            with aside.open("wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for begin in range(8 + length, file.size, PIECE):
                    out.write(file.read(begin, min(PIECE, file.size - begin)))
            with Safetensors(aside):
                pass
        path.chmod(mode)
    return path


def _contradictions(manifest: FreezeManifest) -> list[str]:
    problems = []
    names = [tensor.name for tensor in manifest.tensors]
    if manifest.format != FORMAT or manifest.version != VERSION:
        problems.append(f"it calls itself {manifest.format} {manifest.version}, not {FORMAT} {VERSION}")
    if len(set(names)) != len(names):
        problems.append("a tensor is listed twice")
    if not names:
        problems.append("it lists no tensor")
    digests = {"model": manifest.model, **manifest.components}
    problems += [f"the digest of '{name}' is not 64 hex digits" for name, d in digests.items() if not _HEX.fullmatch(d)]
    if not re.fullmatch(r"[A-Za-z0-9_]+", manifest.component):
        problems.append(f"the component '{manifest.component}' is not a name")
    for tensor in manifest.tensors:
        if not tensor.name or not tensor.name.isprintable() or any(size < 0 for size in tensor.shape):
            problems.append(f"{tensor.name!r} has a bad name or shape")
        wanted = set(CASTS) if tensor.frozen else set()
        if tensor.hashes.keys() != wanted or not all(_HEX.fullmatch(value) for value in tensor.hashes.values()):
            problems.append(f"'{tensor.name}' must have {'hashes for ' + ', '.join(CASTS) if wanted else 'no hashes'}")
    if not problems and manifest.budget != Budget.of(manifest.tensors, manifest.budget.measure, manifest.budget.rho):
        problems.append("the budget does not fit the tensors")
    return problems


def explain(error: BaseException, kind: type | None) -> str:
    """A mistake that :data:`strict` found, in words."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return "unknown key(s) " + ", ".join(sorted(f"{key!r:.80}" for key in error.extra_fields))
    if isinstance(error, KeyError):
        return f"missing key {error}"
    return str(error)


def _exactly(value: Any, kind: type[C]) -> C:
    right = type(value) is kind or (kind is float and type(value) is int)
    if not right or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"must be {kind.__name__}", found=f"{value!r:.80}")
    return kind(value)  # type: ignore[call-arg]


def _optional_float(value: Any, _: Any) -> float | None:
    return None if value is None else _exactly(value, float)


def _is_tuple(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is tuple


def _listed(value: Any, kind: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError("must be a list", found=f"{value!r:.80}")
    return tuple(strict.structure(item, get_args(kind)[0]) for item in value)


strict = cattrs.Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})
"""Reads and writes records without guessing: exact types, no unknown keys."""
for _kind in (str, int, float, bool):
    strict.register_structure_hook(_kind, _exactly)
strict.register_structure_hook_func(lambda kind: kind == float | None, _optional_float)
strict.register_structure_hook_func(_is_tuple, _listed)
