"""Check anyone's checkpoint or adapter against a freeze manifest: conform, violates or undecidable.

Every file of weights in the candidate is looked at. A frozen tensor must be there bit for bit, or as the manifest's
16-bit cast of it; nothing may be added that could train in its place (freezeasguard §6.2). Tensors are read piece by
piece, so the memory needed does not grow with the model. Nothing is unpickled, imported or run.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from unteach.errors import CheckpointError, ConfigError
from unteach.guard import signing
from unteach.guard.adapters import AdapterCheck
from unteach.guard.candidate import Found, WeightSet, collect
from unteach.guard.components import compare_component
from unteach.guard.files import FLOATS, Entry
from unteach.guard.hashes import compare, is_component, matches, model_digest
from unteach.guard.manifest import FreezeManifest, FrozenTensor, stamped
from unteach.guard.names import companion, compvis, fused, vae_compvis
from unteach.guard.verdict import Finding, Verdict

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Reference", "verify"]

_UNET, _EMA, _VAE = "model.diffusion_model.", "model_ema.", "first_stage_model."
_TEXT = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPAQUE = ("cond_stage_model.", "conditioner.")
_SCHEDULE = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "scale_factor",
    "model_ema.decay", "model_ema.num_updates", "denoiser.sigmas",
}  # fmt: skip
_MERGED = ("merge", "recipe")


def verify(
    base: Path | str,
    candidate: Path | str,
    manifest: FreezeManifest | Path | str,
    *,
    signature: "signing.Signature | Path | str | None" = None,
    public_key: "Ed25519PublicKey | Path | str | None" = None,
) -> Verdict:
    """Whether a candidate keeps to a freeze manifest.

    Args:
        base: the published model: a diffusers folder, the folder of its component, or one safetensors file.
        candidate: a diffusers folder or its component's, a single file (diffusers' or CompVis names), a LoRA file
            (diffusers, kohya, PEFT), a PEFT folder, or a weight delta of this library.
        manifest: the policy, or its file.
        signature, public_key: the manifest's signature and the publisher's key; both or none.

    Returns:
        The verdict, with every finding.

    Raises:
        CheckpointError: a file is missing or damaged, the manifest is not of this base, or the signature is not this
            manifest's by this key. Then there is no verdict.
        ConfigError: a signature without a key, or a key without a signature.
        MissingExtraError: a signature is to be checked and ``cryptography`` is not installed.
    """
    policy = manifest if isinstance(manifest, FreezeManifest) else FreezeManifest.load(manifest)
    if (signature is None) != (public_key is None):
        raise ConfigError("a signature is checked with the publisher's public key", fix="give both, or neither")
    signed = None
    if signature is not None and public_key is not None:
        signed = signing.verify(policy, signature, public_key)
    with ExitStack() as stack:
        reference = Reference(policy, collect(Path(base), stack, trusted=True), Path(base))
        found = collect(Path(candidate), stack)
        check = _Check(reference)
        check.findings += found.findings
        for part in found.sets:
            check.weights(part)
        if not found.sets and not found.findings:
            raise CheckpointError(f"{candidate} holds no weights", fix="give a safetensors file or a model's folder")
        if not check.relevant and not check.findings:
            detail = f"holds neither a '{policy.component}' nor an adapter for it"
            check.add("undecidable", "unknown", Path(candidate).name, detail)
        findings = sorted(check.findings, key=lambda finding: finding.outcome != "violates")
        counts = (len(found.files), policy.budget.frozen_tensors, check.compared, len(check.adapters.modules))
        return Verdict(tuple(findings), policy.policy, policy.digest(), signed, *counts)


class Reference:
    """The base, known to be the one that the manifest is of.

    Attributes:
        policy: the manifest.
        tensors: the component's tensors.
        parts: other components → their sets of weights (several when there are variants).
        pipeline: whether the base is a whole pipeline, so that a component which it lacks is an extra one.

    Raises:
        CheckpointError: the manifest is not of this base.
    """

    def __init__(self, policy: FreezeManifest, found: Found, path: Path) -> None:
        self.policy = policy
        inside = [part for part in found.sets if part.folder == policy.component]
        self.pipeline = (path / "model_index.json").is_file()
        self.tensors = self._chosen(inside or [part for part in found.sets if part.folder == ""], path)
        self.parts: dict[str, list[WeightSet]] = {}
        for part in found.sets:
            if part.folder not in ("", policy.component) and "/" not in part.folder:
                self.parts.setdefault(part.folder, []).append(part)
        self._good: set[str] = set()

    def part(self, name: str) -> list[Mapping[str, Entry]]:
        """The base's weights of another component, checked against the manifest if it knows them; empty without."""
        sets: list[Mapping[str, Entry]] = [dict(part.entries) for part in self.parts.get(name, ())]
        wanted = self.policy.components.get(name)
        if sets and wanted is not None and name not in self._good:
            if not any(is_component(tensors, wanted) for tensors in sets):
                raise CheckpointError(
                    f"the manifest is not of this base: its '{name}' is another one",
                    fix="give the pipeline that the manifest was made for",
                )
            self._good.add(name)
        return sets

    def _chosen(self, sets: Sequence[WeightSet], path: Path) -> Mapping[str, Entry]:
        shapes = {tensor.name: tensor.shape for tensor in self.policy.tensors}
        why = f"no weights of '{self.policy.component}'" if not sets else "other tensors than the manifest lists"
        for part in sets:
            tensors = dict(part.entries)
            if {name: entry.shape for name, entry in tensors.items()} != shapes:
                continue
            stamp = stamped(part.metadata)
            if stamp is not None and stamp != self.policy.digest():
                raise CheckpointError(
                    f"the base {path} is stamped with another manifest: this one was swapped or edited",
                    found=f"digest {self.policy.digest()[:12]}, the stamp says {stamp[:12]!r}",
                    fix="use the manifest that the base was published with",
                )
            if model_digest(tensors) == self.policy.model:
                return tensors
            why = "other weights"
        raise CheckpointError(
            f"the manifest is not of this base ({path})", found=why, fix="give the model that the manifest was made for"
        )


class _Check:
    """Collects findings over all sets of weights of a candidate."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.policy = reference, reference.policy
        self.rows = {tensor.name: tensor for tensor in self.policy.tensors}
        self.findings: list[Finding] = []
        self.compared: dict[str, int] = {}
        self.adapters = AdapterCheck(self.policy, reference.tensors, self.add, self.frozen)
        self.relevant = False
        theirs = compvis(self.rows)
        self.compvis = {_UNET + other: name for name, other in theirs.items()}
        self.ema = {f"{_EMA}diffusion_model{other.replace('.', '')}": name for name, other in theirs.items()}

    def add(self, outcome: str, kind: str, where: str, detail: str, tensor: str | None = None, **more: float) -> None:
        self.findings.append(Finding(outcome, kind, where, detail, tensor, **more))  # type: ignore[arg-type]

    def weights(self, part: WeightSet) -> None:
        """One file, or all shards of one."""
        name = part.folder.rpartition("/")[2]
        if name != self.policy.component and (name in self.reference.parts or name in self.policy.components):
            self.component(name, part.entries, part.label)
            return
        known = sum(key in self.rows or key in self.compvis for key, _ in part.entries)
        if _is_delta(part) and len(part.entries) < len(self.rows):  # a full one could be loaded as a checkpoint too
            self.relevant = True
            self.delta(part)
        elif known:
            self.relevant = True
            self.full(part)
        elif self.adapters.any(part):
            self.relevant = True
            self.adapters.check(part)
        elif name and name != self.policy.component and not self.reference.pipeline:
            detail = f"the base given has no '{name}' to compare with; give the whole pipeline as the base"
            self.add("undecidable", "uncompared", part.label, detail)
        else:
            detail = f"{len(part.entries)} tensors, none of them the base's, and no adapter for it: an extra component"
            self.add("violates", "component", part.label, detail)

    def full(self, part: WeightSet) -> None:
        """A checkpoint with the component's tensors in it."""
        copies: dict[str, list[Entry]] = {}
        other: dict[str, list[tuple[str, Entry]]] = {}
        packed: set[str] = set()
        single = any(key in self.compvis for key, _ in part.entries)
        vae = self._vae_names() if single else {}
        for key, entry in part.entries:
            name = key if key in self.rows else self.compvis.get(key) or self.ema.get(key)
            if name is not None:
                copies.setdefault(name, []).append(entry)
            elif names := fused(key, self.rows):
                self._split(key, entry, names, copies, part.label)
            elif stem := companion(key, {**self.rows, **self.compvis}):
                packed.add(self.compvis.get(stem, stem))
            elif single and key in _SCHEDULE:
                continue
            elif single and key.startswith(_VAE):
                bare = key.removeprefix(_VAE)
                other.setdefault("vae", []).append((vae.get(bare, bare), entry))
            elif single and (head := next((h for h in _TEXT if key.startswith(h)), None)):
                other.setdefault("text_encoder", []).append((key.removeprefix(head), entry))
            elif single and key.startswith(_OPAQUE):
                other.setdefault("text encoder", []).append((key, entry))
            else:
                self._extra(key, part.label)
        for row in self.policy.tensors:
            if row.name not in copies and row.name not in packed:
                self.add("violates", "missing", part.label, "is not there: removed or renamed", row.name)
            elif row.name in packed and row.frozen:
                detail = "is frozen and was quantised, so its bits cannot be compared"
                self.add("undecidable", "quantised", part.label, detail, row.name)
            for entry in copies.get(row.name, ()):
                self.tensor(row, entry, part, packed=row.name in packed)
        for name, entries in other.items():
            self.component(name, entries, part.label)

    def tensor(self, row: FrozenTensor, entry: Entry, part: WeightSet, *, packed: bool = False) -> None:
        """One tensor of the component as the candidate has it."""
        plain = entry.dtype in FLOATS
        if _trimmed(entry.shape) != _trimmed(row.shape):
            if plain:
                detail = f"has shape {entry.shape}, the base's is {row.shape}: of another base?"
                self.add("violates", "shape", part.label, detail, row.name)
                return
        elif plain:
            if row.frozen:
                self.frozen(row, entry, part)
            return
        if row.frozen and not packed:
            detail = f"is frozen and was quantised ({entry.dtype}), so its bits cannot be compared"
            self.add("undecidable", "quantised", part.label, detail, row.name)

    def frozen(self, row: FrozenTensor, entry: Entry, part: WeightSet) -> None:
        """Compare a frozen tensor with its hashes; when it is none of its casts, say how far it moved."""
        cast = matches(entry, row.hashes)
        if cast is not None:
            self.compared[cast] = self.compared.get(cast, 0) + 1
            return
        gap = compare(self.reference.tensors[row.name], entry)
        far = {"largest": gap.largest, "changed": gap.changed}
        if gap.rounding and any(word in key.lower() for key in part.metadata for word in _MERGED):
            detail = "is frozen and differs by rounding alone in a file that calls itself a merge: merged"
            self.add("undecidable", "merged", part.label, detail, row.name, **far)
        else:
            self.add("violates", "changed", part.label, "is frozen and was changed", row.name, **far)

    def delta(self, part: WeightSet) -> None:
        """A weight delta of this library: a frozen tensor must be absent, or all zero."""
        for key, entry in part.entries:
            row = self.rows.get(key)
            if row is None:
                self._extra(key, part.label)
            elif entry.shape != row.shape:
                self.add("violates", "shape", part.label, f"has shape {entry.shape}, the base's is {row.shape}", key)
            elif row.frozen and entry.type is None:
                self.add("undecidable", "quantised", part.label, f"is frozen, and {entry.dtype} cannot be read", key)
            elif row.frozen and any(bool((piece != 0).any()) for piece in entry.pieces()):
                self.add("violates", "changed", part.label, "is frozen and the delta changes it", key)

    def component(self, name: str, entries: Sequence[tuple[str, Entry]], where: str) -> None:
        """Another part of the pipeline: it must be the base's."""
        if name == "text encoder":
            detail = "a text encoder in a layout that is not compared here; give a diffusers folder"
            self.add("undecidable", "uncompared", where, detail)
            return
        base = self.reference.part(name)
        wanted = self.policy.components.get(name)
        if base:
            self.findings += compare_component(name, base, entries, where)
        elif wanted is not None and _readable(entries) and is_component(dict(entries), wanted):
            return
        elif self.reference.pipeline and wanted is None:
            self.add("violates", "component", where, f"an extra component: the base has no '{name}'")
        else:
            detail = f"the base given has no '{name}' to compare with; give the whole pipeline as the base"
            self.add("undecidable", "uncompared", where, detail)

    def _vae_names(self) -> dict[str, str]:
        sets = self.reference.parts.get("vae", ())
        return {theirs: ours for part in sets for ours, theirs in vae_compvis(dict(part.entries)).items()}

    def _split(
        self, key: str, entry: Entry, names: tuple[str, ...], copies: dict[str, list[Entry]], where: str
    ) -> None:
        """Take a fused projection apart: its parts lie one below the other."""
        sizes = [self.rows[name].shape[0] if self.rows[name].shape else 0 for name in names]
        fits = entry.shape == (sum(sizes), *self.rows[names[0]].shape[1:]) and entry.dtype in FLOATS
        if not fits or sum(sizes) == 0:
            self.add("violates", "shape", where, f"a fused projection of shape {entry.shape} does not fit", key)
            return
        begin = 0
        for name, size in zip(names, sizes, strict=True):
            copies.setdefault(name, []).append(entry.rows(begin, size))
            begin += size

    def _extra(self, key: str, where: str) -> None:
        if self.adapters.finder.targets(key):
            self.add("violates", "adapter", where, "an adapter inside the checkpoint", key)
        else:
            self.add("violates", "extra", where, "the base has no such tensor: added or renamed", key)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end: a 1×1 convolution and a linear layer hold the same numbers."""
    kept = len(shape)
    while kept > 1 and shape[kept - 1] == 1:
        kept -= 1
    return shape[:kept]


def _readable(entries: Sequence[tuple[str, Entry]]) -> bool:
    return all(entry.type is not None for _, entry in entries)


def _is_delta(part: WeightSet) -> bool:
    try:
        record = json.loads(part.metadata.get("unteach", ""))
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("format") == "unteach-delta"
