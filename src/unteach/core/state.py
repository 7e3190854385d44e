"""Checkpoints and other files of a run: written aside, checked, renamed.

One file holds all tensors of a state (safetensors) and its JSON metadata in the header, with a digest over
both, so a file is either whole and ours, or refused. Nothing here unpickles anything.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

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

    Raises:
        CheckpointError: the folder cannot be written or the disk is full; ``path`` is then as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}",
            found=error.strerror or error,
            fix="choose a folder that can be written to",
        ) from error
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.chmod(0o644)
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"writing {path} failed; what stood there before is untouched",
            found=reason,
            fix="free some disk space or choose another folder, then run the same command again",
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write a file atomically; see :func:`replacing` for errors."""
    with replacing(Path(path)) as aside:
        aside.write_bytes(data)
    return Path(path)


def write_json(path: Path | str, obj: object) -> Path:
    """Write readable JSON atomically; see :func:`replacing` for errors."""
    text = json.dumps(json.loads(canonical(obj)), indent=2, ensure_ascii=False)
    return write_bytes(path, (text + "\n").encode())


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}", found=error.strerror or error) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: not JSON", found=error) from error


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
    return tensors, json.loads(header["unteach"])
