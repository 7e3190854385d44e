"""Compare a component that no policy is about, such as the text encoder, with the base's: it must be the same."""

import re
from collections.abc import Mapping, Sequence

import torch

from unteach.guard.verify.hashes import Difference, compare
from unteach.guard.verify.reader import FLOATS, Entry
from unteach.guard.verify.verdict import Finding

__all__ = ["compare_component"]

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What an autoencoder's attention was called in older releases of diffusers."""


def compare_component(
    name: str, base: Sequence[Mapping[str, Entry]], entries: Sequence[tuple[str, Entry]], where: str
) -> list[Finding]:
    """Findings of the base's variant that the candidate is nearest to; empty when it is one of them, up to a cast."""
    tries = [_against(name, dict(tensors), entries, where) for tensors in base]
    return min(tries, key=lambda findings: (any(f.outcome == "violates" for f in findings), len(findings)))


def _against(name: str, base: dict[str, Entry], entries: Sequence[tuple[str, Entry]], where: str) -> list[Finding]:
    ours = {_canonical(key): entry for key, entry in base.items() if not key.endswith("position_ids")}
    findings: list[Finding] = []
    seen: set[str] = set()
    changed: list[tuple[str, Difference]] = []
    for key, entry in entries:
        if key.endswith("position_ids") and _counting(entry):
            continue
        tensor = _canonical(key)
        seen.add(tensor)
        old = ours.get(tensor)
        if old is None or _squeezed(old.shape) != _squeezed(entry.shape):
            detail = f"'{name}' has a tensor that the base's has not, or in another shape"
            findings.append(Finding("violates", "component", where, detail, key))
        elif entry.dtype not in FLOATS or old.dtype not in FLOATS:
            detail = f"'{name}' was quantised ({entry.dtype}) and cannot be compared"
            findings.append(Finding("undecidable", "quantised", where, detail, key))
        else:
            gap = _nearest(old, entry)
            if gap.changed:
                changed.append((key, gap))
    missing = [key for key in ours if key not in seen]
    if missing:
        detail = f"{len(missing)} tensors of '{name}' are not there: removed or renamed"
        findings.append(Finding("violates", "component", where, detail, missing[0]))
    if changed:
        key, gap = max(changed, key=lambda item: item[1].largest)
        detail = f"'{name}' was changed in {len(changed)} of {len(ours)} tensors, here most"
        findings.append(Finding("violates", "component", where, detail, key, gap.largest, gap.changed))
    return findings


def _nearest(old: Entry, new: Entry) -> Difference:
    """The difference; where there is one, that from the old tensor rounded to 16 bits, if that has none."""
    plain = compare(old, new)
    if plain.changed:
        for via in (torch.float16, torch.bfloat16):
            rounded = compare(old, new, via)
            if not rounded.changed:
                return rounded
    return plain


def _canonical(key: str) -> str:
    key = key.removeprefix("text_model.")
    match = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{match[1]}.{_OLD[match[2]]}.{match[3]}" if match else key


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _counting(entry: Entry) -> bool:
    """Whether a tensor of positions is 0, 1, 2, …, which every loader makes anew."""
    count = (entry.stop - entry.start) // 8
    return (
        entry.dtype == "I64"
        and count <= 4096
        and torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *entry.pieces()]), torch.arange(count))
    )
