"""Did it work, and what did it hurt? The check that ends every erasure, from the model's own outputs.

No judge is needed: with the same noise, where do the pictures under the target's prompts stand between the old ones
and the anchor's, and how far did those of unrelated prompts move, beside the distance to the next unrelated picture?
Both in units of what the model itself makes of different prompts. No method ever trained on these prompts or kept them.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unteach.core import seeds
from unteach.core.finding import Effect, Finding
from unteach.data.concepts import Concept, ConceptSet, fill, mentions
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.diffusion.sample import sample
from unteach.diffusion.tokens import Ids, read
from unteach.erase import kept
from unteach.errors import NumericsError

__all__ = ["Check", "Effect", "Finding", "passes", "warn"]

log = logging.getLogger(__name__)

OBJECT_TEMPLATES = (
    "one more {} again",
    "look at this {} and {w}",
    "{w} beside {}",
    "the {} of today",
    "my own {} with {w}",
    "{w} then that {}",
)
STYLE_TEMPLATES = (
    "{w} as {} would make it",
    "one more {} {w} again",
    "look at this {w}, it is {}",
    "the {} version of {w}",
    "my own {w}, all {}",
    "{w} seen by {}",
)
"""Sentences of the check's own; ``{}`` is the name, ``{w}`` a word."""

REST_TEMPLATES = (
    "one more {w} {w} again",
    "look at this {w} and {w}",
    "{w} beside {w}",
    "the {w} of today, {w}",
    "my own {w} with {w}",
    "{w} then that {w}",
)

PLAIN = ("red", "blue", "big", "small", "old", "new", "round", "wooden")
"""Words for a tokenizer that has none of its own."""

TARGETS, REST, NOISES, STEPS, GUIDANCE, BATCH = 32, 48, 4, 2, 3.0, 16
"""Prompts a concept, prompts of the rest, noises, sampling steps, classifier-free guidance, pictures at a time."""
FREQUENT = 4000
"""How many of the tokenizer's words are used at most."""
COMPARED, FAMILIAR, FEWEST = 512, 0.5, 8
"""How many of them are compared, at which share of the farthest distance a word is used, and how many at least."""
CAP = 99.0
"""What a number is cut to; also what outputs that are not finite count as."""


@dataclass(frozen=True, eq=False)
class Check:
    """Prompts, noises and the outputs of the model as it is now; :meth:`measure` says what has changed since.

    Attributes:
        model: the model.
        concepts: what is to be erased.
        targets: target prompts of each concept (may be empty when the model cannot tell the names apart).
        anchors: the same prompts with the anchor's name.
        rest: unrelated prompts.
        noises: seeds of the noise; the prompts of any list take them in turn.
        seed: what all of it was drawn from.
        before: old outputs: of each concept's targets, of its anchors, of the rest.
        spread: mean squared distance between outputs of different unrelated prompts from the same noise.
    """

    model: Model
    concepts: ConceptSet
    targets: tuple[tuple[str, ...], ...]
    anchors: tuple[tuple[str, ...], ...]
    rest: tuple[str, ...]
    noises: tuple[int, ...]
    seed: int
    before: tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]
    spread: float

    @classmethod
    def of(cls, model: Model, concepts: ConceptSet, seed: int = 0, *, avoid: Iterable[str] = ()) -> "Check":
        """Choose prompts and draw the outputs before; the model must be in its original state.

        Args:
            model: the model before anything is erased.
            concepts: what will be.
            seed: root of prompts and noises. To stop a training early use another seed than the final check's, or it
                is stopped by the very pictures that it is judged by.
            avoid: prompts that a method trains on or keeps, beside the concepts' own pairs and ``retain``.
        """
        words = vocabulary(model, concepts, seed)
        familiar_words = familiar(model, words)
        known = {pair for c in concepts for p in c.pairs() for pair in (p.anchor, p.target)}
        known |= {prompt for c in concepts for prompt in c.retain} | set(avoid)
        taken = {read(model, prompt) for prompt in known}
        pairs = [_pairs(model, concept, (familiar_words, words), taken) for concept in concepts]
        rest = _rest(model, concepts, familiar_words, taken)
        noises = tuple(seeds.integer(seed, "check noise", i) for i in range(NOISES))
        targets = tuple(tuple(t for t, _ in each) for each in pairs)
        anchors = tuple(tuple(a for _, a in each) for each in pairs)
        drawn = _draw(model, [*targets, *anchors, rest], noises)
        spread, count = natural_spread(drawn[-1], NOISES), len(concepts)
        before = (tuple(drawn[:count]), tuple(drawn[count : 2 * count]), drawn[-1])
        return cls(model, concepts, targets, anchors, rest, noises, seed, before, spread)

    def measure(self, delta: WeightDelta | None = None) -> Finding:
        """Compare the model as it is now, or with ``delta`` applied for the time, with what it was.

        Raises:
            ModelError: the delta does not fit the model.
        """
        if delta is not None:
            with delta.apply(self.model):
                return self.measure()
        new = _draw(self.model, [*self.targets, self.rest], self.noises)
        effects = tuple(
            effect(concept, t, a, n, self.spread)
            for concept, t, a, n in zip(self.concepts, *self.before[:2], new[:-1], strict=True)
        )
        # A picture that has become another one counts as that, however far away: no single prompt decides.
        units = nearest(self.before[2], NOISES).clamp(1e-6 * self.spread, self.spread)
        moves = (new[-1] - self.before[2]).double().square().flatten(1).mean(1) / units
        rest = _capped(float(moves.nan_to_num(1.0).clamp(max=1.0).mean()))
        return Finding(concepts=effects, rest=rest, prompts=len(self.rest), seed=self.seed)


def warn(finding: Finding) -> None:
    """Log a warning unless every concept is erased and the rest kept."""
    if not finding.good:
        log.warning("the erasure was checked: %s; %s", finding.verdict, "; ".join(finding.lines()))


def passes(concepts: int) -> int:
    """Forward passes of one latent that a check of so many concepts takes: before, after, with and without prompt."""
    return (concepts * 3 * TARGETS + 2 * REST) * STEPS * 2


def natural_spread(outputs: Tensor, noises: int) -> float:
    """Mean squared distance between outputs (N, …) of different prompts from the same noise (every ``noises``-th)."""
    groups = [outputs[i::noises].double() for i in range(noises)]
    spreads = [2 * float(group.var(0).mean()) for group in groups if len(group) > 1]
    return sum(spreads) / max(1, len(spreads))


def nearest(outputs: Tensor, noises: int) -> Tensor:
    """Mean squared distance (N,) of each output (N, …) to the nearest one of another prompt from the same noise."""
    flat, turn = outputs.flatten(1).double(), torch.arange(len(outputs)) % noises
    gaps = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square() / flat.shape[1]
    others = (turn[:, None] == turn) & ~torch.eye(len(flat), dtype=torch.bool)
    return gaps.where(others, torch.inf).min(1).values


def effect(concept: Concept, t: Tensor, a: Tensor, n: Tensor, spread: float) -> Effect:
    """The numbers of one concept from outputs ``(N, …)``: old target's, old anchor's, new target's."""
    way, gone = (a - t).double(), (n - t).double()
    whole = float(way.square().sum())
    numbers = [float((gone * way).sum()), float((n - a).double().square().sum()), float(gone.square().sum())]
    towards, left, moved = (_capped(value / whole) if whole > 0 else 0.0 for value in numbers)
    apart = whole / max(1, way.numel()) / spread
    return Effect(
        target=concept.target,
        anchor=concept.anchor,
        towards=towards,
        left=left,
        moved=moved,
        apart=apart,
        prompts=len(t),
    )


def vocabulary(model: Model, concepts: ConceptSet, seed: int) -> list[str]:
    """Frequent whole words of the model's own tokenizer that no concept names, shuffled by ``seed``."""
    named = " ".join(name for c in concepts for name in (c.target, c.anchor, *c.names))
    words = kept.words(model, concepts)[:FREQUENT] or [word for word in PLAIN if not mentions(named, word)]
    return [words[i] for i in seeds.permutation(len(words), seed, "check words").tolist()]


@torch.no_grad()
def familiar(model: Model, words: Sequence[str]) -> list[str]:
    """Those of the words that the model tells apart; what a word means nothing to, it draws as it comes.

    Tokenizers hold pieces of words, and words that the text encoder never learned: under them every small change of
    the weights draws another picture, and nobody would miss the old one. Kept are words whose text states are at least
    :data:`FAMILIAR` times as far from the mean over the words as the farthest ones.
    """
    words = words[:COMPARED]
    prompts = [f"a {word}" for word in words]
    encode = model.conventions.encode  # not remembered by the model: these would push the user's own out
    parts = [encode(model.pipe, prompts[i : i + BATCH]).hidden for i in range(0, len(prompts), BATCH)]
    states = torch.cat(parts).flatten(1).double()
    far = torch.linalg.vector_norm(states - states.mean(0), dim=1)
    order = far.argsort(descending=True, stable=True).tolist()
    chosen = {i for i in order if far[i] >= FAMILIAR * far[order[0]]} | set(order[:FEWEST])
    return [word for i, word in enumerate(words) if i in chosen]


def _pairs(model: Model, concept: Concept, kinds: Sequence[Sequence[str]], taken: set[Ids]) -> list[tuple[str, str]]:
    """(target prompt, anchor prompt): not trained on, and different to the model; the kinds of words take turns."""
    templates = STYLE_TEMPLATES if concept.kind == "style" else OBJECT_TEMPLATES
    found: dict[tuple[str, str], None] = {}
    for turn in range(4 * TARGETS):
        words = kinds[turn // len(templates) % len(kinds)]
        template = templates[turn % len(templates)].replace("{w}", words[(turn + turn // len(words)) % len(words)])
        target, anchor = fill(template, concept.target), fill(template, concept.anchor)
        ids = read(model, target), read(model, anchor)
        if len(found) < TARGETS and ids[0] != ids[1] and taken.isdisjoint(ids):
            found[target, anchor] = None
    return list(found)


def _rest(model: Model, concepts: ConceptSet, words: Sequence[str], taken: set[Ids]) -> tuple[str, ...]:
    """Unrelated prompts: sentences of the check's own about two words."""
    names = [name for c in concepts for name in (c.target, c.anchor, *c.names)]
    found: dict[str, None] = {}
    for turn in range(8 * REST):
        first, _, last = REST_TEMPLATES[turn % len(REST_TEMPLATES)].partition("{w}")
        last = last.replace("{w}", words[-1 - (2 * turn + 1 + turn // len(words)) % len(words)])
        prompt = first + words[-1 - 2 * turn % len(words)] + last
        fits = not any(mentions(prompt, name) for name in names)
        if len(found) < REST and fits and read(model, prompt) not in taken:
            found[prompt] = None
    return tuple(found)


def _draw(model: Model, prompts: Sequence[Sequence[str]], noises: Sequence[int]) -> list[Tensor]:
    """Latents ``(N, C, h, w)`` of a few sampling steps, one tensor a list of prompts."""
    flat = [prompt for each in prompts for prompt in each]
    numbers = [noises[i % len(noises)] for each in prompts for i in range(len(each))]
    try:
        latents = sample(
            model,
            flat,
            numbers,
            num_inference_steps=min(STEPS, model.num_timesteps),
            guidance_scale=GUIDANCE,
            batch_size=BATCH,
            output="latent",
        )
    except NumericsError:
        latents = torch.full((len(flat), *model.latent_shape), torch.inf)
    return list(torch.split(latents, [len(each) for each in prompts]))


def _capped(value: float) -> float:
    return max(-CAP, min(CAP, value)) if value == value else CAP
