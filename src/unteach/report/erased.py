"""The part of a page about an erasure that was not evaluated: what its delta says of itself, and its check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from unteach.core import run, state
from unteach.core.finding import Finding
from unteach.errors import CheckpointError
from unteach.report import terms
from unteach.report.section import Kind, Section, Thresholds

FORMAT = "unteach-delta"
LABELS = (("family", "Model family"), ("base", "Base digest"), ("dtype", "Number format"), ("seed", "Seed"))
COUNTS = (("pairs", "pairs"), ("contexts", "pairs with random words around the name"), ("kept", "to keep"))


@dataclass(frozen=True, kw_only=True)
class Erased:
    """A delta's record (``delta.safetensors``), without its weights.

    Attributes:
        name: its folder's name.
        meta: what the method wrote of itself.
        tensors, parameters: how many it moves.
        seconds: that went into it; None where it is not known.
    """

    name: str
    meta: dict[str, Any]
    tensors: int
    parameters: int
    seconds: float | None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            CheckpointError: it is missing, damaged or no delta.
        """
        tensors, meta = state.load(path)
        if meta.get("format") != FORMAT:
            found = f"format {meta.get('format')!r:.80}"
            raise CheckpointError(f"{path} is not a weight delta", found=found, fix="check the path")
        place = path.resolve().parent
        size = sum(tensor.numel() for tensor in tensors.values())
        return cls(name=place.name, meta=meta, tensors=len(tensors), parameters=size, seconds=run.seconds_spent(place))

    @property
    def concepts(self) -> list[tuple[str, str]]:
        """Target and anchor of each concept."""
        found = self.meta.get("concepts")
        tables = [c for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []
        return [(str(c.get("target", "")), str(c.get("anchor", ""))) for c in tables]

    @property
    def check(self) -> Finding | None:
        """What the check at its end found; None where none was made."""
        record = self.meta.get("check")
        return None if record is None else Finding.from_dict(record, where=f"the check of {self.name}")

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What it was made of and by what, as label and value."""
        counts, method = self.meta.get("prompts"), str(self.meta.get("method", ""))
        meaning = f". {terms.METHODS[method]}" if method in terms.METHODS else ""
        return [
            *(("Concept", f"{target} → {anchor}") for target, anchor in self.concepts),
            *([("Method", method + meaning)] if method else []),
            *((label, str(self.meta[key])) for key, label in LABELS if key in self.meta),
            *([("Prompts", prompts(counts))] if isinstance(counts, Mapping) else []),
        ]

    @property
    def folded(self) -> list[tuple[str, Any]]:
        """Settings and versions, where they are known."""
        found = (("Settings", self.meta.get("config")), ("Versions", self.meta.get("versions")))
        return [(label, content) for label, content in found if content]


def prompts(counts: Mapping[str, Any]) -> str:
    """How many prompts a delta was made from, of each kind."""
    return ", ".join(f"{counts.get(key, 0)} {what}" for key, what in COUNTS)


@dataclass(frozen=True, kw_only=True)
class ErasedSection(Section):
    """Deltas without an evaluation."""

    TEMPLATE: ClassVar[str] = "erased.html.j2"
    runs: tuple[Erased, ...]


def section(runs: Sequence[Erased], limits: Thresholds) -> ErasedSection:
    """The part of the page."""
    targets = dict.fromkeys(target for run in runs for target, _ in run.concepts)
    return ErasedSection(title=f"Erased: {', '.join(targets) or 'an unnamed concept'}", runs=tuple(runs))


KINDS = (
    Kind(
        record=Erased,
        what="erasures",
        file="delta.safetensors",
        section=section,
        within="evaluation/results.json",
    ),
)
