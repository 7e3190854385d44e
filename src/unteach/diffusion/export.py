"""Write a pipeline's folder again: what was loaded comes back with its components, files, number formats and names.

Only the denoiser's tensors are taken from memory; everything else is copied as files, also parts that are never loaded
here, such as a safety checker. A folder appears whole or not at all.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unteach.core import state
from unteach.diffusion.loading import inspect, quiet
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ConfigError, ModelError

try:
    import fcntl
except ImportError:  # no such locks on Windows: nothing is swept up there
    fcntl = None  # type: ignore[assignment]

__all__ = ["appearing", "forget_paths", "loaded", "rounded", "write"]

TOP_FILES = re.compile(r"(LICENSE|NOTICE)(\.\w+)?|[^.][^/]*\.(md|txt)", re.IGNORECASE)
"""Beside model_index.json, these files of a pipeline's folder are copied."""
PART_FILES = (".json", ".txt", ".md", ".jinja", ".safetensors")
"""Endings of a component's files that are copied; formats that can run code on loading are not."""
OF_A_POLICY = ("manifest.json", "manifest.json.sig")
"""Written by ``guard apply`` for other weights than those that are written now."""
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+?))?(?P<shard>-\d{5}-of-\d{5})?(?:\.(?P<late>\w+))?\.safetensors"
)
_INDEX = re.compile(r"(?:diffusion_pytorch_)?model\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Group = tuple[str | None, bool]
"""Variant of weight files, and whether they are shards."""


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give an empty folder aside, which becomes ``folder`` when the block ends well and is removed otherwise.

    Files get the modes that the process gives to new files. What killed processes left of the same folder is removed
    first; one that is still being written is not touched.

    Raises:
        ConfigError: the folder exists and is not empty.
        CheckpointError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty", fix="choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}", found=error.strerror or error) from error
    try:
        with _held(aside):
            yield aside
            _usual_modes(aside)
            aside.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"writing {folder} failed; nothing was left behind", found=error.strerror or error
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what was being written for ``folder`` by processes that are gone."""
    for stale in folder.parent.glob(f".{folder.name}.*.part"):
        if fcntl is not None and stale.is_dir() and not stale.is_symlink():
            with contextlib.suppress(OSError), _held(stale):
                shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder for the block; the system lets go of it when the process ends, however it ends.

    Raises:
        OSError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _usual_modes(folder: Path) -> None:
    """Give all files the mode of a new file and all folders that of a new folder (safetensors writes 0600)."""
    probe = folder / ".mode"
    probe.mkdir()
    of_folders = probe.stat().st_mode & 0o777
    (probe / "file").touch()
    of_files = (probe / "file").stat().st_mode & 0o777
    shutil.rmtree(probe)
    for path in folder.rglob("*"):
        path.chmod(of_folders if path.is_dir() else of_files)
    folder.chmod(of_folders)


def write(model: Model, out: Path) -> tuple[str, ...]:
    """Write the model's pipeline into an empty folder.

    A tensor of the denoiser that is what its file holds, up to the cast to the type it was loaded in, keeps the file's
    bits; another one is cast to the file's type. Other files of the same weights (another number format) are written
    too. A pipeline that was not loaded from a folder is written by ``save_pretrained``.

    Args:
        model: what to write, with the weights that it has now.
        out: an empty folder.

    Returns:
        What the original folder holds and ``out`` does not, relative to it.

    Raises:
        ModelError: the folder that it was loaded from is gone or changed, or another component was changed in memory.
        CheckpointError, OSError: it cannot be written.
    """
    source = model.path
    if source is None:
        with quiet():
            model.pipe.save_pretrained(out, safe_serialization=True)
        _finish(model, out)
        return ()
    inspect(source)
    index = state.read_json(source / "model_index.json")
    left: list[str] = []
    for name in sorted(entry.name for entry in source.iterdir()):
        path, entry = source / name, index.get(name)
        part = isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
        if path.is_dir() and part:
            if name == model.conventions.denoiser:
                left += _denoiser(model, path, out / name)
            else:
                left += _component(model, name, path, out / name)
        elif path.is_file() and (name == "model_index.json" or TOP_FILES.fullmatch(name)):
            shutil.copyfile(path, out / name)
        elif not name.startswith(".") and name != "unteach.json":
            left.append(name + "/" * path.is_dir())
    parts = [key for key, entry in index.items() if isinstance(entry, list) and entry[:1] != [None]]
    if gone := [part for part in parts if not (out / part).is_dir()]:
        state.write_json(out / "model_index.json", {**index, **{part: [None, None] for part in gone}})
    _finish(model, out)
    return tuple(left)


def _finish(model: Model, out: Path) -> None:
    for part, kind in model.conventions.components.items():
        if kind == "CLIPTextModel":
            _prefixed(out / part)
    forget_paths(out)


def _files(folder: Path) -> dict[str, Path]:
    return {entry.name: entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")}


def _component(model: Model, part: str, folder: Path, out: Path) -> list[str]:
    """Copy a component's files; nothing is written when its weights are there in unsafe formats alone."""
    files = _files(folder)
    kept = [n for n, p in files.items() if p.is_file() and p.suffix.lower() in PART_FILES and n not in OF_A_POLICY]
    weights = [name for name in kept if name.endswith(".safetensors")]
    left = [f"{part}/{name}" + "/" * files[name].is_dir() for name in files if name not in kept + list(OF_A_POLICY)]
    if not weights and any(files[name.split("/")[1]].suffix in (".bin", ".ckpt", ".pt", ".pth") for name in left):
        return [f"{part}/"]
    if part in model.conventions.components:
        _unchanged(part, getattr(model.pipe, part).state_dict(), [files[name] for name in weights])
    out.mkdir()
    for name in kept:
        shutil.copyfile(files[name], out / name)
    return left


def _unchanged(part: str, values: Mapping[str, Tensor], files: list[Path]) -> None:
    """Refuse a component that is not what one of its files holds: a copy of the files would lose the change."""
    known = {_canonical(name): value for name, value in values.items()}
    for path in files:
        with safe_open(path, framework="pt") as file:
            changed = [
                name
                for name in file.keys()  # noqa: SIM118 (not a dict)
                if (mine := known.get(_canonical(name))) is not None
                and not _same(file.get_tensor(name).to(mine.dtype), mine)
            ]
        if not changed:
            return
    if files:
        raise ModelError(
            f"the '{part}' in memory is not the one in the folder that it was loaded from",
            found=f"{len(changed)} tensors differ, first '{changed[0]}'",
            fix="load the model anew, or save the pipeline with pipe.save_pretrained",
        )


def _groups(folder: Path) -> dict[Group, list[Path]]:
    """A component's weight files by variant and sharding."""
    found: dict[Group, list[Path]] = {}
    for name, path in _files(folder).items():
        if match := _WEIGHTS.fullmatch(name):
            found.setdefault((match["variant"] or match["late"], match["shard"] is not None), []).append(path)
    return found


def loaded(model: Model, part: str) -> list[Path]:
    """The files that a component of a model from a folder was loaded from.

    Raises:
        ModelError: they are not there any more.
    """
    assert model.path is not None
    groups, variant = _groups(model.path / part), inspect(model.path).variant
    for group in ((variant, True), (variant, False), (None, True), (None, False)):
        if group in groups:
            return groups[group]
    raise ModelError(f"the weights of '{part}' are not where they were loaded from", found=f"{model.path / part}")


def _denoiser(model: Model, folder: Path, out: Path) -> list[str]:
    """Write every file of the denoiser's weights that holds the loaded weights, with those of now."""
    files, groups, chosen = _files(folder), _groups(folder), loaded(model, folder.name)
    values = model.denoiser.state_dict()
    where = {name: path for path in chosen for name in _names(path)}
    if lost := sorted(values.keys() - where.keys()):
        raise ModelError(f"'{folder.name}' lacks tensors of the model", found=f"{len(lost)}, first '{lost[0]}'")
    out.mkdir()
    written: set[str] = set()
    for group, paths in groups.items():
        if paths != chosen and not _same_weights(paths, where):
            continue
        written |= {path.name for path in paths}
        for path in paths:
            _rewrite(path, out / path.name, values, where)
        for name, path in files.items():
            match = _INDEX.fullmatch(name)
            if match and group == (match["variant"], True):
                _write_index(path, out / name, values)
                written.add(name)
    for name, path in files.items():
        plain = path.is_file() and path.suffix in PART_FILES and path.suffix != ".safetensors"
        if plain and name not in OF_A_POLICY and not _INDEX.fullmatch(name):
            shutil.copyfile(path, out / name)
            written.add(name)
    return [f"{folder.name}/{name}" for name in files if name not in (*written, *OF_A_POLICY)]


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    a, b = a.cpu().contiguous(), b.detach().cpu().contiguous()
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS.get(tensor.element_size(), torch.uint8))


def _same_weights(paths: list[Path], where: Mapping[str, Path]) -> bool:
    """Whether these files hold the loaded weights in another number format: an average, say, does not."""
    for path in paths:
        for name in _names(path):
            old = _tensor(path, name)
            if name not in where or not _same(_tensor(where[name], name).to(old.dtype), old):
                return False
    return True


def _rewrite(path: Path, out: Path, values: Mapping[str, Tensor], where: Mapping[str, Path]) -> None:
    """One file with the tensors of now; the same bytes when none of them changed."""
    new: dict[str, Tensor] = {}
    changed = False
    for name in _names(path):
        old = _tensor(path, name)
        value = values.get(name)
        if value is None:  # the model does not have it: loaders pass over it
            changed = True
        elif _same(_tensor(where[name], name).to(value.dtype), value):
            new[name] = old
        else:
            changed = True
            new[name] = value.detach().to("cpu", old.dtype, copy=True).contiguous()
    if changed:
        save_file(new, out, metadata={"format": "pt"})
    else:
        shutil.copyfile(path, out)


def _write_index(path: Path, out: Path, values: Mapping[str, Tensor]) -> None:
    """An index of shards, without tensors that the model does not have."""
    content = state.read_json(path)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if isinstance(table, dict) and not table.keys() <= values.keys():
        state.write_json(out, {**content, "weight_map": {k: v for k, v in table.items() if k in values}})
    else:
        shutil.copyfile(path, out)


def _canonical(name: str) -> str:
    """The name of a text encoder's tensor without what transformers 4 puts before it."""
    return name.removeprefix("text_model.")


def _prefixed(folder: Path) -> None:
    """Give a CLIP text encoder's tensors the names that transformers 4 needs; 5 reads both.

    Under 5 its own ``save_pretrained`` leaves the prefix out, and 4 then starts with random weights.
    """
    for path in folder.glob("model*.safetensors"):
        names = _names(path)
        if (folder / "model.safetensors.index.json").exists() or any(n.startswith("text_model.") for n in names):
            continue
        inner = ("embeddings.", "encoder.", "final_layer_norm.")
        renamed = {"text_model." * name.startswith(inner) + name: _tensor(path, name) for name in names}
        save_file(renamed, path, metadata={"format": "pt"})


def rounded(model: Model) -> None:
    """Round the denoiser's tensors to the number formats that its files have, so that they can be published exactly.

    A model that was not loaded from a folder stays as it is.
    """
    if model.path is None:
        return
    values = model.denoiser.state_dict()
    with torch.no_grad():
        for path in loaded(model, model.conventions.denoiser):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    kind = _TYPES.get(file.get_slice(name).get_dtype())
                    if kind is not None and name in values and values[name].is_floating_point():
                        values[name].copy_(values[name].to(kind))
    model.weights_changed()


_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def forget_paths(folder: Path) -> None:
    """Remove ``_name_or_path`` (a path on the machine that loaded it) from a pipeline's configs."""
    for file in folder.rglob("*.json"):
        try:
            content: Any = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # copied, never read: nobody wrote a path into it in this form
            continue
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            state.write_json(file, content)
