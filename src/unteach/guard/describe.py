"""In words, for a terminal: a freeze policy, and the pictures that one is made from."""

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from unteach.core.text import aligned, size
from unteach.diffusion.domains import ROLES, Domains
from unteach.guard.budget import layer_type
from unteach.guard.manifest import FreezeManifest, FrozenTensor
from unteach.guard.methods.relearn import ADVISED

__all__ = ["describe", "pictures", "summary"]


def pictures(domains: Domains, trains: bool) -> str:
    """What pictures there are; and whether they are enough, where a guard trains on them."""
    rows: list[tuple[str, ...]] = [("domain", "kind", *ROLES)]
    for kind, side in (("illegal", domains.illegal), ("innocent", domains.innocent)):
        rows += [(d.name, kind, *(str(len(d.roles[role])) for role in ROLES)) for d in side]
    lines = [aligned(rows), "  (pictures of each role; attack and probe are kept for `unteach attack`)"]
    few = [f"{d.name} has {count}" for d in domains.every if (count := len(set(d.ids))) < ADVISED]
    if trains and few:
        lines.append(
            f"  few pictures: {', '.join(few)}; {ADVISED} or more a domain are advised, because the relearned model "
            "trains on the user's alone and must get better on the publisher's"
        )
    return "\n".join(lines)


def describe(manifest: FreezeManifest, tensors: int = 5) -> str:
    """Everything that a reader may want to know, as lines of a terminal.

    Args:
        manifest: the policy.
        tensors: how many of the most and of the least scored tensors are listed.
    """
    parts = [
        f"{summary(manifest)}\n"
        f"  of: the {manifest.component} of a model of family {manifest.family}, digest {manifest.model[:12]}\n"
        f"  manifest {manifest.digest()[:12]}, made {manifest.created}",
        _grouped(manifest, "part", _part),
        _grouped(manifest, "kind of layer", lambda t: layer_type(t.name, len(t.shape))),
    ]
    scored = sorted((t for t in manifest.tensors if t.score is not None), key=lambda t: (-(t.score or 0.0), t.name))
    if scored and tensors > 0:
        count = min(tensors, len(scored) // 2)
        chosen = [*scored[:count], *scored[len(scored) - count :]]
        rows = [(f"{t.score:.4f}", "frozen" if t.frozen else "free", t.name) for t in chosen]
        parts.append(aligned([("score", "", f"the {count} most and the {count} least scored tensors"), *rows]))
    made = manifest.provenance
    facts: dict[str, Any] = {
        key: made.method[key] for key in ("name", "illegal", "innocent", "erased") if key in made.method
    }
    settings = {key: value for key, value in made.method.items() if key not in facts}
    facts |= {"settings": settings, "seeds": made.seeds, "with": made.versions}
    facts |= {f"data, {name}": digest[:12] for name, digest in made.data.items()}
    facts |= {f"vouches for the {name}": digest[:12] for name, digest in manifest.components.items()}
    lines = [
        textwrap.fill(f"{key}: {_short(value)}", 110, initial_indent="  ", subsequent_indent="    ")
        for key, value in facts.items()
        if value
    ]
    return "\n\n".join([*parts, "\n".join(["made by", *lines])])


def summary(manifest: FreezeManifest) -> str:
    """How much is frozen, in a line."""
    b = manifest.budget
    asked = "" if b.rho is None else f" (asked for: {b.rho:g} of the {b.measure})"
    return (
        f"policy {manifest.policy}: {b.frozen_tensors} of {b.tensors} tensors ({b.share_of_tensors:.1%}) and "
        f"{b.share_of_parameters:.1%} of the parameters are frozen{asked}"
    )


def _grouped(manifest: FreezeManifest, title: str, of: Callable[[FrozenTensor], str]) -> str:
    """A table of how much is frozen in each group."""
    groups: dict[str, list[FrozenTensor]] = {}
    for tensor in manifest.tensors:
        groups.setdefault(of(tensor), []).append(tensor)
    rows = [(title, "tensors frozen", "parameters frozen")]
    for name, tensors in groups.items():
        held, total = sum(t.size for t in tensors if t.frozen), sum(t.size for t in tensors)
        share = f"{held / max(total, 1):.0%} of {size(total, '')}"
        rows.append((name, f"{sum(t.frozen for t in tensors)} of {len(tensors)}", share))
    return aligned(rows)


def _part(tensor: FrozenTensor) -> str:
    """down_blocks.0, mid_block, up_blocks.1, or the module at the top."""
    head, *more = tensor.name.split(".")
    return f"{head}.{more[0]}" if head in ("down_blocks", "up_blocks") else head


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
