"""What a check against a freeze manifest found."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["EXIT_CODES", "Finding", "Outcome", "Verdict"]

Outcome = Literal["conform", "violates", "undecidable"]
EXIT_CODES: Mapping[Outcome, int] = {"conform": 0, "violates": 1, "undecidable": 3}
"""For the command line; 2 is an error: there was no verdict."""

Kind = Literal[
    "changed", "missing", "extra", "shape", "adapter", "component", "index", "configuration",  # these violate
    "quantised", "merged", "unknown", "unsafe", "uncompared",  # of these, and some configurations, nobody can say
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a candidate from conforming.

    Attributes:
        outcome: what it makes of the verdict.
        kind: a word for programs.
        where: the file or component.
        detail: a sentence.
        tensor: the tensor or module, if it is about one.
        largest: max |new − old| of that tensor.
        changed: share of its elements that changed.
    """

    outcome: Literal["violates", "undecidable"]
    kind: Kind
    where: str
    detail: str
    tensor: str | None = None
    largest: float | None = None
    changed: float | None = None

    def __str__(self) -> str:
        text = f"{self.where}: " + (f"{self.tensor}: " if self.tensor else "") + self.detail
        if self.largest is not None and self.changed is not None:
            text += f" (largest change {self.largest:.3g}, {self.changed:.2%} of its numbers)"
        return _printable(text)


@dataclass(frozen=True)
class Verdict:
    """The answer for one candidate. Violations weigh more than what is undecidable.

    Attributes:
        findings: what keeps it from conforming, violations first; empty when it conforms.
        policy: id of the policy.
        manifest: digest of the manifest.
        signed_by: id of the key whose signature was checked; None when none was.
        files: weight files that were looked at.
        frozen: frozen tensors that the policy has.
        compared: how often a frozen tensor was found bit for bit, by the number format it was found in.
        adapters: modules that carry an adapter.
        stamped: whether the base's weights carry this manifest's digest; else nothing says that it is the current one.
        notes: what was not compared, and what else a reader should know; none of it keeps it from conforming.
        leftovers: a trainer's files (optimizer states and the like) that no loader of a model reads; never opened.
    """

    findings: tuple[Finding, ...]
    policy: str
    manifest: str
    signed_by: str | None
    files: int
    frozen: int
    compared: dict[str, int] = field(default_factory=dict)
    adapters: int = 0
    stamped: bool = False
    notes: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst of the findings, "conform" without any."""
        found = {finding.outcome for finding in self.findings}
        return "violates" if "violates" in found else "undecidable" if found else "conform"

    @property
    def exit_code(self) -> int:
        """See :data:`EXIT_CODES`."""
        return EXIT_CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        for finding in findings:  # JSON has no infinity
            if finding["largest"] == math.inf:
                finding["largest"] = "infinite"
        return {"outcome": self.outcome, "exit_code": self.exit_code, **asdict(self), "findings": findings}

    def text(self, most: int = 20) -> str:
        """For people: the outcome, what was found (``most`` lines of it), what was checked."""
        lines = [self.outcome.upper()]
        lines += [f"  {finding.outcome}: {finding}" for finding in self.findings[:most]]
        if len(self.findings) > most:
            lines.append(f"  and {len(self.findings) - most} more")
        casts = ", ".join(f"{count} as {cast}" for cast, count in sorted(self.compared.items())) or "none"
        lines.append(f"policy {self.policy} (manifest {self.manifest[:12]}), {self.frozen} frozen tensors")
        lines.append(f"frozen tensors found bit for bit: {casts}; adapters on {self.adapters} modules")
        base = "stamped with this manifest" if self.stamped else _UNSTAMPED
        lines.append(f"base: {base}")
        signed = f"key {self.signed_by[:12]}" if self.signed_by else "NOT CHECKED: anyone could have made this manifest"
        lines.append(f"signature: {signed}")
        lines += [f"note: {_printable(note)}" for note in self.notes[:most]]
        if len(self.notes) > most:
            lines.append(f"and {len(self.notes) - most} more notes")
        if self.leftovers:
            shown = ", ".join(self.leftovers[:6]) + (", …" if len(self.leftovers) > 6 else "")
            lines.append(_printable(f"{len(self.leftovers)} files of a trainer, not opened: {shown}"))
            lines.append("  no model needs them: delete them, or publish without them")
        return "\n".join(lines)


_UNSTAMPED = "NOT STAMPED: nothing in it says that this is its publisher's current manifest, and not an older one"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
