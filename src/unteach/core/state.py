"""Checkpoints and other files of a run: written aside, checked, renamed.

One file holds all tensors of a state (safetensors) and its JSON metadata in the header, with a digest over
both, so a file is either whole and ours, or refused. Nothing here unpickles anything.
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from unteach.core import places, reading
from unteach.errors import CheckpointError

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]


def canonical(obj: object) -> str:
    """JSON text with sorted keys, equal for equal things; dataclasses, sets and paths are allowed."""

    def plain(value: object) -> object:
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, set | frozenset):
            return sorted(value)
        raise TypeError(f"a {type(value).__name__} cannot be part of a configuration")

    return json.dumps(obj, sort_keys=True, default=plain, separators=(",", ":"), ensure_ascii=False)


def fingerprint(obj: object) -> str:
    """SHA-256 (hex) of the canonical JSON of a configuration."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of tensors, independent of their order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it into place when the block ends well, else remove it.

    The file gets the mode that the process gives to new files. What killed processes left of the same file is removed.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full; ``path`` is then as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        places.sweep(path.parent, f".{glob.escape(path.name)}.*.part", deep=False)
        aside, handle = places.aside(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}", found=error.strerror or error, fix="choose a folder that can be written to"
        ) from error
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"writing {path} failed; what stood there before is untouched",
            found=getattr(error, "strerror", None) or error,
            fix=f"{places.cure(error)}, then run the same command again",
        ) from error
    finally:
        aside.unlink(missing_ok=True)
        os.close(handle)


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write a file atomically; see :func:`replacing` for errors."""
    with replacing(Path(path)) as aside:
        aside.write_bytes(data)
    return Path(path)


def write_json(path: Path | str, obj: object) -> Path:
    """Write readable JSON atomically; see :func:`replacing` for errors."""
    text = json.dumps(json.loads(canonical(obj)), indent=2, ensure_ascii=False)
    try:
        data = (text + "\n").encode()
    except UnicodeEncodeError as error:  # half a character, such as a file name that is not UTF-8
        raise CheckpointError(f"cannot write {path}: a text in it is not Unicode", found=error) from error
    return write_bytes(path, data)


def read_json(path: Path | str) -> Any:
    """Read a JSON file: plain data of bounded depth, see :mod:`unteach.core.reading`.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    return reading.read_json(Path(path))


def read_table(path: Path | str) -> dict[str, Any]:
    """Read a JSON file that holds one table.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something else.
    """
    found = reading.read_json(Path(path))
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: not a table of settings", found=type(found).__name__)
    return found


def save(path: Path | str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write tensors and JSON metadata into one safetensors file, atomically, with a digest over both."""
    solid: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory (tied weights): each gets its own copy in the file.
        solid[name] = flat.clone() if place in taken else flat
        taken.add(place)
    text = canonical(dict(meta))
    header = {"unteach": text, "digest": fingerprint([digest(solid), text]), "format": "pt"}
    return write_bytes(path, _in_order(to_bytes(solid, metadata=header)))


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted, which safetensors orders anew in each call."""
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[start:]])


def load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote: tensors on the CPU and the metadata.

    Raises:
        CheckpointError: the file is missing, damaged (truncated, changed) or was not written by Unteach.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", fix="check the path, or run the command that makes it")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, UnicodeError) as error:
        raise CheckpointError(
            f"{path} is damaged: not a whole safetensors file", found=error, fix="delete it and run again"
        ) from error
    if "unteach" not in header or "digest" not in header:
        raise CheckpointError(
            f"{path} was not written by Unteach",
            found=f"metadata keys {sorted(header)}",
            fix="check the path",
        )
    whole = header["digest"] == fingerprint([digest(tensors), header["unteach"]])
    if not whole or header.get("format") != "pt":
        raise CheckpointError(f"{path} is damaged: its digest does not fit its content", fix="delete it and run again")
    try:
        meta = json.loads(header["unteach"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its record is not JSON", found=error) from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path} is damaged: its record is not a table", found=type(meta).__name__)
    return tensors, meta
