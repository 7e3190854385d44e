"""Errors. Every message says what was wrong, what was found and what to do.

What was found comes from files that may be anything, so it is cut to a length that a person reads.
"""

import unicodedata
from collections.abc import Sequence
from typing import Self

MOST_FOUND, MOST_LINE, MOST_LISTED = 600, 600, 20
"""Characters of what was found, characters of a line of a message, and mistakes that are listed."""


def shorten(text: str, most: int = MOST_FOUND) -> str:
    """A text of at most ``most`` characters: of a longer one the beginning and the end, with " … " between."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 3]} … {text[-end:]}"


def printable(text: str) -> str:
    """A text without what a terminal would act on: control characters, marks of direction, half characters.

    They are shown as escapes such as ``\\x1b``; line breaks and tabs stay.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c in "\n\t" or not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def _acts(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or "\u202a" <= character <= "\u202e"
        or ("\u2066" <= character <= "\u2069")
    )


class UnteachError(Exception):
    """Base of every error that Unteach raises on purpose.

    Args:
        problem: what was wrong, in one sentence.
        found: what was found instead (shown after "found:").
        fix: what the reader can do (shown after "to do:").
    """

    def __init__(self, problem: str, *, found: object = None, fix: str | None = None) -> None:
        self.problem, self.found, self.fix = problem, found, fix
        parts = ["\n".join(shorten(line, MOST_LINE) for line in problem.split("\n"))]
        if found is not None:
            lines = str(found).split("\n")  # a list of mistakes has a line each
            shown = [*lines[:MOST_LISTED], *lines[MOST_LISTED:][-1:]]
            parts.append("found: " + "\n".join(shorten(line) for line in shown))
        if fix is not None:
            parts.append(f"to do: {fix}")
        super().__init__("; ".join(parts))

    @classmethod
    def many(cls, problems: Sequence[str], *, where: str = "the configuration") -> Self:
        """One error that lists every mistake at once, so that one edit can mend them all."""
        if len(problems) == 1:
            return cls(f"{where}: {problems[0]}")
        listing = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(problems[:MOST_LISTED], 1))
        if len(problems) > MOST_LISTED:
            listing += f"\n  and {len(problems) - MOST_LISTED} more"
        return cls(f"{where} has {len(problems)} mistakes:\n{listing}")


class ConfigError(UnteachError):
    """A setting or an argument is unknown, out of range or contradicts another."""


class DataError(UnteachError):
    """Images, captions or concepts are missing, damaged or do not fit together."""


class ModelError(UnteachError):
    """A model folder is missing, of an unknown family, or cannot be edited in the way asked for."""


class CheckpointError(UnteachError):
    """A file of weights or of state is missing, damaged, foreign or could not be written."""


class NumericsError(UnteachError):
    """A loss or a weight stopped being a finite number."""


class MissingExtraError(UnteachError):
    """An optional dependency is not installed; the message names its install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the optional package '{package}', which is not installed",
            fix=f"pip install 'unteach[{extra}]'",
        )
