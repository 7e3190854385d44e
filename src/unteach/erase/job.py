"""One erasing run: which concepts leave which model, and where its stage files are kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.data.concepts import Concept, ConceptSet, PromptPair
from unteach.diffusion.model import Model
from unteach.erase import kept


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a method needs to run, apart from its own settings.

    Args:
        model: the model to erase from; methods leave it as they found it.
        concepts: what to erase.
        seed: root of every random draw; equal seeds give equal deltas.
        out: folder for ``anchors.safetensors`` (training data), ``state.safetensors`` (training) and
            ``delta.safetensors`` (the result). None keeps nothing on disk, so nothing can be resumed.
        events: told of the stages and their steps; an exception from it stops the run.
        save_every: training steps between two writings of ``state.safetensors``.
    """

    model: Model
    concepts: ConceptSet
    seed: int = 0
    out: Path | None = None
    events: Events = SILENT
    save_every: int = 25
    _kept: dict[int, list[str]] = field(default_factory=dict, init=False, repr=False)
    _around: dict[tuple[str, int], list[PromptPair]] = field(default_factory=dict, init=False, repr=False)

    def kept(self, count: int) -> list[str]:
        """``count`` prompts of the tokenizer's words, none of them among those of the concepts."""
        if count not in self._kept:
            own = [prompt for concept in self.concepts for prompt in concept.retain]
            pairs = [prompt for pair in self.concepts.pairs() for prompt in (pair.anchor, pair.target)]
            avoid = [*own, *pairs]
            self._kept[count] = kept.prompts(self.model, self.concepts, count, self.seed, avoid=avoid)
        return list(self._kept[count])

    def contexts(self, concept: Concept, count: int) -> list[PromptPair]:
        """``count`` pairs of one concept with words of the tokenizer around its name."""
        key = concept.target, count
        if key not in self._around:
            self._around[key] = kept.contexts(self.model, self.concepts, concept, count, self.seed)
        return list(self._around[key])

    def pairs(self, count: int) -> list[PromptPair]:
        """The concepts' own prompt pairs, then ``count`` contexts of each, by turns."""
        around = [self.contexts(concept, count) for concept in self.concepts]
        return [*self.concepts.pairs(), *(pair for turn in zip(*around, strict=False) for pair in turn)]

    def record(self, config: dict[str, Any]) -> dict[str, Any]:
        """Everything that a delta with these settings depends on: its ``meta``."""
        words = self.kept(config["kept_words"])
        found = {"kept": _digest(words)} if words else {}
        if around := self.pairs(config["contexts"])[len(self.concepts.pairs()) :]:
            found["contexts"] = _digest([pair.target for pair in around])
        return {
            **found,
            "method": config["method"],
            "config": config,
            "concepts": self.concepts.to_dicts(),
            "seed": self.seed,
            "base": self.model.digest(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "family": self.model.family,
        }


def _digest(prompts: list[str]) -> dict[str, Any]:
    return {"prompts": len(prompts), "digest": state.fingerprint({"prompts": prompts})}
