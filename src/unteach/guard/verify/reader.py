"""Read safetensors files that nobody vouches for: strict about the header, one piece of a tensor in memory at a time.

The format (safetensors' own description): eight bytes, the header's length N as a little-endian number; N bytes of
JSON, name → ``{"dtype", "shape", "data_offsets": [begin, end]}`` and an optional ``"__metadata__"`` of texts; then the
tensors' bytes, row-major and little-endian, without gaps or overlaps. Nothing here unpickles, imports or follows a
link out of the folder it was given.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from unteach.errors import CheckpointError

__all__ = ["FLOATS", "Entry", "Safetensors", "Work", "bounded_bytes", "bounded_json", "parse_json", "regular", "walk"]

PIECE = 8 << 20
"""Bytes of a tensor that are in memory at a time."""
HEADER_LIMIT = 16 << 20
"""Bytes of a header; that of Stable Diffusion's U-Net has 85 thousand."""
JSON_LIMIT = 32 << 20
CONFIG_LIMIT = 8 << 20
"""Bytes of one JSON file of an upload; CLIP's tokenizer has four million."""
MOST_TENSORS = 100_000
MOST_FILES = 10_000
DEPTH = 12
ALL_HEADERS = 64 << 20
"""Bytes of headers, indexes and configurations in one upload; a whole SDXL pipeline has ten million."""
ALL_WEIGHTS = 64 << 30
"""Bytes of weights in one upload; an SDXL pipeline in float32 has 14 billion."""
ALL_TABLES = 600_000
"""Lists and tables in the JSON of one upload: what it costs to read; a tokenizer has 50 thousand."""

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""Plain floating-point formats, whose values can be compared."""
_DTYPES = FLOATS | {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
}  # fmt: skip
_BITS = {name: torch.empty(0, dtype=dtype).element_size() * 8 for name, dtype in _DTYPES.items()} | {
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_LFS = b"version https://git-lfs"


@dataclass
class Work:
    """What reading one upload has cost so far, over all of its files; too much is an error.

    Attributes:
        text: bytes of headers, indexes and configurations.
        names: tensors.
        weights: bytes of safetensors files.
        tables: opening brackets in the JSON.
    """

    text: int = 0
    names: int = 0
    weights: int = 0
    tables: int = 0

    def add(self, label: str, *, text: int = 0, names: int = 0, weights: int = 0, tables: int = 0) -> None:
        """Count before it is read.

        Raises:
            CheckpointError: the upload has more than one check may read.
        """
        self.text, self.names = self.text + text, self.names + names
        self.weights, self.tables = self.weights + weights, self.tables + tables
        for what, count, most in (
            ("bytes of headers and configurations", self.text, ALL_HEADERS),
            ("tensors", self.names, MOST_TENSORS),
            ("bytes of weights", self.weights, ALL_WEIGHTS),
            ("lists and tables", self.tables, ALL_TABLES),
        ):
            if count > most:
                raise CheckpointError(
                    f"the files hold too many {what} for one check",
                    found=f"{count} up to {label}, at most {most} are read",
                    fix="give the model alone: without a trainer's checkpoints and other models",
                )


@dataclass(frozen=True)
class Entry:
    """One tensor in a file, or some rows of one.

    Attributes:
        file: the open file.
        dtype: as the header says it ("F32"); formats that are not known here are kept as text.
        shape: as the header says it.
        start, stop: bytes in the file, from its beginning.
    """

    file: "Safetensors"
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def type(self) -> torch.dtype | None:
        """The torch type; None for formats that torch cannot hold as they lie in the file."""
        return _DTYPES.get(self.dtype)

    def rows(self, first: int, count: int) -> "Entry":
        """The part of the tensor with these rows (dimension 0)."""
        row = (self.stop - self.start) // self.shape[0]
        begin = self.start + first * row
        return Entry(self.file, self.dtype, (count, *self.shape[1:]), begin, begin + count * row)

    def pieces(self) -> Iterator[Tensor]:
        """The elements in row-major order, as flat tensors of at most :data:`PIECE` bytes.

        Raises:
            CheckpointError: a number format without a torch type, or the file became shorter.
        """
        if self.type is None:
            raise CheckpointError(
                f"a tensor of {self.file.label} has a number format that cannot be read", found=self.dtype
            )
        for begin in range(self.start, self.stop, PIECE):
            data = self.file.read(begin, min(PIECE, self.stop - begin))
            yield torch.frombuffer(data, dtype=self.type)


class Safetensors:
    """An open safetensors file whose header was checked; also a context manager.

    Args:
        path: the file. It must be a regular file.
        label: what messages call it, the path by default.
        work: counts it together with other files of the same upload.

    Attributes:
        entries: name to :class:`Entry`, in the order of the bytes.
        metadata: the header's texts.
        size: bytes of the file.

    Raises:
        CheckpointError: it cannot be read or is not a whole, well-formed safetensors file; says what is wrong.
    """

    def __init__(self, path: Path | str, label: str | None = None, work: Work | None = None) -> None:
        self.path = Path(path)
        self.label = label or str(path)
        self._work = work or Work()
        self._file = regular(self.path, self.label)
        try:
            self.size = os.fstat(self._file).st_size
            self.entries: dict[str, Entry] = {}
            self.metadata: dict[str, str] = {}
            self._read_header()
        except BaseException:
            self.close()
            raise

    def read(self, start: int, count: int) -> bytearray:
        """``count`` bytes from ``start`` on.

        Raises:
            CheckpointError: the file ends before, or cannot be read.
        """
        data = bytearray(count)
        view, done = memoryview(data), 0
        try:
            while done < count:
                got = os.preadv(self._file, [view[done:]], start + done)
                if got == 0:
                    raise self._bad("it ends before the tensors do", f"end of file at byte {start + done}")
                done += got
        except OSError as error:
            raise CheckpointError(f"cannot read {self.label}", found=error.strerror or error) from error
        return data

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bad(self, problem: str, found: object = None) -> CheckpointError:
        return CheckpointError(f"{self.label} is not a well-formed safetensors file: {problem}", found=found)

    def _read_header(self) -> None:
        if self.size < 8:
            raise self._bad("it is too short for a header", f"{self.size} bytes")
        start = bytes(self.read(0, min(self.size, len(_LFS))))
        if start == _LFS:
            raise CheckpointError(
                f"{self.label} is only a pointer to the file in a large-file store", fix="fetch it with 'git lfs pull'"
            )
        length = int.from_bytes(start[:8], "little")
        if length > HEADER_LIMIT:
            raise self._bad("its header is too long", f"{length} bytes, at most {HEADER_LIMIT} are read")
        if length > self.size - 8:
            raise self._bad("its header is longer than the file", f"{length} of {self.size - 8} bytes")
        self._work.add(self.label, text=length, weights=self.size - 8 - length)
        text = bytes(self.read(8, length))
        if not text.startswith(b"{"):
            raise self._bad("its header does not begin with '{'", text[:12])
        self._work.add(self.label, tables=_tables(text))
        header = parse_json(text, f"the header of {self.label}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._bad("its metadata is not a table of texts")
        if len(header) > MOST_TENSORS:
            raise self._bad("it lists too many tensors", f"{len(header)}, at most {MOST_TENSORS} are read")
        self._work.add(self.label, names=len(header))
        self.metadata = metadata
        found = [(name, *self._entry(name, value)) for name, value in header.items()]
        here = 0
        for name, dtype, shape, begin, end in sorted(found, key=lambda item: item[3:]):
            if begin != here:
                raise self._bad("tensors overlap or leave a gap", f"'{name}' begins at {begin}, expected {here}")
            here = end
            self.entries[name] = Entry(self, dtype, shape, 8 + length + begin, 8 + length + end)
        if here != self.size - 8 - length:
            raise self._bad("its length does not fit its header", f"{self.size - 8 - length} bytes, expected {here}")

    def _entry(self, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
        """Dtype, shape, begin and end of one tensor; every number checked."""
        if not name or len(name) > 512 or not name.isprintable():
            raise self._bad("a tensor's name is empty, too long or not printable", repr(name[:40]))
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad(f"the entry of '{name}' must have dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", dtype):
            raise self._bad(f"the dtype of '{name}' is not a name", repr(dtype)[:40])
        if not _counts(shape) or len(shape) > 16:
            raise self._bad(f"the shape of '{name}' is not a list of sizes", repr(shape)[:80])
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= self.size:
            raise self._bad(f"the offsets of '{name}' do not lie in the file", repr(offsets)[:80])
        begin, end = offsets
        if dtype in _BITS and (math.prod(shape) * _BITS[dtype] + 7) // 8 != end - begin:
            raise self._bad(f"the size of '{name}' does not fit its shape", f"{dtype} {shape} in {end - begin} bytes")
        return dtype, tuple(shape), begin, end


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _tables(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def regular(path: Path, label: str) -> int:
    """Open a file for reading and return its descriptor; a pipe, a device or a folder is refused, without waiting.

    Raises:
        CheckpointError: it is missing, unreadable or not a regular file.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {label}", found=getattr(error, "strerror", None) or error) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise CheckpointError(f"{label} is not a regular file", fix="give a file of weights or a model's folder")
    return file


def parse_json(text: bytes, label: str, *, infinite: bool = False) -> dict[str, Any]:
    """A JSON object from bytes: no key twice, not deep, and no NaN.

    Args:
        text: what was read.
        label: what messages call it.
        infinite: let Infinity stand, which is not JSON but which Python writes (a scheduler's ``lambda_min_clipped``).

    Raises:
        CheckpointError: it is something else; says what.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {twice[:80]!r} stands twice")
        return table

    def never(constant: str) -> float:
        if infinite and constant != "NaN":
            return float(constant)
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label} is damaged: not clean JSON", found=str(error)[:200]) from error
    if not isinstance(value, dict) or _deep(value, DEPTH):
        raise CheckpointError(f"{label} is damaged: it must be one JSON object, at most {DEPTH} deep")
    return value


def _deep(value: object, left: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_deep(item, left - 1) for item in items if isinstance(item, dict | list))


def bounded_json(
    path: Path,
    label: str | None = None,
    limit: int = JSON_LIMIT,
    work: Work | None = None,
    *,
    infinite: bool = False,
) -> dict[str, Any]:
    """A JSON object from a file of at most ``limit`` bytes; errors as in :func:`regular` and :func:`parse_json`."""
    label = label or str(path)
    text = bounded_bytes(path, label, limit, work)
    if work is not None:
        work.add(label, tables=_tables(text))
    return parse_json(text, label, infinite=infinite)


def bounded_bytes(path: Path, label: str, limit: int = JSON_LIMIT, work: Work | None = None) -> bytes:
    """A file of at most ``limit`` bytes; errors as in :func:`regular`, and :class:`CheckpointError` when longer."""
    with os.fdopen(regular(path, label), "rb") as file:
        if work is not None:
            work.add(label, text=min(os.fstat(file.fileno()).st_size, limit + 1))
        text = file.read(limit + 1)
    if len(text) > limit:
        raise CheckpointError(f"{label} is too long", found=f"more than {limit} bytes")
    return text


def walk(folder: Path, *, links: bool = False) -> dict[str, Path]:
    """Every file below a folder: path with "/" relative to the folder → resolved path, sorted.

    Args:
        folder: where to look.
        links: let files be links to anywhere, as in a hub's cache. Else a link must stay in the folder. Linked
            folders are never followed.

    Raises:
        CheckpointError: a link that leads out, a linked folder, or more than :data:`MOST_FILES` entries.
    """
    root = folder.resolve()
    found: dict[str, Path] = {}
    pending, seen = [root], 0
    while pending:
        try:
            entries = sorted(os.scandir(pending.pop()), key=lambda entry: entry.name)
            for entry in entries:
                seen += 1
                if seen > MOST_FILES:
                    raise CheckpointError(f"{folder} holds too much to check", found=f"more than {MOST_FILES} entries")
                name = Path(entry.path).relative_to(root).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                target = Path(entry.path).resolve()
                if entry.is_symlink() and (target.is_dir() or not (links or target.is_relative_to(root))):
                    raise CheckpointError(
                        f"{name!r} in {folder} is a link that leads out of the folder, or to a folder",
                        fix="copy the files themselves into the folder (cp -rL)",
                    )
                found[name] = target
        except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
            raise CheckpointError(f"cannot list {folder}", found=getattr(error, "strerror", None) or error) from error
    return dict(sorted(found.items()))
