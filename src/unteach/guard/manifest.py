"""The freeze manifest: which tensors of a published model must stay as they are, by name, shape and hash.

One JSON file beside the weights. It names the model it is of, the policy, the budget in tensors and in parameters, and
for every tensor whether it is frozen, its soft score, and, when frozen, the hash of its bytes in fp32, fp16 and bf16,
so that a cast checkpoint can be checked too. Signing and checking checkpoints are not written yet (issue 4).
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs
import torch
from torch import Tensor

from unteach.core import state
from unteach.errors import CheckpointError, DataError

FORMAT = "unteach-freeze-manifest"
VERSION = 1
CASTS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the model.

    Attributes:
        shape: its shape.
        frozen: it must stay as it is.
        score: soft mask in [0, 1]; None when the choice had none.
        hashes: of a frozen tensor: "float32", "float16", "bfloat16" to SHA-256 of its bytes in that cast.
    """

    shape: tuple[int, ...]
    frozen: bool
    score: float | None = None
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FreezeManifest:
    """See the module. ``tensors`` has every tensor of the component, frozen or not, by its canonical name.

    Attributes:
        model: digest over all tensors of the component (names, shapes, bytes).
        component: part of the pipeline, such as "unet".
        policy: name of the policy, for people.
        tensors: name to entry.
        provenance: what made the choice: method, seed, digests of data; plain data.
    """

    model: str
    component: str
    policy: str
    tensors: dict[str, Entry]
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        frozen: Collection[str],
        *,
        policy: str,
        component: str = "unet",
        scores: Mapping[str, float] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> "FreezeManifest":
        """The manifest of these weights.

        Raises:
            DataError: a frozen name that is not among the tensors.
        """
        if unknown := sorted(set(frozen) - set(tensors)):
            raise DataError(
                "a manifest can freeze only tensors that the model has",
                found=f"{len(unknown)} unknown names, such as {unknown[0]}",
                fix="use the names of the denoiser's parameters",
            )
        keep = set(frozen)
        entries = {
            name: Entry(
                shape=tuple(value.shape),
                frozen=name in keep,
                score=None if scores is None else float(scores[name]),
                hashes=casts(value) if name in keep else {},
            )
            for name, value in tensors.items()
        }
        return cls(
            model=state.digest(tensors),
            component=component,
            policy=policy,
            tensors=entries,
            provenance=dict(provenance or {}),
        )

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the manifest's order."""
        return tuple(name for name, entry in self.tensors.items() if entry.frozen)

    @property
    def budget(self) -> dict[str, int]:
        """Counts: "frozen_tensors", "tensors", "frozen_parameters", "parameters"."""
        sizes = {name: torch.Size(entry.shape).numel() for name, entry in self.tensors.items()}
        return {
            "frozen_tensors": len(self.frozen),
            "tensors": len(sizes),
            "frozen_parameters": sum(sizes[name] for name in self.frozen),
            "parameters": sum(sizes.values()),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the format's name and version and the budget for a reader."""
        plain: dict[str, Any] = _converter.unstructure(self)
        return {"format": FORMAT, "version": VERSION, "budget": self.budget, **plain}

    def digest(self) -> str:
        """Of everything in it."""
        return state.fingerprint(self.to_json())

    def save(self, path: Path | str) -> Path:
        """Write it as JSON, whole or not at all."""
        return state.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "FreezeManifest":
        """Read what :meth:`save` wrote.

        Raises:
            DataError: missing, not a manifest, newer, unknown keys, or a budget that is not that of its tensors.
        """
        try:
            data = state.read_json(path)
        except CheckpointError as error:
            raise DataError(error.problem, found=error.found, fix=error.fix or "check the path") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{path} is not a freeze manifest", fix="check the path")
        if data.get("version") != VERSION:
            raise DataError(f"{path} is a freeze manifest of another version", found=data.get("version"))
        budget = data.pop("budget", None)
        del data["format"], data["version"]
        try:
            made = _converter.structure(data, cls)
        except Exception as error:  # cattrs raises exception groups of many kinds
            mistakes = cattrs.transform_error(error, path="manifest")
            raise DataError(f"{path}: {len(mistakes)} mistake(s): " + "; ".join(mistakes)) from error
        if budget != made.budget:
            raise DataError(f"{path}: the budget is not that of its tensors", found=budget, fix="do not edit manifests")
        return made


def casts(value: Tensor) -> dict[str, str]:
    """SHA-256 of a tensor's bytes in each cast."""
    found = {}
    for name, dtype in CASTS.items():
        flat = value.detach().to("cpu", dtype).contiguous().reshape(-1)
        found[name] = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


_converter = cattrs.Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})
