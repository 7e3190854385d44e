"""What kind of file each one of an upload is: weights, harmless, a trainer's leftover, or something nobody can judge.

The list is of what is let through; whatever is not on it is undecidable. Nothing is opened but for its first bytes.
"""

import os
import re
from pathlib import Path

from unteach.errors import CheckpointError
from unteach.guard.verify.reader import regular
from unteach.guard.verify.verdict import Finding

__all__ = ["CHECKPOINT", "foreign", "leftover"]

CHECKPOINT = re.compile(r"checkpoint-\d+")
"""A trainer's folder of one step."""
_TEXT = {
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".rst",
    ".jinja",
    ".j2",
    ".yaml",
    ".yml",
    ".toml",
    ".csv",
    ".cff",
    ".log",
    ".sig",
}
_TEXT_NAMES = re.compile(
    r"(licen[cs]e|copying|notice|readme|authors|changelog)[a-z0-9_-]*|\.git(attributes|ignore|keep)|cachedir\.tag"
)
_CACHE = re.compile(r"(.+/)?\.cache/huggingface/.+\.(metadata|lock)")
_PICTURES = {
    ".png": (b"\x89PNG\r\n\x1a\n",), ".jpg": (b"\xff\xd8\xff",), ".jpeg": (b"\xff\xd8\xff",),
    ".gif": (b"GIF87a", b"GIF89a"), ".webp": (b"RIFF",), ".bmp": (b"BM",),
}  # fmt: skip
_PICKLES = {
    ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5", ".ot", ".dill",
    ".pdparams", ".mar", ".th",
}  # fmt: skip
_OTHER = {
    ".gguf", ".ggml", ".onnx", ".pb", ".tflite", ".mlmodel", ".trt", ".engine", ".zip", ".tar", ".gz", ".7z", ".xz",
}  # fmt: skip
_CODE = {".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", ".exe", ".sh", ".bat", ".js", ".ipynb"}
_MAGIC = {b"PK\x03\x04": "a zip archive", b"\x80": "a pickle", b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file"}
_STATE = re.compile(
    r"(optimizer|scheduler|sampler|dl_state_dict)(_\d+)?\.bin|random_states_\d+\.pkl|scaler\.pt|custom_checkpoint_\d+\.pkl"
    r"|(optimizer|scheduler)\.pt|rng_state(_\d+)?\.pth|training_args\.bin"
)
"""What accelerate and transformers save beside the weights to go on training; no loader of a model reads these."""
_EVENTS = re.compile(r"events\.out\.tfevents\.[\w.-]+|run-[\w-]+\.wandb")
HEAD = 4096


def leftover(name: str, root: str) -> bool:
    """Whether a file is what a trainer leaves to go on from, or its log, at the place where a trainer leaves it.

    Args:
        name: path in the folder.
        root: name of the folder, which may itself be a trainer's checkpoint.
    """
    folders = [root, *name.split("/")[:-1]]
    file = name.rpartition("/")[2]
    if _EVENTS.fullmatch(file):
        return bool({"logs", "runs", "wandb"} & set(folders))
    return bool(CHECKPOINT.fullmatch(folders[-1]) and _STATE.fullmatch(file))


def foreign(name: str, path: Path, *, always: bool = False) -> Finding | None:
    """A finding for a file that is neither safetensors nor of a kind that is let through; None for all others.

    Args:
        name: what the finding calls it: its path in the folder.
        path: where it is.
        always: it was given as the candidate, so that harmless files are none either.
    """
    file = name.rpartition("/")[2]
    suffix = Path(file).suffix.lower()
    if suffix == ".safetensors":
        return None
    if suffix in _PICKLES:
        if _STATE.fullmatch(file):
            detail = "a trainer's state; no model needs it and it is never opened. Delete it, or publish without it"
        else:
            detail = "may be a pickle, which can run code; it is never opened. Save it as safetensors"
        return Finding("undecidable", "unsafe", name, detail)
    if suffix in _OTHER:
        detail = f"a {suffix} file cannot be compared. Give the weights as safetensors"
        return Finding("undecidable", "unknown", name, detail)
    if suffix in _CODE:
        return Finding("undecidable", "unsafe", name, "brings code of its own, and nobody can say what that does")
    head = _head(path, name)
    what = _disguised(head)
    if what:
        return Finding("undecidable", "unknown", name, f"is {what} by its first bytes, whatever its name says")
    if always:
        return Finding("undecidable", "unknown", name, "is not a safetensors file")
    if not head or _harmless(name, file, suffix, head):
        return None
    detail = "a kind of file that is not known here, so that nobody can say whether a loader reads it. Leave it out"
    return Finding("undecidable", "unknown", name, detail)


def _harmless(name: str, file: str, suffix: str, head: bytes) -> bool:
    if suffix in _PICTURES:
        return head.startswith(_PICTURES[suffix])
    known = suffix in _TEXT or _TEXT_NAMES.fullmatch(file.lower())
    return bool(known or _CACHE.fullmatch(name)) and _is_text(head)


def _is_text(head: bytes) -> bool:
    """Whether these first bytes of a file are UTF-8 without control characters that no text has."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < HEAD or error.start < HEAD - 3:  # a letter may be cut at the end
            return False
        text = head[: error.start].decode("utf-8")
    return not any(c < " " and c not in "\t\n\r\f\x1b" for c in text)


def _head(path: Path, name: str) -> bytes:
    if not path.exists():
        raise CheckpointError(f"'{name}' is a link to nothing", fix="copy the file itself into the folder")
    with os.fdopen(regular(path, f"'{name}'"), "rb") as file:
        return file.read(HEAD)


def _disguised(head: bytes) -> str | None:
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    looks = len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32
    return "a safetensors file" if looks else None
