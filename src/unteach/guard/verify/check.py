"""Check anyone's checkpoint or adapter against a freeze manifest: conform, violates or undecidable.

What is judged is what a loader would load. Every file of weights in the candidate is looked at. A frozen tensor must
be there bit for bit, or as the manifest's 16-bit cast of it; nothing may be added that could train in its place
(freezeasguard §6.2); the component of a pipeline must be there whole. Tensors are read piece by piece, so the memory
needed does not grow with the model. Nothing is unpickled, imported or run.
"""

import json
import reprlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unteach.errors import CheckpointError, ConfigError, UnteachError
from unteach.guard import signing
from unteach.guard.manifest import FreezeManifest, FrozenTensor, stamped
from unteach.guard.verify import peft_config
from unteach.guard.verify.adapters import AdapterCheck
from unteach.guard.verify.collect import Found, WeightSet, collect
from unteach.guard.verify.components import compare_component
from unteach.guard.verify.folders import FolderCheck
from unteach.guard.verify.hashes import compare, is_component, matches
from unteach.guard.verify.kinds import CHECKPOINT
from unteach.guard.verify.names import companion, compvis, fused, vae_compvis
from unteach.guard.verify.reader import FLOATS, Entry
from unteach.guard.verify.reference import Reference
from unteach.guard.verify.verdict import Finding, Verdict

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
_BASE_LAYER = ".base_layer."
_STATES = {"model.safetensors", *(f"model_{k}.safetensors" for k in range(1, 10))}


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
    try:
        return _verdict(policy, Path(base), Path(candidate), signed)
    except UnteachError:
        raise
    except Exception as error:  # whatever files can provoke that was not thought of
        found = f"{type(error).__name__}: {reprlib.repr(str(error))}"
        raise CheckpointError("the files could not be read to their end: there is no verdict", found=found) from error


def _verdict(policy: FreezeManifest, base: Path, candidate: Path, signed: str | None) -> Verdict:
    with ExitStack() as stack:
        reference = Reference(policy, collect(base, stack, trusted=True), base)
        found = collect(candidate, stack)
        check = _Check(reference, found)
        for part in found.sets:
            check.weights(part)
        if not found.sets and not found.findings:
            raise CheckpointError(f"{candidate} holds no weights", fix="give a safetensors file or a model's folder")
        check.beside()
        if not check.relevant and not check.findings:
            detail = f"holds neither a '{policy.component}' nor an adapter for it"
            check.add("undecidable", "unknown", candidate.name, detail)
        findings = sorted(check.findings, key=lambda finding: finding.outcome != "violates")
        counts = (len(found.files), policy.budget.frozen_tensors, check.compared, len(check.adapters.modules))
        told = reference.stamped, tuple(dict.fromkeys(check.folders.notes)), found.leftovers
        return Verdict(tuple(findings), policy.policy, policy.digest(), signed, *counts, *told)


class _Check:
    """Collects findings over all sets of weights of a candidate."""

    def __init__(self, reference: Reference, found: Found) -> None:
        self.reference, self.policy, self.found = reference, reference.policy, found
        self.rows = {tensor.name: tensor for tensor in self.policy.tensors}
        self.findings: list[Finding] = list(found.findings)
        self.compared: dict[str, int] = {}
        self.adapters = AdapterCheck(self.policy, reference.tensors, self.add, self.frozen)
        self.folders = FolderCheck(found, reference, self.add)
        self.relevant = False
        self.judged: dict[str, str] = {}
        """Folder → the part of the pipeline that its weights were compared as."""
        self.whole: dict[str, bool] = {}
        """Folder → whether it holds the component under a name that loaders read."""
        self.only_adapters: dict[str, bool] = {}
        theirs = compvis(self.rows)
        self.compvis = {_UNET + other: name for name, other in theirs.items()}
        self.ema = {f"{_EMA}diffusion_model{other.replace('.', '')}": name for name, other in theirs.items()}

    def add(self, outcome: str, kind: str, where: str, detail: str, tensor: str | None = None, **more: float) -> None:
        self.findings.append(Finding(outcome, kind, where, detail, tensor, **more))  # type: ignore[arg-type]

    def weights(self, part: WeightSet) -> None:
        """One file, or all shards of one."""
        self._stamp(part)
        name = "" if part.alone else self.folders.part(part.folder)
        own = name == self.policy.component
        ours = any(key in self.rows for key, _ in part.entries)
        known = ours or any(key in self.compvis for key, _ in part.entries)
        adapters = False
        if not own and (name in self.reference.parts or name in self.policy.components):
            self.judged[part.folder] = name
            self.component(name, part.entries, part.label)
        elif own or (ours and part.named_as_model and not self._in_checkpoint(part)):
            self.relevant = True
            self.judged[part.folder] = self.policy.component
            self.whole[part.folder] = self.whole.get(part.folder, False) or part.loaded
            self.full(part, exact=True)
        elif not part.entries:
            self.add("undecidable", "unknown", part.label, "holds no tensor: there is nothing to compare")
        elif self._is_delta(part):
            self.relevant = True
            self.delta(part)
        elif self._in_checkpoint(part) and any(_BASE_LAYER in key for key, _ in part.entries):
            self.relevant = True
            self._state(part)
        elif known:
            self.relevant = True
            self.full(part)
        elif self.adapters.any(part):
            self.relevant = adapters = True
            self.adapter(part)
            if part.named_as_model:
                detail = "an adapter under a name that loaders take for a whole model's weights; rename it"
                self.add("undecidable", "unknown", part.label, detail)
        elif name and not self.reference.pipeline:
            detail = f"the base given has no '{name}' to compare with; give the whole pipeline as the base"
            self.add("undecidable", "uncompared", part.label, detail)
        else:
            detail = f"{len(part.entries)} tensors, none of them the base's, and no adapter for it: an extra component"
            self.add("violates", "component", part.label, detail)
        self.only_adapters[part.folder] = adapters and self.only_adapters.get(part.folder, True)

    def beside(self) -> None:
        """What lies beside the weights."""
        self.folders.pipelines(self.whole)
        self.folders.configurations(self.judged)
        self.folders.adapter_configs(self.only_adapters, self.adapters.finder.modules)

    def adapter(self, part: WeightSet) -> None:
        """A file of adapters, and the settings in its metadata."""
        self.adapters.check(part)
        modules, frozen = self.adapters.finder.modules, set(self.policy.frozen)
        for settings, problem in peft_config.in_metadata(part.metadata, self.policy.component):
            for each in [problem] if problem else peft_config.problems(settings, modules, frozen):
                self.folders.settings(each, part.label)

    def _in_checkpoint(self, part: WeightSet) -> bool:
        """Whether it is what accelerate saves of the trained network, directly in a trainer's checkpoint."""
        folder = part.folder.rpartition("/")[2] or self.found.root
        return not part.alone and bool(CHECKPOINT.fullmatch(folder)) and part.label.rpartition("/")[2] in _STATES

    def _state(self, part: WeightSet) -> None:
        """A network with adapters in it, as accelerate saves it: the network's tensors, and the adapters'."""
        plain: list[tuple[str, Entry]] = []
        added: list[tuple[str, Entry]] = []
        for key, entry in part.entries:
            name = key.replace(_BASE_LAYER, ".")
            (plain if name in self.rows or not self.adapters.finder.targets(key) else added).append((name, entry))
        self.full(replace(part, chosen=tuple(plain)))
        if added:
            self.adapters.check(replace(part, chosen=tuple(added)))

    def _is_delta(self, part: WeightSet) -> bool:
        """Whether it is a change of weights. In a pipeline, or where a loader takes it for weights, it is none."""
        if part.folder in self.found.pipelines or part.named_as_model or len(part.entries) >= len(self.rows):
            return False
        return _says_delta(part)

    def _stamp(self, part: WeightSet) -> None:
        stamp = stamped(part.metadata)
        if stamp is not None and stamp != self.policy.digest():
            self.folders.notes.append(f"{part.label} is stamped with another manifest ({stamp[:12]})")

    def full(self, part: WeightSet, *, exact: bool = False) -> None:
        """A checkpoint with the component's tensors in it; ``exact`` where a loader looks for the names as they are."""
        copies: dict[str, list[Entry]] = {}
        other: dict[str, list[tuple[str, Entry]]] = {}
        packed: set[str] = set()
        single = not exact and any(key in self.compvis for key, _ in part.entries)
        stored = {key: entry.dtype for key, entry in part.entries}
        vae = self._vae_names() if single else {}
        for key, entry in part.entries:
            name = key if key in self.rows or exact else self.compvis.get(key) or self.ema.get(key)
            if name in self.rows:
                copies.setdefault(name, []).append(entry)
            elif not exact and (names := fused(key, self.rows)):
                self._split(key, entry, names, copies, part.label)
            elif (stem := companion(key, {**self.rows, **self.compvis})) and stored.get(stem) not in FLOATS:
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
                self.tensor(row, entry, part, packed=row.name in packed, exact=exact)
        for name, entries in other.items():
            self.component(name, entries, part.label)

    def tensor(
        self, row: FrozenTensor, entry: Entry, part: WeightSet, *, packed: bool = False, exact: bool = False
    ) -> None:
        """One tensor of the component as the candidate has it."""
        plain = entry.dtype in FLOATS
        if entry.shape != row.shape if exact else _trimmed(entry.shape) != _trimmed(row.shape):
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


def _says_delta(part: WeightSet) -> bool:
    try:
        record = json.loads(part.metadata.get("unteach", ""))
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("format") == "unteach-delta"
