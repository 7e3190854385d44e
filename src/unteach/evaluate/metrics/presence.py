"""Is the concept gone, is the rest still there: UA, IRA and CRA of UnlearnCanvas (erasure §4.2).

A judge says of each image which object and which style it shows, as class indices; the index just past the
last class means "none of these". Prompts ask for an object and a style. For a target e in domain d:

* UA  = 1 - P[judge_d says e | the prompt asks for e]                  unlearning accuracy
* IRA = P[judge_d is right | the prompt asks for another concept of d]  in-domain retain accuracy
* CRA = P[the *other* domain's judge is right]                          cross-domain retain accuracy

CRA is ambiguous in the literature: the text measures what is retained, while the released script averages
over all themes *including* the erased one. "CRA" leaves out the prompts that ask for the target, which after erasing
show something else on purpose; "CRA, target included" counts them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unteach.errors import DataError
from unteach.records.stats import Interval, share

Domain = Literal["style", "object"]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What prompts asked for and what one judge saw.

    Attributes:
        seen_object: (N,) object index that the judge saw; ``len(objects)`` = none of these.
        seen_style: (N,) style index that the judge saw; ``len(styles)`` = none of these.
        asked_object: (N,) object index that the prompt asked for.
        asked_style: (N,) style index that the prompt asked for.
    """

    seen_object: Indices
    seen_style: Indices
    asked_object: Indices
    asked_style: Indices

    @classmethod
    def of(
        cls, seen_object: ArrayLike, seen_style: ArrayLike, asked_object: ArrayLike, asked_style: ArrayLike
    ) -> "Answers":
        """From any four sequences of equal length; DataError when the lengths differ."""
        given = (seen_object, seen_style, asked_object, asked_style)
        arrays = [np.asarray(values, dtype=np.int64).ravel() for values in given]
        sizes = [values.size for values in arrays]
        if len(set(sizes)) != 1:
            raise DataError("answers and questions must come in equal numbers", found=sizes)
        so, ss, ao, as_ = arrays
        return cls(seen_object=so, seen_style=ss, asked_object=ao, asked_style=as_)

    def __len__(self) -> int:
        return int(self.asked_object.size)

    def __getitem__(self, rows: ArrayLike) -> "Answers":
        keep = np.asarray(rows)
        return Answers(
            seen_object=self.seen_object[keep],
            seen_style=self.seen_style[keep],
            asked_object=self.asked_object[keep],
            asked_style=self.asked_style[keep],
        )

    def seen(self, domain: Domain) -> Indices:
        """What the judge saw in one domain."""
        return self.seen_style if domain == "style" else self.seen_object

    def asked(self, domain: Domain) -> Indices:
        """What the prompts asked for in one domain."""
        return self.asked_style if domain == "style" else self.asked_object

    def right(self, domain: Domain) -> NDArray[np.bool_]:
        """(N,) whether the judge of one domain saw what was asked for."""
        return np.equal(self.seen(domain), self.asked(domain))

    def kept(self) -> NDArray[np.bool_]:
        """(N,) whether object and style both are as asked."""
        return self.right("object") & self.right("style")


def other(domain: Domain) -> Domain:
    """The other domain."""
    return "object" if domain == "style" else "style"


Rule = Callable[["Answers", int, Domain], tuple[NDArray[np.bool_], NDArray[np.bool_]]]


def _ua(answers: Answers, target: int, domain: Domain) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return answers.asked(domain) == target, answers.seen(domain) != target


def _ira(answers: Answers, target: int, domain: Domain) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return answers.asked(domain) != target, answers.right(domain)


def _cra(answers: Answers, target: int, domain: Domain) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return answers.asked(domain) != target, answers.right(other(domain))


def _cra_all(answers: Answers, target: int, domain: Domain) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return np.full(len(answers), True), answers.right(other(domain))


def _kept(answers: Answers, target: int, domain: Domain) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return answers.asked(domain) != target, answers.kept()


def _leak(answers: Answers, target: int, domain: Domain) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return answers.asked(domain) != target, answers.seen(domain) == target


RULES: Mapping[str, Rule] = {
    "UA": _ua,
    "IRA": _ira,
    "CRA": _cra,
    "CRA, target included": _cra_all,
    "kept": _kept,
    "target elsewhere": _leak,
}
"""Name to (which prompts count, which images are hits), both (N,) bool."""


def hits(name: str, answers: Answers, target: int, domain: Domain) -> NDArray[np.bool_]:
    """Hits of one measure over the prompts that count for it.

    Which prompts count depends on what was asked alone, so the hits of two models on the same prompts are
    paired.
    """
    rows, hit = RULES[name](answers, target, domain)
    return hit[rows]


def none_share(answers: Answers, domain: Domain, none: int) -> Interval | None:
    """Share of images on which the judge says "none of these" (``none`` = number of classes).

    A degenerate picture shows here: a picture that is nothing any more is "gone", too, but nobody wants it.
    """
    return _share(answers.seen(domain) == none)


def confusion(answers: Answers, domain: Domain, asked: int, classes: int) -> Indices:
    """(classes + 1,) counts of what was seen on the prompts that ask for ``asked``; "none" is the last."""
    rows = answers.asked(domain) == asked
    return np.bincount(answers.seen(domain)[rows], minlength=classes + 1).astype(np.int64)


def retained(answers: Answers, objects: Collection[int], styles: Collection[int]) -> NDArray[np.bool_]:
    """(N,) whether a prompt asks for none of the erased ``objects`` and ``styles``."""
    asks_object = np.isin(answers.asked_object, list(objects))
    asks_style = np.isin(answers.asked_style, list(styles))
    return ~(asks_object | asks_style)


def _share(hit: NDArray[np.bool_]) -> Interval | None:
    return share(hit) if hit.size else None
