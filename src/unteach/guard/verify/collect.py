"""Find the weights in a file or a folder, grouped as a loader would read them; open nothing that is not safetensors."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from unteach.errors import CheckpointError
from unteach.guard.verify.kinds import foreign, leftover
from unteach.guard.verify.reader import CONFIG_LIMIT, Entry, Safetensors, Work, bounded_json, walk
from unteach.guard.verify.verdict import Finding

__all__ = ["Found", "WeightSet", "alike", "collect", "inside"]

MOST_WEIGHT_FILES = 512
_SHARD = re.compile(r"(?P<stem>.+?)-(?P<number>\d{5})-of-(?P<of>\d{5})(?P<variant>(\.\w+)?)\.safetensors")
_INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(\.\w+)?\.json|.+\.index\.safetensors\.json")
_LOADED = re.compile(r"(diffusion_pytorch_model|model)([.-].*)?\.safetensors")


@dataclass(frozen=True, eq=False)
class WeightSet:
    """Tensors that belong together: one file, or all shards of one.

    Attributes:
        label: path relative to the folder, or the file's name.
        folder: the folder it is in, relative; "" for the folder itself and for a file.
        files: open.
        loaded: whether it has a name that from_pretrained looks for, and an index if it is in shards.
        alone: it was given as a file, not in a folder.
        chosen: some of the tensors, perhaps under other names; None for all as the files have them.
    """

    label: str
    folder: str
    files: tuple[Safetensors, ...]
    loaded: bool = False
    alone: bool = False
    chosen: tuple[tuple[str, Entry], ...] | None = None

    @property
    def entries(self) -> list[tuple[str, Entry]]:
        """Every tensor by name; a name that stands in two shards comes twice."""
        if self.chosen is not None:
            return list(self.chosen)
        return [pair for file in self.files for pair in file.entries.items()]

    @property
    def named_as_model(self) -> bool:
        """Whether it lies in a folder under a name that from_pretrained takes for a model's weights."""
        return not self.alone and bool(_LOADED.fullmatch(self.label.rpartition("/")[2]))

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
        paths: every file of a folder: name in it → where it is; empty when a file was given.
        root: name of the folder or file.
        leftovers: a trainer's files, which were not looked into.
        work: what reading has cost.
    """

    sets: tuple[WeightSet, ...]
    findings: tuple[Finding, ...]
    files: tuple[str, ...] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)
    root: str = ""
    leftovers: tuple[str, ...] = ()
    work: Work = field(default_factory=Work)

    @property
    def pipelines(self) -> list[str]:
        """Folders that hold a ``model_index.json``; "" is the folder itself."""
        return [name.rpartition("/")[0] for name in self.paths if name.rpartition("/")[2] == "model_index.json"]

    def json(self, name: str) -> dict[str, object]:
        """A JSON object of the folder; errors as in :func:`~unteach.guard.verify.reader.bounded_json`."""
        return bounded_json(self.paths[name], f"'{name}'", CONFIG_LIMIT, self.work, infinite=True)


def inside(folder: str, name: str) -> str:
    """The path of a file in a folder of an upload, "" being the upload itself."""
    return f"{folder}/{name}" if folder else name


def alike(name: str) -> str:
    """One text for all names that some file system takes for the same."""
    parts = unicodedata.normalize("NFKC", name).casefold().split("/")
    return "/".join(part.rstrip(" .") or part for part in parts)


def collect(path: Path, stack: ExitStack, *, trusted: bool = False) -> Found:
    """Open every weight file of a candidate.

    Args:
        path: a file or a folder.
        stack: closes the files.
        trusted: it is the publisher's own base: links may lead anywhere, and what is not safetensors is passed over.

    Raises:
        CheckpointError: the path does not exist, a file is damaged, a link or an index leads out of the folder, or
            there is more to read than one check may.
    """
    root = path.resolve().name
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"there is no {path}", fix="check the path; nothing is downloaded here")
        finding = None if path.suffix.lower() == ".safetensors" else foreign(path.name, path, always=True)
        if finding:
            return Found((), (finding,), root=root)
        file = stack.enter_context(Safetensors(path, work=None if trusted else Work()))
        return Found((WeightSet(path.name, "", (file,), alone=True),), (), (path.name,), root=root)
    work = Work()
    files = walk(path, links=trusted)
    weights = {name: where for name, where in files.items() if name.lower().endswith(".safetensors")}
    if len(weights) > MOST_WEIGHT_FILES:
        raise CheckpointError(
            f"{path} holds too many weight files", found=f"{len(weights)}, at most {MOST_WEIGHT_FILES} are checked"
        )
    findings: list[Finding] = []
    left: list[str] = []
    if not trusted:
        left = [name for name in files if leftover(name, root)]
        kept = [name for name in files if name not in set(left)]
        git = [name for name in kept if ".git" in name.split("/")[:-1]]
        if git:
            detail = f"{len(git)} files of a version control system; give the files without it"
            findings.append(Finding("undecidable", "unknown", git[0], detail))
        findings += [f for name in kept if name not in set(git) and (f := foreign(name, files[name]))]
        findings += _twins(files)
    shared = None if trusted else work
    opened = {name: stack.enter_context(Safetensors(where, f"'{name}'", shared)) for name, where in weights.items()}
    groups = {name: _group(name) for name in opened}
    indexed: set[str] = set()
    for name, where in files.items():
        if _INDEX.fullmatch(name.rpartition("/")[2]):
            findings += _apply_index(name, where, opened, groups, indexed, work)
    sets = []
    for group in dict.fromkeys(groups.values()):
        names = [name for name in opened if groups[name] == group]
        file_name = group.rpartition("/")[2]
        loaded = bool(_LOADED.fullmatch(file_name)) and (names == [group] or indexed.issuperset(names))
        sets.append(WeightSet(group, group.rpartition("/")[0], tuple(opened[name] for name in names), loaded))
    return Found(tuple(sets), tuple(findings), tuple(opened), files, root, tuple(left), work)


def _twins(files: Iterable[str]) -> list[Finding]:
    """Files and folders that some file systems take for one another: then it is a matter of luck which is loaded."""
    seen: dict[str, str] = {}
    found = {}
    for file in files:
        parts = file.split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            other = seen.setdefault(alike(name), name)
            if other != name:
                found[name] = Finding("undecidable", "unknown", name, f"differs from '{other}' in writing alone")
    return list(found.values())


def _group(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    match = _SHARD.fullmatch(file)
    return f"{folder}{slash}{match['stem']}{match['variant']}-of-{match['of']}.safetensors" if match else name


def _apply_index(
    name: str,
    path: Path,
    opened: Mapping[str, Safetensors],
    groups: dict[str, str],
    indexed: set[str],
    work: Work,
) -> Sequence[Finding]:
    """Check a shard index, and put the files that it names into one group; ``indexed`` gets their names."""
    content = bounded_json(path, f"'{name}'", CONFIG_LIMIT, work)
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
    named = {folder + file for file in table.values()}
    members = {groups[file] for file in named}
    beside = [file for file, group in groups.items() if group in members and file not in named]
    held = {tensor for file in named for tensor in opened[file].entries}
    wrong = [tensor for tensor, file in table.items() if tensor not in opened[folder + file].entries]
    problems = []
    if not table:
        problems.append("names no tensor, so that a loader reads none")
    if wrong:
        problems.append(f"names {len(wrong)} tensors that are not in the file it gives, first {wrong[0]!r:.120}")
    if beside:
        problems.append(f"leaves out {beside[0]!r:.120}, a shard of the same weights, so that no loader reads it")
    if len(held) > len(table):
        problems.append(f"leaves out {len(held - table.keys())} tensors of its files")
    odd = [file for file in named if not _SHARD.fullmatch(file.rpartition("/")[2])]
    if odd or len(members) > 1:
        problems.append(f"names {odd[0] if odd else max(members)!r:.120}, which is not one of its own shards")
    for file, group in list(groups.items()):
        if group in members:
            groups[file] = min(members)
    indexed |= named
    return [Finding("violates", "index", name, f"the index {problem}") for problem in problems[:1]]
