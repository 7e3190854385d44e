"""FreezeManifest: which tensors of a published model may not be trained, and how to know them again.

A manifest is a JSON file beside the weights. It names every tensor of the model with its shape, says which are frozen
and with which score, and keeps hashes of the frozen ones in the number formats that people save models in, so that a
checkpoint can be checked against it (:mod:`unteach.guard.verify`). It binds nobody by itself (freezeasguard §6).
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unteach.core import state
from unteach.core.registry import near
from unteach.errors import CheckpointError, ModelError, NumericsError
from unteach.guard.verify.hashes import InMemory, Readable, cast_hashes, model_digest
from unteach.guard.verify.reader import HEADER_LIMIT, JSON_LIMIT, PIECE, Safetensors, parse_json
from unteach.records.base import Record
from unteach.records.mask import Budget, FrozenTensor, Granularity, Mask, Measure, Policy, Provenance

__all__ = ["STAMP", "Budget", "FreezeManifest", "FrozenTensor", "Provenance", "stamp", "stamped"]

STAMP = "unteach.freeze_manifest"
"""Key in a safetensors file's metadata under which :func:`stamp` writes a manifest's digest."""


@dataclass(frozen=True, kw_only=True)
class FreezeManifest(Policy, Record):
    """A freeze policy for one model, as a file; the content and its checks are :class:`unteach.records.mask.Policy`'s.

    Made by :meth:`from_model`, :meth:`from_readable` or, of a mask, :meth:`of`.
    """

    FORMAT, LIMIT, HASHED = "unteach-freeze-manifest", JSON_LIMIT, True

    @classmethod
    def of(cls, policy: Policy) -> "FreezeManifest":
        """The manifest of a mask's policy.

        Raises:
            CheckpointError: it has no hashes, as masks of release 0.1.
        """
        return cls(**vars(policy))

    @classmethod
    def beside(cls, mask: Mask, folder: Path) -> "FreezeManifest":
        """The manifest of a folder's mask, which manifest.json repeats; release 0.1 kept the hashes there alone.

        Raises:
            CheckpointError: there is none, or it is of another mask.
        """
        path, old = folder / "manifest.json", not any(tensor.hashes for tensor in mask.tensors)
        if not old and not path.exists():
            return cls.of(mask.manifest)
        manifest = cls.load(path)
        same = (manifest.frozen, manifest.model) == (mask.frozen, mask.manifest.model)
        if not same or not (old or vars(manifest) == vars(mask.manifest)):
            raise CheckpointError(
                f"{folder} holds a mask and a manifest that do not belong together",
                fix="delete manifest.json and run its 'unteach guard learn' again",
            )
        return manifest

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

    def canonical(self) -> bytes:
        """The bytes that a signature is over: canonical JSON, the same however the file is laid out."""
        return state.canonical(self.to_json()).encode()

    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`canonical`."""
        return hashlib.sha256(self.canonical()).hexdigest()


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
