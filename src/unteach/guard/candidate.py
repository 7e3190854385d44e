"""Find the weights in a file or a folder, grouped as a loader would read them; open nothing that is not safetensors."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from unteach.errors import CheckpointError
from unteach.guard.files import Entry, Safetensors, bounded_json, regular, walk
from unteach.guard.verdict import Finding

__all__ = ["Found", "WeightSet", "collect"]

MOST_WEIGHT_FILES = 512
_SHARD = re.compile(r"(?P<stem>.+?)-\d{5}-of-(?P<of>\d{5})(?P<variant>(\.\w+)?)\.safetensors")
_INDEX = re.compile(r".+\.safetensors\.index(\.\w+)?\.json|.+\.index\.safetensors\.json")
_PICKLES = {
    ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5", ".ot", ".dill",
    ".pdparams", ".mar", ".th",
}  # fmt: skip
_OTHER = {
    ".gguf",
    ".ggml",
    ".onnx",
    ".pb",
    ".tflite",
    ".mlmodel",
    ".trt",
    ".engine",
    ".zip",
    ".tar",
    ".gz",
    ".7z",
    ".xz",
}
_CODE = {".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", ".exe"}
_MAGIC = {b"PK\x03\x04": "a zip archive", b"\x80": "a pickle", b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file"}


@dataclass(frozen=True, eq=False)
class WeightSet:
    """Tensors that belong together: one file, or all shards of one.

    Attributes:
        label: path relative to the folder, or the file's name.
        folder: the folder it is in, relative; "" for the folder itself and for a file.
        files: open.
    """

    label: str
    folder: str
    files: tuple[Safetensors, ...]

    @property
    def entries(self) -> list[tuple[str, Entry]]:
        """Every tensor by name; a name that stands in two shards comes twice."""
        return [pair for file in self.files for pair in file.entries.items()]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all files."""
        return {key: value for file in self.files for key, value in file.metadata.items()}


@dataclass(frozen=True, eq=False)
class Found:
    """What a path holds.

    Attributes:
        sets: the weights.
        findings: files that cannot be looked into, shards that contradict their index.
        files: names of the weight files that were opened.
    """

    sets: tuple[WeightSet, ...]
    findings: tuple[Finding, ...]
    files: tuple[str, ...] = field(default=())


def collect(path: Path, stack: ExitStack, *, trusted: bool = False) -> Found:
    """Open every weight file of a candidate.

    Args:
        path: a file or a folder.
        stack: closes the files.
        trusted: it is the publisher's own base: links may lead anywhere, and what is not safetensors is passed over.

    Raises:
        CheckpointError: the path does not exist, a file is damaged, a link or an index leads out of the folder.
    """
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"there is no {path}", fix="check the path; nothing is downloaded here")
        finding = None if path.suffix.lower() == ".safetensors" else _foreign(path.name, path, always=True)
        if finding:
            return Found((), (finding,))
        return Found((WeightSet(path.name, "", (stack.enter_context(Safetensors(path)),)),), (), (path.name,))
    files = walk(path, links=trusted)
    weights = {name: where for name, where in files.items() if name.lower().endswith(".safetensors")}
    if len(weights) > MOST_WEIGHT_FILES:
        raise CheckpointError(
            f"{path} holds too many weight files", found=f"{len(weights)}, at most {MOST_WEIGHT_FILES} are checked"
        )
    findings = [] if trusted else [f for name, where in files.items() if (f := _foreign(name, where))]
    opened = {name: stack.enter_context(Safetensors(where, f"'{name}'")) for name, where in weights.items()}
    groups = {name: _group(name) for name in opened}
    for name, where in files.items():
        if _INDEX.fullmatch(name.rpartition("/")[2]):
            findings += _apply_index(name, where, opened, groups)
    sets = []
    for group in dict.fromkeys(groups.values()):
        members = tuple(opened[name] for name in opened if groups[name] == group)
        sets.append(WeightSet(group, group.rpartition("/")[0], members))
    return Found(tuple(sets), tuple(findings), tuple(opened))


def _group(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    match = _SHARD.fullmatch(file)
    return f"{folder}{slash}{match['stem']}{match['variant']}-of-{match['of']}.safetensors" if match else name


def _apply_index(name: str, path: Path, opened: dict[str, Safetensors], groups: dict[str, str]) -> Sequence[Finding]:
    """Check a shard index, and put the files that it names into one group."""
    content = bounded_json(path, f"'{name}'")
    table = content.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"'{name}' is not an index of shards", found="no table 'weight_map' of texts")
    folder = name[: name.rfind("/") + 1]
    for file in dict.fromkeys(table.values()):
        plain = bool(file) and file == Path(file).name and "\\" not in file and file not in (".", "..")
        if not plain or not file.lower().endswith(".safetensors"):
            raise CheckpointError(
                f"'{name}' names a file outside its folder, or none of safetensors", found=f"{file!r:.120}"
            )
        if folder + file not in opened:
            raise CheckpointError(f"'{name}' names a file that is not there", found=f"{file!r:.120}")
    members = {groups[folder + file] for file in table.values()}
    for file, group in list(groups.items()):
        if group in members:
            groups[file] = min(members)
    wrong = [tensor for tensor, file in table.items() if tensor not in opened[folder + file].entries]
    if not wrong:
        return ()
    detail = f"the index names {len(wrong)} tensors that are not in the file it gives, first {wrong[0]!r:.120}"
    return (Finding("violates", "index", name, detail),)


def _foreign(name: str, path: Path, *, always: bool = False) -> Finding | None:
    """A finding for a file that may hold weights or code and is not opened; None for all others."""
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLES:
        detail = "may be a pickle, which can run code; it is never opened. Save it as safetensors"
        return Finding("undecidable", "unsafe", name, detail)
    if suffix in _OTHER:
        detail = f"a {suffix} file cannot be compared. Give the weights as safetensors"
        return Finding("undecidable", "unknown", name, detail)
    if suffix in _CODE:
        return Finding("undecidable", "unsafe", name, "brings code of its own, and nobody can say what that does")
    if suffix == ".safetensors":
        return None
    what = _disguised(path, name)
    if what:
        return Finding("undecidable", "unknown", name, f"is {what} by its first bytes, whatever its name says")
    if always:
        return Finding("undecidable", "unknown", name, "is not a safetensors file")
    return None


def _disguised(path: Path, name: str) -> str | None:
    if not path.exists():
        raise CheckpointError(f"'{name}' is a link to nothing", fix="copy the file itself into the folder")
    with os.fdopen(regular(path, f"'{name}'"), "rb") as file:
        start = file.read(9)
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return what
    looks = len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32
    return "a safetensors file" if looks else None
