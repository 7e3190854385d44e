"""Prompts to keep that nobody has to write: random words of the model's own tokenizer.

An edit that is told only what to change moves everything else, too. A few hundred prompts of one to five random words
hold the rest about as well as prompts written by hand, on any model, because they cover the text states that its
tokenizer can reach. The user's own prompts come before them, and still matter for near neighbours of the target.
"""

import re
from collections.abc import Iterable

from unteach.core import seeds
from unteach.data.concepts import Concept, ConceptSet, PromptPair, mentions
from unteach.diffusion.model import Model
from unteach.diffusion.tokens import name_ends, read, vocabulary

__all__ = ["CAPTIONS", "contexts", "few", "prompts", "words"]

FEW_PAIRS, FEW_KEPT = 16, 40
"""Fewer prompt pairs a concept than this erase a name in their own wording only; fewer kept prompts hold little."""

FREQUENT = 8000
"""How many words are used at most; tokenizers list frequent words first."""
FEWEST = 12
"""With fewer words than this, :data:`CAPTIONS` are used instead."""
MOST_WORDS = 5
_MARKS = (("", "</w>"), ("▁", ""), ("Ġ", ""))
"""How tokenizers mark a whole word: CLIP's ends with ``</w>``, others begin with a stand-in for the space."""

CAPTIONS = tuple(
    line.strip()
    for line in """
    a man reading a newspaper in a cafe; a red car parked in front of a house; two dogs playing in the snow
    a bowl of fruit on a wooden table; a city street at night; a woman with a green umbrella
    a sailing boat on a calm lake; children playing football; an old church on a hill
    a close-up of a yellow flower; a train crossing a bridge; a black and white portrait
    a plate of pasta with tomatoes; a mountain under a cloudy sky; a cat asleep on a sofa
    a blue bicycle against a wall; a crowded market; an empty beach at sunset
    a cup of coffee and a book; a horse in a field; a modern office building
    a watercolour of a garden; a pencil sketch of a hand; an oil painting of the sea
    a wooden chair in a white room; a bird on a branch; a glass of water
    a forest path in autumn; a birthday cake with candles; a robot made of metal
    a map of an island; a stone bridge in the fog; a pair of shoes
    a clock on a tower; a farmer with a tractor; a bright kitchen with plants
    a guitar on a stage; an aeroplane above the clouds; a bottle of wine and bread
    a desert with a single tree; a fish in clear water; a smiling old woman
    """.replace("\n", ";").split(";")
    if line.strip()
)
"""Everyday captions, for tokenizers without whole words of their own."""


def words(model: Model, concepts: ConceptSet) -> list[str]:
    """Whole words of the model's own tokenizer, frequent ones first, without those that the concepts name.

    Left out, too, are tokens that a name of the concepts is made of or ends with (a tokenizer that learned "twemoji"
    piece by piece knows "moji").
    """
    ids = vocabulary(model)
    names = [name for c in concepts for name in (c.target, c.anchor, *c.names)]
    pieces = {i for name in names for i in read(model, name)[0]}
    for before, after in _MARKS:
        marked = [t for t in ids if t.startswith(before) and t.endswith(after) and len(t) > len(before + after)]
        if not marked:
            continue
        plain = {
            token[len(before) : len(token) - len(after)]: ids[token] for token in sorted(marked, key=ids.__getitem__)
        }
        plain = {word: i for word, i in plain.items() if re.fullmatch(r"[a-z]{3,}", word)}
        named = " ".join(names).casefold().split()
        found = [w for w, i in plain.items() if i not in pieces and not any(part.endswith(w) for part in named)]
        return found[:FREQUENT]
    return []


def prompts(model: Model, concepts: ConceptSet, count: int, seed: int = 0, *, avoid: Iterable[str] = ()) -> list[str]:
    """``count`` prompts to keep, a function of tokenizer, concepts and seed.

    Args:
        model: its first tokenizer gives the words.
        concepts: what is to be erased; none of their names occurs.
        count: how many; fewer where the tokenizer has too few words.
        seed: root of the draws.
        avoid: prompts that must not be among them.

    Returns:
        Prompts of one to five words that fit the text encoder whole, each different to the model.
    """
    known = words(model, concepts) if count else []
    names = [name for c in concepts for name in (c.target, c.anchor, *c.names)]
    if len(known) < FEWEST:
        offered = [c for c in CAPTIONS if not any(mentions(c, name) for name in names)]
    else:
        offered = [_random(known, seed, i) for i in range(2 * count)]
    taken = {read(model, prompt) for prompt in avoid}
    found: list[str] = []
    for prompt in offered:
        ids = read(model, prompt)
        whole = name_ends(model, prompt, prompt)
        if len(found) < count and ids not in taken and whole is not None:
            taken.add(ids)
            found.append(prompt)
    return found


def contexts(model: Model, concepts: ConceptSet, concept: Concept, count: int, seed: int = 0) -> list[PromptPair]:
    """``count`` pairs of prompts with up to four random words before and after the name, as :func:`prompts`.

    A name's text state depends on what stands around it; a few prompts fix it in their own contexts only. Empty
    where the tokenizer has too few words.
    """
    known = words(model, concepts) if count else []
    found: dict[PromptPair, None] = {}
    for i in range(2 * count if len(known) >= FEWEST else 0):
        around = [
            [known[seeds.integer(seed, "context word", i, side, k) % len(known)] for k in range(length)]
            for side, length in enumerate(seeds.integer(seed, "context length", i, side) % 5 for side in range(2))
        ]
        told = (" ".join([*around[0], name, *around[1]]) for name in (concept.anchor, concept.target))
        pair = PromptPair(*told)
        if len(found) < count and all(
            name_ends(model, text, name) is not None
            for text, name in ((pair.anchor, concept.anchor), (pair.target, concept.target))
        ):
            found[pair] = None
    return list(found)


def few(concepts: int, pairs: int, kept: int) -> list[str]:
    """What to say before concepts are erased with ``pairs`` prompt pairs and ``kept`` prompts to keep in all."""
    found = []
    if pairs < FEW_PAIRS * concepts:
        found.append(
            f"only {pairs} prompt pairs for {concepts} concepts: the names may stay known in other wordings; give more "
            "prompts, or let 'contexts' add some"
        )
    if kept < FEW_KEPT:
        found.append(
            f"only {kept} prompts to keep: the rest may be hurt; give retain prompts, or let 'kept_words' add some"
        )
    return found


def _random(known: list[str], seed: int, i: int) -> str:
    length = 1 + seeds.integer(seed, "kept length", i) % MOST_WORDS
    return " ".join(known[seeds.integer(seed, "kept word", i, k) % len(known)] for k in range(length))
