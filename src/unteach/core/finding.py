"""What the check of an erasure found: a few numbers a concept, the rest, and the verdict in words.

The numbers come from ``erase/check.py``, which draws with the model; this file only judges them, so that whatever
reads a record (the page, the card) says the same words without a model.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unteach.core.convert import Checked, Wrong, convert
from unteach.errors import DataError

__all__ = ["Effect", "Finding", "Outcome"]

Outcome = Literal["nothing", "partly", "gone", "erased", "undecided"]

ERASED_TOWARDS, ERASED_LEFT = 0.65, 1.0
"""Erased: at least this share of the way to the anchor, and at most this share of the distance left."""
GONE_MOVED = 1.0
"""Gone: moved at least this far, in units of the distance between target and anchor."""
NOTHING_TOWARDS = 0.2
"""Nothing happened: less than this share of the way."""
LEAST_APART = 0.01
"""Undecided: target and anchor differ by less than this share of the natural spread."""
KEPT_REST = 0.34
"""The rest is kept: moved at most this share of the distance to the nearest other picture.

docs/erase.md says on which concepts of which models, and with which judges, all of them were chosen.
"""

WORDS: Mapping[Outcome, str] = {
    "nothing": "nothing happened",
    "partly": "partly erased",
    "gone": "gone, but not the anchor",
    "erased": "erased",
    "undecided": "undecided: the model does not tell target and anchor apart",
}
WORST_FIRST: tuple[Outcome, ...] = ("nothing", "undecided", "partly", "gone", "erased")


@dataclass(frozen=True, kw_only=True)
class Effect(Checked):
    """What happened to the outputs under one concept's name, summed over prompts and noises.

    With t the old output under the target's prompt, a the old one under the anchor's, n the new one under the
    target's, all from the same noise:

    Attributes:
        target: what was to go.
        anchor: what was to take its place.
        towards: Σ⟨n − t, a − t⟩ / Σ‖a − t‖², the share of the way to the anchor: 0 nothing, 1 all of it.
        left: Σ‖n − a‖² / Σ‖a − t‖², what is left of the distance to the anchor: 1 nothing happened, 0 it is there.
        moved: Σ‖n − t‖² / Σ‖a − t‖².
        apart: mean ‖a − t‖² in units of the natural spread between unrelated prompts; near 0 the model does not
            tell the two names apart.
        prompts: how many prompts stand behind it.
    """

    target: str
    anchor: str
    towards: float
    left: float
    moved: float
    apart: float
    prompts: int

    @property
    def outcome(self) -> Outcome:
        """The numbers as one word."""
        if self.prompts == 0 or self.apart < LEAST_APART:
            return "undecided"
        if self.towards >= ERASED_TOWARDS and self.left <= ERASED_LEFT:
            return "erased"
        if self.moved >= GONE_MOVED:
            return "gone"
        if self.towards < NOTHING_TOWARDS:
            return "nothing"
        return "partly"

    @property
    def numbers(self) -> str:
        """The numbers for a reader."""
        if not self.prompts:
            return "no prompt tells the two names apart"
        return (
            f"{round(100 * self.towards)} % of the way to the anchor, {self.left:.2f} of the distance left, "
            f"{self.prompts} prompts"
        )


@dataclass(frozen=True, kw_only=True)
class Finding(Checked):
    """What the check of an erasure found.

    Attributes:
        concepts: one :class:`Effect` a concept.
        rest: mean squared move of the outputs under unrelated prompts, each in units of its squared distance to the
            nearest output of another unrelated prompt from the same noise, and at most 1.
        prompts: how many unrelated prompts stand behind it.
        seed: root of the prompts and noises.
    """

    concepts: tuple[Effect, ...]
    rest: float
    prompts: int
    seed: int

    @property
    def kept(self) -> bool:
        """Whether the rest stayed."""
        return self.rest <= KEPT_REST

    @property
    def rest_word(self) -> str:
        """ "kept" or "hurt"."""
        return "kept" if self.kept else "hurt"

    @property
    def good(self) -> bool:
        """Every concept is erased and the rest is kept."""
        return self.kept and all(effect.outcome == "erased" for effect in self.concepts)

    @property
    def verdict(self) -> str:
        """In words, the worst concept decides: "erased, the rest kept", "nothing happened" and so on."""
        found = [effect.outcome for effect in self.concepts]
        outcome = min(found, key=WORST_FIRST.index) if found else "undecided"
        if outcome == "nothing" and self.kept:
            return WORDS[outcome]
        return f"{WORDS[outcome]}, the rest {self.rest_word}"

    def lines(self) -> list[str]:
        """The numbers behind the verdict: a line a concept, and one of the rest."""
        found = [
            f"{effect.target} → {effect.anchor}: {WORDS[effect.outcome]} ({effect.numbers})" for effect in self.concepts
        ]
        far = f"moved {self.rest:.2f} of the distance to the next picture"
        return [*found, f"the rest: {self.rest_word} ({far}, {self.prompts} prompts)"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        record = dataclasses.asdict(self)
        return {**record, "concepts": list(record["concepts"])}

    @classmethod
    def from_dict(cls, record: object, *, where: str = "the check's record") -> "Finding":
        """From what :meth:`to_dict` gave.

        Raises:
            DataError: unknown or missing keys, wrong types; all at once.
        """
        try:
            return convert(record, cls)
        except Wrong as wrong:
            raise DataError.many(wrong.mistakes, where=where) from wrong
