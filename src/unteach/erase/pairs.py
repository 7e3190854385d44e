"""Prompt pairs as the model reads them: prompts that are the same to it, or a name that it cuts off, teach nothing.

A text encoder reads a fixed number of tokens (77 in CLIP) and drops the rest without an error.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from unteach.data.concepts import Concept, ConceptSet, PromptPair, fill, mentions, swap
from unteach.diffusion.model import Model
from unteach.diffusion.tokens import Ids, limit, name_ends, read
from unteach.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Readable:
    """Concepts with only those prompts and captions of which the model can tell target from anchor.

    Attributes:
        concepts: the concepts; equal to those given when nothing was left out.
        left_out: one line for each concept and reason, for people.
        captions: how many captions were left out.
    """

    concepts: ConceptSet
    left_out: tuple[str, ...]
    captions: int


def readable(model: Model, concepts: ConceptSet) -> Readable:
    """Leave out templates, captions and prompts to keep that the model reads as something else than they say.

    Raises:
        DataError: no pair of a concept is left, or none of the prompts to keep that were given.
    """
    erased = {read(model, pair.target) for concept in concepts for pair in concept.pairs()}
    found = [_concept(model, concept, erased) for concept in concepts]
    if any(c.retain for c in concepts) and not any(part.concepts[0].retain for part in found):
        raise DataError(
            "all prompts to keep are prompts to erase, as the model reads them",
            found=found[0].left_out[-1] if found[0].left_out else None,
            fix=f"shorten them to the {limit(model)} tokens that the model reads",
        )
    lines = tuple(line for part in found for line in part.left_out)
    for line in lines:
        log.warning("%s", line)
    made = ConceptSet(part.concepts[0] for part in found) if lines else concepts
    return Readable(made, lines, sum(part.captions for part in found))


def _concept(model: Model, concept: Concept, erased: set[Ids]) -> Readable:
    templates, captions = concept.templates(), concept.captions
    told = {
        **{t: PromptPair(fill(t, concept.anchor), fill(t, concept.target)) for t in templates},
        **{c: PromptPair(c, swap(c, concept.anchor, concept.target)) for c in captions if _usable(concept, c)},
    }
    wrong = {text: why for text, pair in told.items() if (why := _mistake(model, concept, pair))}
    lost = [prompt for prompt in concept.retain if read(model, prompt) in erased]
    lines = [_line(concept, "prompts", [wrong[t] for t in templates if t in wrong], len(templates))]
    lines += [_line(concept, "captions", [wrong[c] for c in captions if c in wrong], len(captions))]
    if lost:
        lines.append(
            f"'{concept.target}': {len(lost)} of {len(concept.retain)} prompts to keep left out: "
            "a prompt to erase, as the model reads it"
        )
    left_out = tuple(line for line in lines if line)
    if len(wrong) == len(told):
        raise DataError(
            f"no prompt pair of '{concept.target}' is left: the model does not tell target and anchor apart in any",
            found="; ".join(left_out),
            fix=f"the model reads {limit(model)} tokens of a prompt: put the name near the beginning",
        )
    if not left_out:
        return Readable(ConceptSet([concept]), (), 0)
    made = dataclasses.replace(
        concept,
        prompts=tuple(t for t in templates if t not in wrong),
        captions=tuple(c for c in captions if c not in wrong),
        retain=tuple(prompt for prompt in concept.retain if prompt not in lost),
    )
    return Readable(ConceptSet([made]), left_out, sum(c in wrong for c in captions))


def _usable(concept: Concept, caption: str) -> bool:
    return mentions(caption, concept.anchor) and not mentions(caption, concept.target)


def _mistake(model: Model, concept: Concept, pair: PromptPair) -> str:
    """Why the pair teaches nothing, or ""."""
    if read(model, pair.anchor) == read(model, pair.target):
        return "the same prompt twice, as the model reads it"
    names = ((pair.anchor, concept.anchor), (pair.target, concept.target))
    if any(name_ends(model, prompt, name) is None for prompt, name in names):
        return f"a name cut off after the {limit(model)} tokens that the model reads"
    return ""


def _line(concept: Concept, what: str, reasons: Sequence[str], total: int) -> str:
    if not reasons:
        return ""
    listed = ", ".join(f"{reasons.count(reason)} with {reason}" for reason in dict.fromkeys(reasons))
    return f"'{concept.target}': of {total} {what} left out: {listed}"
