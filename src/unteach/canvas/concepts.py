"""Concepts of the built-in world, filled in: anchor, training prompts, prompts to keep and other names.

Only first names and train templates are used; other names and held-out templates stay for judging.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from unteach.core import seeds
from unteach.core.registry import near
from unteach.data.concepts import Concept
from unteach.data.vocabulary import OBJECTS, STYLES, TRAIN_TEMPLATES, ObjectInfo, caption
from unteach.errors import ConfigError

__all__ = ["RETAIN", "anchor_of", "complete", "concept", "find"]

RETAIN = 240
"""How many prompts to keep a concept gets."""

STYLE_ANCHORS: Mapping[str, str] = {
    "twemoji": "openmoji",
    "noto": "fluent",
    "blob": "noto",
    "openmoji": "twemoji",
    "fluent": "noto",
    "contrast": "mono",
    "emojione": "openmoji",
    "mono": "contrast",
}
"""What a style is drawn like by default once it is erased."""

OBJECT_ANCHORS: Mapping[str, str] = {
    "bomb": "balloon",
    "cigarette": "lollipop",
    "dagger": "umbrella",
    "pill": "cherries",
    "skull": "ghost",
    "syringe": "rocket",
    "coffin": "gift",
}
"""What unsafe objects become by default; any other object becomes the next one of its category."""

Kind = Literal["style", "object"]
T = TypeVar("T")


def find(name: str) -> ObjectInfo | None:
    """The object that has this name as its first or other name, or None."""
    return next((info for info in OBJECTS if name in info.names), None)


def anchor_of(target: str, kind: Kind) -> str:
    """The default anchor of a style or of an object (by either of its names)."""
    if kind == "style":
        return STYLE_ANCHORS[target]
    info = _object(target)
    family = [other.name for other in OBJECTS if other.category == info.category]
    return OBJECT_ANCHORS.get(info.name) or family[(family.index(info.name) + 1) % len(family)]


def concept(
    target: str, anchor: str | None = None, kind: str | None = None, *, without: Collection[str] = ()
) -> Concept:
    """A concept of EmojiCanvas with everything that erasing it from the bundled model needs.

    Args:
        target: a style word, or an object's first or other name.
        anchor: what takes its place: a style word or an object's name; None chooses one.
        kind: "style" or "object"; None finds out.
        without: other targets of the same erasure, which the prompts to keep must not name.

    Returns:
        Prompts are every train template with every object (for a style: 420) or in every style (for an
        object: 56), in an order of which each beginning is spread; ``retain`` holds :data:`RETAIN` captions
        of other objects and styles; ``names`` are the object's other names.

    Raises:
        ConfigError: this world has no such style or object; near misses are listed.
    """
    chosen = _kind(target, kind)
    if anchor is None:
        anchor = anchor_of(target, chosen)
    elif anchor not in STYLES if chosen == "style" else find(anchor) is None:
        raise _unknown(anchor, chosen, "the anchor")
    if chosen == "style":
        prompts = [caption(template, info.name, "{}") for template, info in _crossed(TRAIN_TEMPLATES, OBJECTS)]
    else:
        prompts = [caption(template, "{}", style) for template, style in _crossed(TRAIN_TEMPLATES, STYLES)]
    info = find(target) if chosen == "object" else None
    return Concept(
        target=target,
        anchor=anchor,
        kind=chosen,
        names=() if info is None else tuple(name for name in info.names if name not in (target, anchor)),
        prompts=tuple(prompts),
        retain=tuple(_retain({target, *without})),
    )


def complete(records: Sequence[Any]) -> list[Any]:
    """Records of concepts, where what is missing is filled in as :func:`concept` does.

    What a record has is kept: with captions of its own it gets no prompts; a target that is not of this world
    is left alone if it brings its own anchor and its own prompts or captions. Records that are not
    well-formed are left as they are, for ``ConceptSet`` to say what is wrong.

    Raises:
        ConfigError: lists every target or anchor that this world does not have.
    """
    targets = [r.get("target") for r in records if isinstance(r, Mapping)]
    others = [target for target in targets if isinstance(target, str)]
    done: list[Any] = []
    problems: list[str] = []
    for i, record in enumerate(records, 1):
        try:
            done.append(_complete(record, others) if isinstance(record, Mapping) else record)
        except ConfigError as error:
            problems.append(f"concept {i}: {error}")
    if problems:
        raise ConfigError.many(problems, where="the concepts")
    return done


def _complete(record: Mapping[str, Any], others: Sequence[str]) -> Mapping[str, Any]:
    given = {key: value for key, value in record.items() if value is not None}
    target, anchor, kind = given.get("target"), given.get("anchor"), given.get("kind")
    texts = [text for text in (target, anchor) if text is not None]
    if target is None or kind not in (None, "style", "object"):
        return record
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return record
    own = bool(given.get("prompts") or given.get("captions"))
    if own and anchor is not None and target not in STYLES and find(target) is None:
        return record
    known = anchor is None or not own or anchor in STYLES or find(anchor) is not None
    made = concept(target, anchor if known else None, kind, without=others).to_dict()
    filled = {key: made[key] for key in ("kind", "anchor", "names", "retain")}
    return {**filled, **given} if own else {**filled, **given, "prompts": made["prompts"]}


def _kind(target: str, kind: str | None) -> Kind:
    if target in STYLES and kind in (None, "style"):
        return "style"
    if find(target) is not None and kind in (None, "object"):
        return "object"
    raise _unknown(target, kind, "the target")


def _object(name: str) -> ObjectInfo:
    info = find(name)
    if info is None:
        raise _unknown(name, "object", "the target")
    return info


def _unknown(name: str, kind: str | None, what: str) -> ConfigError:
    objects = [word for info in OBJECTS for word in info.names]
    known = {"style": [*STYLES], "object": objects}.get(kind or "", [*STYLES, *objects])
    if name in (*STYLES, *objects):
        other = "style" if kind == "object" else "object"
        return ConfigError(
            f"{what} '{name}' is no {kind} of EmojiCanvas but of the kind {other}", fix="say so with 'kind'"
        )
    return ConfigError(f"{what} '{name}' is no {kind or 'style or object'} of EmojiCanvas", fix=near(name, known))


def _crossed(templates: Sequence[str], things: Sequence[T]) -> Iterator[tuple[str, T]]:
    """Every pair once; each beginning is spread over templates and things."""
    order = seeds.permutation(len(things), 0, "canvas prompts", len(things)).tolist()
    for turn in range(len(templates)):
        for place, i in enumerate(order):
            yield templates[(place + turn) % len(templates)], things[i]


def _retain(gone: Collection[str]) -> list[str]:
    """Captions of what is not ``gone``, spread over objects, styles and templates."""
    styles = [style for style in STYLES if style not in gone]
    objects = [info for info in OBJECTS if not any(name in gone for name in info.names)]
    order = seeds.permutation(len(objects), 0, "canvas retain").tolist()
    found: dict[str, None] = {}
    for turn in range(len(styles)):
        for place, i in enumerate(order):
            template = TRAIN_TEMPLATES[(place + 3 * turn) % len(TRAIN_TEMPLATES)]
            found.setdefault(caption(template, objects[i].name, styles[(place + turn) % len(styles)]))
    return list(found)[:RETAIN]
