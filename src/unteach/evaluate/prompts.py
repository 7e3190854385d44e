"""Which prompts an evaluation asks: the target's and the rest's, inside and outside the unlearning set.

Three prompt sets, because "erased" must hold beyond what training saw (spec: canvas):

* ``unlearning set``: train templates, the name that the erasure was trained on;
* ``held-out templates``: the same names in templates that nothing was trained on;
* ``other names``: other names of the objects, in train templates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from unteach.core import seeds
from unteach.core.registry import near
from unteach.data import vocabulary
from unteach.data.concepts import Concept
from unteach.errors import ConfigError
from unteach.evaluate.metrics.presence import Domain

UNLEARNING, HELD_OUT, OTHER_NAMES = "unlearning set", "held-out templates", "other names"
SETS = (UNLEARNING, HELD_OUT, OTHER_NAMES)
"""Names of the prompt sets, in the order of reports."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What can be asked for: objects (each with its names, first name first), styles, and how captions are
    made.

    Attributes:
        objects: names of each object.
        styles: one word a style.
        train_templates: templates with ``{o}`` and ``{s}`` that the erasure may be trained on.
        held_out_templates: templates that nothing is trained on.
        caption: (template, object name, style) to prompt.
    """

    objects: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...]
    train_templates: tuple[str, ...]
    held_out_templates: tuple[str, ...]
    caption: Callable[[str, str, str], str]

    @classmethod
    def emoji(cls) -> "World":
        """EmojiCanvas, the world of the bundled model."""
        return cls(
            objects=tuple(info.names for info in vocabulary.OBJECTS),
            styles=vocabulary.STYLES,
            train_templates=vocabulary.TRAIN_TEMPLATES,
            held_out_templates=vocabulary.HELD_OUT_TEMPLATES,
            caption=vocabulary.caption,
        )

    def locate(self, concept: Concept) -> tuple[Domain, int]:
        """Domain and class index of a concept's target.

        Raises:
            ConfigError: this world has no such style or object.
        """
        if concept.kind == "style":
            if concept.target in self.styles:
                return "style", self.styles.index(concept.target)
            raise ConfigError(
                f"no style of this world is called '{concept.target}'", fix=near(concept.target, self.styles)
            )
        for index, names in enumerate(self.objects):
            if concept.target in names:
                return "object", index
        raise ConfigError(
            f"no object of this world is called '{concept.target}'",
            fix=near(concept.target, [name for names in self.objects for name in names]),
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How many prompts of each set are asked, a seed.

    Attributes:
        name: the protocol's name.
        target: least number of prompts for a target and set; every object x style pair of the target is asked
            in any case, and then again in other templates until there are so many (or no template is left).
        retained: number of prompts that ask for nothing erased, for a set, balanced over objects and styles;
            None = every pair.
    """

    name: str
    target: int
    retained: int | None


PROTOCOLS = {
    "demo": Protocol(name="demo", target=40, retained=96),
    "grid": Protocol(name="grid", target=40, retained=None),
}
"""``demo`` is small; ``grid`` asks for every object in every style (the UnlearnCanvas grid)."""


def protocol(choice: "str | Protocol") -> Protocol:
    """A protocol by name, or itself; ConfigError with near misses when unknown."""
    if isinstance(choice, Protocol):
        return choice
    if choice not in PROTOCOLS:
        raise ConfigError(f"no evaluation protocol is called '{choice}'", fix=near(choice, PROTOCOLS))
    return PROTOCOLS[choice]


@dataclass(frozen=True)
class Ask:
    """One prompt: its text and set, the class indices asked for, and the word that it calls the object by."""

    prompt: str
    object: int
    style: int
    set: str
    word: str


def asks(world: World, concepts: Sequence[Concept], choice: Protocol) -> list[Ask]:
    """All prompts of a protocol, without duplicates: set by set, targets first, then the rest.

    Raises:
        ConfigError: a target is not of this world, or one is listed twice.
    """
    targets = [world.locate(concept) for concept in concepts]
    if len(set(targets)) != len(targets):
        raise ConfigError("a concept is listed twice", found=[concept.target for concept in concepts])
    gone_objects = {index for domain, index in targets if domain == "object"}
    gone_styles = {index for domain, index in targets if domain == "style"}
    trained, others = _names(world, concepts, targets)
    rest = _diagonal(
        [o for o in range(len(world.objects)) if o not in gone_objects],
        [s for s in range(len(world.styles)) if s not in gone_styles],
    )
    found: dict[tuple[str, str], Ask] = {}
    for turn, name in enumerate(SETS):
        names = others if name == OTHER_NAMES else trained
        templates = world.held_out_templates if name == HELD_OUT else world.train_templates
        for domain, index in targets:
            pairs = [pair for pair in _target_pairs(world, domain, index) if names[pair[0]]]
            _take(found, _texts(world, name, pairs, names, templates), max(choice.target, len(pairs)))
        pairs = [pair for pair in rest if names[pair[0]]]
        most = len(pairs) if choice.retained is None else min(choice.retained, len(pairs))
        start = turn * most % max(1, len(pairs))  # other pairs in each set: together they see more
        _take(found, _texts(world, name, pairs[start:] + pairs[:start], names, templates), most)
    return list(found.values())


def _names(
    world: World, concepts: Sequence[Concept], targets: Sequence[tuple[Domain, int]]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The trained name and the other names of each object."""
    first = [names[0] for names in world.objects]
    more: list[tuple[str, ...]] = list(world.objects)
    for concept, (domain, index) in zip(concepts, targets, strict=True):
        if domain == "object":
            first[index] = concept.target
            more[index] = concept.names or more[index]
    others = [tuple(n for n in names if n != first[i]) for i, names in enumerate(more)]
    return [(name,) for name in first], others


def _target_pairs(world: World, domain: Domain, index: int) -> list[tuple[int, int]]:
    if domain == "style":
        return [(o, index) for o in range(len(world.objects))]
    return [(index, s) for s in range(len(world.styles))]


def _diagonal(objects: list[int], styles: list[int]) -> list[tuple[int, int]]:
    """Every pair once, in an order of which each prefix is spread over objects and styles."""
    order = [objects[i] for i in seeds.permutation(len(objects), 0, "evaluate objects").tolist()]
    count = len(styles)
    return [(o, styles[(i + k) % count]) for k in range(count) for i, o in enumerate(order)]


def _texts(
    world: World,
    name: str,
    pairs: Sequence[tuple[int, int]],
    names: Sequence[tuple[str, ...]],
    templates: Sequence[str],
) -> Iterator[Ask]:
    """Every pair in some template, then every pair in the next one, and so on through all templates and
    names."""
    most = max((len(names[o]) for o, _ in pairs), default=0)
    for turn in range(len(templates) * most):
        for i, (o, s) in enumerate(pairs):
            called, template = names[o], templates[(i + turn) % len(templates)]
            if turn < len(templates) * len(called):
                word = called[turn // len(templates)]
                yield Ask(world.caption(template, word, world.styles[s]), o, s, name, word)


def _take(found: dict[tuple[str, str], Ask], texts: Iterator[Ask], count: int) -> None:
    for ask, _ in zip(texts, range(count), strict=False):
        found.setdefault((ask.set, ask.prompt), ask)
