"""Text files that users write: plain text, JSON lines and CSV, in UTF-8 with or without a byte-order mark."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unteach.errors import DataError

CAPTIONS = ("text", "caption", "prompt")
"""What the column of captions is called, by one tool or another."""


def read(path: Path | str, what: str, fix: str) -> str:
    """A text file, line ends made "\\n"; ``what`` and ``fix`` are for the message.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} '{path}' is not UTF-8 text", found=error, fix="save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(
            f"{what} '{path}' cannot be read", found=getattr(error, "strerror", None) or error, fix=fix
        ) from error


def whole(text: str) -> bool:
    """Whether it can be written as UTF-8: half of a character, such as "\\ud800", cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Number and record of each line that is not empty; text instead of a record says what is wrong with it.

    Lines end at "\\n" alone: JSON may hold U+2028 and other characters at which Python would split, too.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except RecursionError:
            yield number, "too many brackets in each other"
        except ValueError as error:
            yield number, str(error)
        else:
            yield number, record if isinstance(record, dict) else f"{type(record).__name__} where {{...}} must be"


class Table(NamedTuple):
    """A CSV file: its header, its rows with their line numbers, and what is wrong with them."""

    header: list[str]
    rows: list[tuple[int, list[str]]]
    problems: list[str]


def table(path: Path | str, what: str, separators: str = ",", wanted: str = "") -> Table:
    """Read a CSV file. Empty rows are left out, short ones filled with "".

    Args:
        path: the file.
        what: for the message.
        separators: what may part cells; the first that gives the header a column ``wanted`` is taken, else the first.
        wanted: a column, in lower case.

    Raises:
        DataError: it cannot be read, or its quotes do not close.
    """
    text = read(path, what, "give a CSV file in UTF-8")
    first = text.split("\n", 1)[0].casefold()
    fits = [each for each in separators if wanted in (cell.strip(' "') for cell in first.split(each))]
    filled = list(_rows(text, (fits or [separators[0]])[0], path, what))
    if not filled:
        return Table([], [], [])
    header = [cell.strip() for cell in filled[0][1]]
    rows = [(number, row) for number, row in filled[1:] if any(cell.strip() for cell in row)]
    problems = [
        f"line {number} has more cells than the header ({len(row)}, {len(header)})"
        for number, row in rows
        if any(cell.strip() for cell in row[len(header) :])
    ]
    problems += [
        f"the column '{name}' is there twice" for name in sorted(set(header)) if header.count(name) > 1 and name
    ]
    return Table(header, [(number, (row + [""] * len(header))[: len(header)]) for number, row in rows], problems)


def _rows(text: str, separator: str, path: Path | str, what: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{what} '{path}' is not a whole CSV file",
                found=f"line {reader.line_num}: {error}",
                fix="mend the line",
            ) from error
        if row is None:
            return
        if row:
            yield reader.line_num, row


def prompts(path: Path | str) -> tuple[list[str], list[str]]:
    """Prompts of a file, each once, and the names of the columns that were not used.

    A ``.csv`` or ``.tsv`` file has them in its column ``prompt``; any other text file has one a line.

    Raises:
        DataError: it cannot be read, is of another kind, or holds no prompts.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind in (".json", ".jsonl", ".yaml", ".yml", ".parquet", ".xlsx"):
        raise DataError(
            f"prompts are not read from {kind} files",
            found=path.name,
            fix="give text, one prompt a line, or a CSV file",
        )
    unused: list[str] = []
    if kind in (".csv", ".tsv"):
        header, rows, problems = table(path, "the prompts file", ",;\t" if kind == ".csv" else "\t", "prompt")
        places = [i for i, name in enumerate(header) if name.casefold() == "prompt"]
        if len(places) != 1:
            raise DataError(
                f"'{path}' has no column 'prompt'" if not places else f"'{path}' has several columns 'prompt'",
                found=f"columns {_short(header)}",
                fix="name one column 'prompt' in the first line, or give a text file (.txt) with one prompt a line",
            )
        problems += [f"line {number} has no prompt" for number, row in rows if not row[places[0]].strip()]
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(
                f"'{path}' is not a whole table", found="; ".join(problems[:5]) + more, fix="put prompts into quotes"
            )
        unused = [name or "(without a name)" for i, name in enumerate(header) if i != places[0]]
        # A prompt is one line, as in a text file.
        texts = [" ".join(row[places[0]].split("\n")).strip() for _, row in rows]
    else:
        texts = [line.strip() for line in read(path, "the prompts file", "one prompt a line").split("\n")]
    texts = list(dict.fromkeys(text for text in texts if text))
    if not texts:
        raise DataError(f"'{path}' holds no prompts", fix="one prompt a line, or a CSV file with a column 'prompt'")
    return texts, unused


def caption_column(columns: Sequence[str]) -> str:
    """Which of a record's columns holds its caption.

    Raises:
        ValueError: none, or several of :data:`CAPTIONS`; the text names the columns found.
    """
    found = [name for name in CAPTIONS if name in columns]
    if len(found) != 1:
        which = " and ".join(f"'{name}'" for name in found) if found else "no 'text', 'caption' or 'prompt'"
        raise ValueError(f"{which}: one of them must be there (columns: {_short(columns)})")
    return found[0]


def _short(columns: Sequence[str], most: int = 12) -> str:
    names = [name if len(name) <= 40 else name[:37] + "..." for name in columns[:most]]
    return (", ".join(f"'{name}'" for name in names) + (" ..." if len(columns) > most else "")) or "none"
