"""WeightDelta: what a method changed, as data. It can be applied, undone, scaled, merged, saved and exported.

The evaluated model is always *base + delta*: added in float32, then cast to the base's dtype, so that whoever
applies the same file to the same base gets the same bits.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from unteach.core import state
from unteach.core.finding import Finding
from unteach.core.registry import near
from unteach.diffusion import export, lora
from unteach.diffusion.families import Pipeline, families
from unteach.diffusion.model import Model, editable, weights_digest
from unteach.errors import CheckpointError, ConfigError, ModelError, NumericsError
from unteach.records.base import check_heading

FORMAT, VERSION = "unteach-delta", 1
log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Versions of the packages that a delta's numbers depend on."""
    found = {}
    for package in ("unteach", "torch", "diffusers", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _sum(base: Tensor, difference: Tensor, scale: float) -> Tensor:
    """Base + scale · difference in float32, cast back; where the difference is zero no bit changes."""
    step = difference.to(base.device, torch.float32) * scale
    return torch.where(step == 0, base, (base.to(torch.float32) + step).to(base.dtype))


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """Differences of a denoiser's parameters, with their provenance.

    Attributes:
        tensors: difference by parameter name relative to the denoiser, float32, CPU.
        meta: JSON-ready record. Methods write ``method``, ``config``, ``concepts`` and ``seed``; ``base``
            (the digest of the model it was learned on, :meth:`Model.digest`) and ``family`` are needed to
            apply and to export it; ``versions`` is filled in.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def between(
        cls, before: Mapping[str, Tensor], params: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> "WeightDelta":
        """``params − before`` in float32, by name; ``before`` may hold more names.

        Raises:
            ConfigError: a name is missing in ``before``, or shapes differ.
            NumericsError: a difference is not finite.
        """
        tensors = {}
        for name, value in params.items():
            if name not in before:
                raise ConfigError(f"there is no '{name}' among the weights before", fix=near(name, before))
            old, new = before[name].detach(), value.detach()
            if old.shape != new.shape:
                raise ConfigError(f"'{name}' changed its shape", found=f"{tuple(old.shape)} → {tuple(new.shape)}")
            tensors[name] = (new.float() - old.to(new.device).float()).cpu()
            if not bool(torch.isfinite(tensors[name]).all()):
                raise NumericsError(f"the change of '{name}' is not finite")
        return cls(tensors, {"versions": versions(), **meta})

    @property
    def size(self) -> int:
        """Number of parameters covered."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def norm(self) -> float:
        """Euclidean norm over all tensors."""
        return float(sum(tensor.double().square().sum().item() for tensor in self.tensors.values()) ** 0.5)

    @property
    def check(self) -> Finding | None:
        """What the check at the end of the erasure found (``meta["check"]``); None where none was made.

        Raises:
            DataError: the record is damaged.
        """
        record = self.meta.get("check")
        return None if record is None else Finding.from_dict(record, where="the delta's check")

    def apply(
        self,
        to: Model | nn.Module | Pipeline,
        scale: float = 1.0,
        *,
        strict: bool = True,
        allow_other_base: bool = False,
    ) -> "Applied":
        """Add the delta to a model in place.

        Args:
            to: a model, a diffusers pipeline, or a denoiser.
            scale: factor of the delta; 0 changes no bit.
            strict: a name that the denoiser lacks is an error; otherwise it is skipped and listed.
            allow_other_base: apply to weights other than those it was learned on.

        Returns:
            A handle whose ``undo()`` restores the weights bit for bit; as a context manager it does so at the
            end.

        Raises:
            ModelError: the family, a name, a shape or the base does not fit, or the weights are wrapped (a loaded
                LoRA, fused projections). Nothing is changed then.
        """
        to = editable(to)
        module = to.denoiser if isinstance(to, Model) else to
        parameters = dict(module.named_parameters())
        missing = [name for name in self.tensors if name not in parameters]
        if missing and strict:
            raise ModelError(
                f"{len(missing)} of the delta's {len(self.tensors)} tensors are not in this denoiser",
                found=f"first: '{missing[0]}'",
                fix=near(missing[0], parameters),
            )
        chosen = {name: parameters[name] for name in self.tensors if name in parameters}
        for name, parameter in chosen.items():
            if parameter.shape != self.tensors[name].shape:
                raise ModelError(
                    f"the delta's '{name}' has another shape than the denoiser's",
                    found=f"{tuple(self.tensors[name].shape)} against {tuple(parameter.shape)}",
                )
        if not allow_other_base:
            self._check_base(to)
        handle = Applied(self, to, scale, {n: p.detach().clone() for n, p in chosen.items()}, tuple(missing))
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(_sum(parameter, self.tensors[name], scale))
        if isinstance(to, Model):
            to.weights_changed()
        return handle

    def _check_base(self, to: Model | nn.Module) -> None:
        if isinstance(to, Model) and self.meta.get("family") not in (None, to.family):
            raise ModelError(
                f"the delta is for the family '{self.meta['family']}'",
                found=f"a model of family '{to.family}'",
            )
        base = self.meta.get("base")
        if base is None:
            raise ModelError(
                "the delta does not say which base it was learned on (no 'base' in its record)",
                fix="in Python, pass allow_other_base=True if you know that it fits",
            )
        found = to.digest(fresh=True) if isinstance(to, Model) else weights_digest(to)
        if found != base:
            raise ModelError(
                "the delta was learned on other weights than these",
                found=f"base {found[:12]}…, expected {str(base)[:12]}…",
                fix="give the original model in the dtype that it was erased in, without other deltas "
                "(in Python, allow_other_base=True applies it all the same)",
            )

    def scaled(self, scale: float) -> "WeightDelta":
        """The delta times a factor; ``meta["scale"]`` keeps the product of all factors."""
        # The check was made of the delta as it was.
        meta = {key: value for key, value in copy.deepcopy(self.meta).items() if key != "check" or scale == 1}
        meta = {**meta, "scale": self.meta.get("scale", 1.0) * scale}
        return WeightDelta({name: tensor * scale for name, tensor in self.tensors.items()}, meta)

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file, atomically, with the record in its metadata.

        Raises:
            ConfigError: the record is not JSON.
            CheckpointError: the file cannot be written; what stood there before is untouched.
        """
        meta = {**self.meta, "format": FORMAT, "version": VERSION}
        try:
            state.canonical(meta)
        except (TypeError, ValueError) as error:
            raise ConfigError("a delta's record must be JSON", found=error) from error
        return state.save(path, self.tensors, meta)

    @classmethod
    def load(cls, path: Path | str) -> "WeightDelta":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: missing, damaged, not a delta, or of a newer version.
        """
        tensors, meta = state.load(path)
        check_heading(meta, FORMAT, VERSION, str(path))
        wrong = [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]
        if wrong:
            raise CheckpointError(f"{path} is damaged: differences are float32", found=f"'{wrong[0]}' is not")
        return cls(tensors, {key: value for key, value in meta.items() if key not in ("format", "version")})

    def to_lora(self, rank: int, folder: Path | str) -> lora.LoraReport:
        """Write the delta as a LoRA file that ``pipe.load_lora_weights(folder)`` reads.

        Args:
            rank: rank of every factor pair; the best approximation of that rank is taken.
            folder: gets ``pytorch_lora_weights.safetensors``.

        Returns:
            What was lost, per tensor and in total; ``str(report)`` is a table. Biases and norms have no LoRA
            form.

        Raises:
            ConfigError: the rank is below 1, or no tensor can be expressed.
            CheckpointError: the record names no known family, or the file cannot be written.
        """
        family = str(self.meta.get("family"))
        if family not in families:
            raise CheckpointError(
                "a LoRA file needs the model family of the delta",
                found=f"family {family}",
                fix=f"set meta['family'] to one of {', '.join(families.names())}",
            )
        return lora.export(self.tensors, rank, Path(folder), families[family].denoiser, self.meta)

    def export(self, model: Model, folder: Path | str, *, allow_other_base: bool = False) -> Path:
        """Write base + delta as a complete diffusers folder with the record in ``unteach.json``.

        Everything that the model's own folder holds comes back with its file names, variants and number formats, also
        the components that are not loaded here (:func:`unteach.diffusion.export.write`); what does not is logged. The
        model is as before afterwards. The folder appears whole or not at all; it names no local paths.

        Raises:
            ConfigError: the folder exists and is not empty.
            ModelError: the delta does not fit the model.
            CheckpointError: it cannot be written.
        """
        folder = Path(folder)
        with self.apply(model, allow_other_base=allow_other_base), export.appearing(folder) as aside:
            left = export.write(model, aside)
            state.write_json(aside / "unteach.json", {**self.meta, "format": FORMAT, "version": VERSION})
        if left:
            log.warning("not written again from %s: %s", model.path, ", ".join(left))
        return folder


class Applied:
    """An applied delta: remembers the weights as they were.

    Attributes:
        skipped: names that the denoiser did not have (only with ``strict=False``).
    """

    def __init__(
        self,
        delta: WeightDelta,
        to: Model | nn.Module,
        scale: float,
        originals: dict[str, Tensor],
        skipped: tuple[str, ...],
    ) -> None:
        self.skipped = skipped
        self._delta, self._to, self._scale = delta, to, scale
        self._originals: dict[str, Tensor] | None = originals

    @property
    def active(self) -> bool:
        """Whether the delta is still applied, as far as this handle knows."""
        return self._originals is not None

    def undo(self, *, force: bool = False) -> None:
        """Restore the weights bit for bit. A second call does nothing.

        Args:
            force: restore even if the weights were changed since.

        Raises:
            ConfigError: the weights were changed since, by training or by another delta, and not ``force``.
        """
        if self._originals is None:
            return
        module = self._to.denoiser if isinstance(self._to, Model) else self._to
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, original in self._originals.items():
                expected = _sum(original, self._delta.tensors[name], self._scale)
                if not force and not torch.equal(parameters[name].cpu(), expected.cpu()):
                    raise ConfigError(
                        f"'{name}' was changed after the delta was applied",
                        fix="undo what was applied later first, or pass force=True to drop those changes",
                    )
            for name, original in self._originals.items():
                parameters[name].copy_(original)
        self._originals = None
        if isinstance(self._to, Model):
            self._to.weights_changed()

    def __enter__(self) -> "Applied":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo(force=True)


def merge(deltas: Sequence[WeightDelta], weights: Sequence[float] | None = None) -> WeightDelta:
    """The weighted sum of deltas that were learned on the same base; ``meta["of"]`` keeps their records.

    Args:
        deltas: at least one; their tensors may overlap or not.
        weights: one factor each; None is all ones.

    Raises:
        ConfigError: nothing to merge, or another number of weights.
        ModelError: bases, families or shapes differ.
    """
    if not deltas:
        raise ConfigError("there are no deltas to merge")
    factors = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(deltas):
        raise ConfigError("merging needs one weight a delta", found=f"{len(factors)} for {len(deltas)}")
    first = deltas[0].meta
    tensors: dict[str, Tensor] = {}
    for delta, factor in zip(deltas, factors, strict=True):
        for key in ("base", "family"):
            if delta.meta.get(key) != first.get(key):
                raise ModelError(
                    f"the deltas do not share their {key}",
                    found=f"{first.get(key)} and {delta.meta.get(key)}",
                )
        for name, tensor in delta.tensors.items():
            if name in tensors and tensors[name].shape != tensor.shape:
                raise ModelError(f"the deltas disagree on the shape of '{name}'")
            part = tensor * factor
            tensors[name] = tensors[name] + part if name in tensors else part
    meta: dict[str, Any] = {key: first[key] for key in ("base", "family") if key in first}
    return WeightDelta(
        tensors,
        {
            **meta,
            "method": "merge",
            "weights": factors,
            "of": [copy.deepcopy(delta.meta) for delta in deltas],
            "versions": versions(),
        },
    )
