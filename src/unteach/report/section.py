"""What a part of a page is, and where the records lie that it is made from.

A new kind of record is one file beside this one with its :class:`Section` and :class:`Kind`, its template, and its
name in :data:`unteach.report.page.KINDS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a verdict is green or amber; below that it is red.

    Attributes:
        gone: (green, amber) least share of the concept's prompts on which it is gone.
        lost: (green, amber) most that the rest may have lost against the unchanged model, as a share of
            prompts.
    """

    gone: tuple[float, float] = (0.95, 0.80)
    lost: tuple[float, float] = (0.05, 0.15)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page; the fields of a subclass are what its template shows.

    Attributes:
        TEMPLATE: file in ``templates`` that shows it; there it is called ``section``.
        STYLES: style sheets that it needs beside ``report.css``.
        PICTURES: whether it inlines pictures.
        title: headline.
        lead: what a reader must know first.
    """

    TEMPLATE: ClassVar[str]
    STYLES: ClassVar[tuple[str, ...]] = ()
    PICTURES: ClassVar[bool] = False
    title: str
    lead: str = ""


class Readable(Protocol):
    """A record that a page can show."""

    @classmethod
    def load(cls, path: Path) -> Any:
        """Read it from its file."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Records of one class, and how they are shown.

    Attributes:
        record: their class.
        what: what they are, for a reader.
        file: name of their files.
        section: makes the part of the page from all records of all kinds that it is the maker of.
        within: a file; where it lies beside theirs, it says what they say, and they are left out.
    """

    record: type[Readable]
    what: str
    file: str
    section: Callable[[Sequence[Any], Thresholds], Section]
    within: str = ""
