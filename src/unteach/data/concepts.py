"""What to take out of a model: concepts, each with an anchor to put in its place, and prompts for both.

A concept is named by *one* word for training; its other names are kept for judging, because "erased" must
hold for prompts outside the training set. Prompt pairs (anchor prompt, target prompt) differ in that name
only, as in Concept Ablation and DoCo (doco §1.3).
"""

import dataclasses
import logging
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from unteach.core import reading
from unteach.core.registry import near
from unteach.data import tables
from unteach.errors import ConfigError, DataError

log = logging.getLogger(__name__)

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "object": (
        "a {}",
        "a picture of a {}",
        "a photo of a {}",
        "a drawing of a {}",
        "an image of a {}",
        "a small {}",
    ),
    "style": (
        "a picture in {} style",
        "a {} style picture",
        "a drawing in the style of {}",
        "a {} drawing",
        "{} style",
    ),
}
"""Templates for a concept that brings neither prompts nor captions, by kind; ``{}`` stands for the name."""

EMPTY_ANCHOR = (
    ": name what takes its place, such as 'art' or 'a person' (for an empty prompt in its place give an anchor all the "
    "same and, with the method uce, --set guide=)"
)
_LISTS = ("names", "prompts", "captions", "retain")
_AN = re.compile(r"(?:[aeiou8]|11\b|18\b|hour|honest|honou?r|heir)", re.I)
_A = re.compile(r"(?:uni(?!m|n)|use|usu|ute|uto|eu|ewe|one\b|once\b|ouija|u\b|ubiq)", re.I)
_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.I)


def article(word: str) -> str:
    """``"a"`` or ``"an"``, by the word's first sound (by spelling, with the usual exceptions)."""
    return "an" if _AN.match(word) and not _A.match(word) else "a"


def join(before: str, name: str, after: str = "") -> str:
    """``before + name + after``, where an article that stands directly before the name is made to fit it."""

    def fit(found: re.Match[str]) -> str:
        fitted = article(name)
        return (fitted.capitalize() if found[1][0].isupper() else fitted) + found[2]

    return _ARTICLE.sub(fit, before) + name + after


def fill(template: str, name: str) -> str:
    """The template with ``name`` for every ``{}``: ``fill("a {} dog", "openmoji") == "an openmoji dog"``."""
    first, *rest = template.split("{}")
    for piece in rest:
        first = join(first, name, piece)
    return first


def _word(name: str) -> re.Pattern[str]:
    """A whole-word, case-insensitive pattern for a name of one or more words."""
    spaced = r"\s+".join(re.escape(part) for part in name.split())
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.I)


def mentions(text: str, name: str) -> bool:
    """Whether ``text`` holds ``name`` as whole words, in any case (``"dogs"`` does not mention ``"dog"``)."""
    return _word(name).search(text) is not None


def spans(text: str, name: str) -> list[tuple[int, int]]:
    """Start and end of every whole-word mention of ``name``, in any case.

    Raises:
        DataError: there is none.
    """
    found = [match.span() for match in _word(name).finditer(text)]
    if not found:
        raise DataError(f"'{text}' does not mention '{name}'")
    return found


def swap(caption: str, anchor: str, target: str) -> str:
    """The caption with ``target`` for each whole-word ``anchor``, articles mended; unchanged if absent."""
    first, *rest = _word(anchor).split(caption)
    for piece in rest:
        first = join(first, target, piece)
    return first


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in the concept alone: what may stay (``anchor``), what must go (``target``)."""

    anchor: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing to erase, and what to draw in its place.

    Args:
        target: the name to erase; the only name that training ever sees.
        anchor: the name whose pictures take its place.
        kind: ``"style"`` or ``"object"``; chooses the default templates.
        names: other names of the target; never trained on, judged after erasing.
        prompts: templates with ``{}`` where the name goes. Default: :data:`TEMPLATES` of the kind.
        captions: plain captions that contain the anchor; the target is substituted for it. With captions and
            no prompts, only the captions are used.
        retain: prompts whose pictures must stay as they are.

    Raises:
        ConfigError: lists every mistake at once (empty name, target equal to anchor, template without
            ``{}``).
    """

    target: str
    anchor: str
    kind: Literal["style", "object"] = "object"
    names: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _LISTS:
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        problems = _mistakes({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        if problems:
            raise ConfigError.many(problems, where=f"the concept {reprlib.repr(self.target)}")

    def templates(self) -> tuple[str, ...]:
        """The templates that are used: those given, or the kind's where there are no captions either."""
        return self.prompts or (() if self.captions else TEMPLATES[self.kind])

    def pairs(self) -> list[PromptPair]:
        """The training pairs, from templates and captions, duplicates removed.

        Captions without the anchor word would give a pair of equal prompts (the official DoCo code keeps them
        silently), and captions that already name the target would teach it as its own anchor; both are
        dropped and logged. What a model cannot tell apart is found with the model (``unteach.erase.pairs``).

        Raises:
            DataError: no caption contains the anchor.
        """
        found = [PromptPair(fill(t, self.anchor), fill(t, self.target)) for t in self.templates()]
        usable = [c for c in self.captions if mentions(c, self.anchor) and not mentions(c, self.target)]
        if self.captions and not usable:
            raise DataError(
                f"none of the {len(self.captions)} captions of '{self.target}' can be used",
                found=", ".join(f"{count} with {reason}" for reason, count in self.dropped().items() if count),
                fix=f"give captions with '{self.anchor}' as a whole word, that do not name the target",
            )
        if len(usable) < len(self.captions):
            log.warning("'%s': captions dropped: %s of %d", self.target, self.dropped(), len(self.captions))
        found += [PromptPair(c, swap(c, self.anchor, self.target)) for c in usable]
        return list(dict.fromkeys(found))

    def dropped(self) -> dict[str, int]:
        """How many captions give no pair, by reason."""
        no_anchor = sum(not mentions(c, self.anchor) for c in self.captions)
        has_target = sum(mentions(c, self.anchor) and mentions(c, self.target) for c in self.captions)
        return {"no anchor word (a no-op pair)": no_anchor, "the target named already": has_target}

    def to_dict(self) -> dict[str, Any]:
        """Plain data (text and lists) with every field, for YAML, JSON and fingerprints."""
        record = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}


_FIELDS = tuple(field.name for field in dataclasses.fields(Concept))


def _text_mistakes(record: Mapping[str, Any]) -> list[str]:
    """Mistakes of names and types in one concept's record."""
    problems = [f"unknown key '{key}' ({near(str(key), _FIELDS)})" for key in record if key not in _FIELDS]
    for key in ("target", "anchor"):
        value = record.get(key)
        if value is None:
            problems.append(f"{key} is missing")
        elif not isinstance(value, str):
            problems.append(f"{key} must be text, found {reprlib.repr(value)} (put it in quotes)")
        elif not value.strip():
            problems.append(f"{key} is empty" + (EMPTY_ANCHOR if key == "anchor" else ""))
        elif not tables.whole(value):
            problems.append(f"{key} holds half a character: {value!a:.60}")
    if record.get("kind", "object") not in ("style", "object"):
        problems.append(f"kind must be 'style' or 'object', found {reprlib.repr(record['kind'])}")
    for key in _LISTS:
        value = record.get(key, ())
        if not isinstance(value, list | tuple):
            problems.append(f"{key} must be a list of texts, found {reprlib.repr(value)}")
            continue
        for i, text in enumerate(value):
            if not isinstance(text, str):
                problems.append(f"{key}[{i}] must be text, found {reprlib.repr(text)}")
            elif not text.strip():
                problems.append(f"{key}[{i}] is empty")
            elif not tables.whole(text):
                problems.append(f"{key}[{i}] holds half a character: {text!a:.60}")
    return problems


def _mistakes(record: Mapping[str, Any]) -> list[str]:
    """Every mistake in one concept's record; contradictions only when the types are right."""
    problems = _text_mistakes(record)
    if problems:
        return problems
    target, anchor = record["target"], record["anchor"]
    if target.casefold().split() == anchor.casefold().split():
        problems.append(f"target and anchor are both '{anchor}', so nothing would change")
    # Lists of names, as other programs take them; an anchor may be a description, with commas.
    for key, marks in (("target", ",;"), ("anchor", ";")):
        if mark := next((mark for mark in marks if mark in record[key]), None):
            problems.append(
                f"{key} '{record[key]}' looks like several names; write one concept for each, in a file for "
                f"--concepts, or, if it is one name, write it without the '{mark}'"
            )
    for template in record.get("prompts", ()):
        if "{}" not in template or re.sub(r"\{\}", "", template).strip("{}") != re.sub(r"[{}]", "", template):
            problems.append(f"prompts: '{template}' must contain '{{}}' for the name, and no other braces")
    for name in record.get("names", ()):
        if name.casefold() in (target.casefold(), anchor.casefold()):
            problems.append(f"names: '{name}' is the {'target' if name.casefold() == target.casefold() else 'anchor'}")
    trained = {target.casefold(), *(fill(t, target).casefold() for t in record.get("prompts", ()))}
    problems += [f"retain: '{p}' is to be erased, too" for p in record.get("retain", ()) if p.casefold() in trained]
    return problems


class ConceptSet(tuple[Concept, ...]):
    """One or more concepts to erase together: a tuple of :class:`Concept`, checked for contradictions.

    Raises:
        ConfigError: the set is empty, a target occurs twice, or something to keep is itself to be erased.
    """

    __slots__ = ()

    def __new__(cls, concepts: Iterable[Concept]) -> Self:
        """Check and keep the concepts, in order."""
        made = super().__new__(cls, concepts)
        if not made:
            raise ConfigError("the set of concepts is empty", fix="name at least one target and its anchor")
        targets = [concept.target.casefold() for concept in made]
        problems = [f"'{concept.target}' is given twice" for i, concept in enumerate(made) if targets[i] in targets[:i]]
        problems += [
            f"the anchor of '{concept.target}', '{concept.anchor}', is to be erased, too"
            for concept in made
            if concept.anchor.casefold() in targets
        ]
        problems += [
            f"retain of '{concept.target}': '{prompt}' is to be erased, too"
            for concept in made
            for prompt in concept.retain
            if prompt.casefold() in targets
        ]
        if problems:
            raise ConfigError.many(problems, where="the set of concepts")
        return made

    @classmethod
    def of(cls, concepts: "Concept | Mapping[str, Any] | Iterable[Concept | Mapping[str, Any]]") -> Self:
        """A set from one concept or several, each as a :class:`Concept` or as a mapping of its fields."""
        if isinstance(concepts, cls):
            return concepts
        several = [concepts] if isinstance(concepts, Concept | Mapping) else list(concepts)
        return cls.from_dicts([c.to_dict() if isinstance(c, Concept) else c for c in several])

    @classmethod
    def from_dicts(cls, records: Sequence[Mapping[str, Any]], *, where: str = "the concepts") -> Self:
        """A set from plain records; unknown keys are refused with their near misses, all mistakes at once."""
        problems: list[str] = []
        for i, record in enumerate(records, 1):
            if not isinstance(record, Mapping):
                problems.append(
                    f"concept {i}: must be a mapping with 'target' and 'anchor', found {reprlib.repr(record)}"
                )
                continue
            name = f" ({record['target']:.60})" if isinstance(record.get("target"), str) and record["target"] else ""
            problems += [f"concept {i}{name}: {problem}" for problem in _mistakes(record)]
        if problems:
            raise ConfigError.many(problems, where=where)
        return cls(Concept(**dict(record)) for record in records)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A set from a ``.yaml``, ``.yml`` or ``.csv`` file."""
        readers = {".yaml": cls.from_yaml, ".yml": cls.from_yaml, ".csv": cls.from_csv}
        suffix = Path(path).suffix.lower()
        if suffix not in readers:
            raise ConfigError(f"concepts cannot be read from '{path}'", found=suffix, fix="use .yaml or .csv")
        return readers[suffix](path)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """A set from YAML: a list of concepts, or a mapping whose only key ``concepts`` holds the list.

        Raises:
            DataError: the file is missing or is not YAML.
            ConfigError: the concepts have mistakes (all are listed).
        """
        content = reading.read_yaml(Path(path), error=DataError)
        if isinstance(content, Mapping) and "concepts" in content:
            extra = [f"unknown key '{key}' (known: concepts)" for key in content if key != "concepts"]
            if extra:
                raise ConfigError.many(extra, where=f"'{path}'")
            content = content["concepts"]
        if isinstance(content, Mapping):
            content = [content]
        if not isinstance(content, list):
            raise ConfigError(
                f"'{path}' holds no list of concepts",
                found=reprlib.repr(content),
                fix="write a list, '- target: ...' each",
            )
        return cls.from_dicts(content, where=f"'{path}'")

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """A set from CSV with the fields as columns; several texts in one cell are parted by ``;``.

        Raises:
            DataError: the file is missing, is not UTF-8, or its quotes do not close.
            ConfigError: the concepts have mistakes (all are listed).
        """
        records: list[dict[str, Any]] = []
        header, rows, problems = tables.table(path, "the concepts file")
        for _, row in rows:
            cells = {key: value.strip() for key, value in zip(header, row, strict=True) if key and value.strip()}
            records.append({k: _cell(v) if k in _LISTS else v for k, v in cells.items()})
        unknown = [key for key in header if key not in _FIELDS]
        problems += [f"unknown column '{key}' ({near(key, _FIELDS)})" for key in unknown]
        if problems:
            raise ConfigError.many(problems, where=f"'{path}'")
        return cls.from_dicts(records, where=f"'{path}'")

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain records that :meth:`from_dicts` reads back to an equal set."""
        return [concept.to_dict() for concept in self]

    def pairs(self) -> list[PromptPair]:
        """The pairs of all concepts, interleaved so that any prefix treats the concepts alike."""
        each = [concept.pairs() for concept in self]
        longest = max(len(pairs) for pairs in each)
        return [pairs[i % len(pairs)] for i in range(longest) for pairs in each]

    def retain(self) -> list[str]:
        """All prompts to keep, each once, in order; without any, the anchor prompts (as in DoCo, §1.3)."""
        asked = [prompt for concept in self for prompt in concept.retain]
        return list(dict.fromkeys(asked or [pair.anchor for pair in self.pairs()]))


def _cell(value: str) -> list[str]:
    return [part.strip() for part in value.split(";") if part.strip()]
