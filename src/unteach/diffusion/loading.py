"""Look at a diffusers folder before anything is loaded from it, and load it without noise or unsafe files."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from packaging.version import Version
from transformers.utils import logging as transformers_logging

from unteach.diffusion.families import Family, Pipeline, families
from unteach.diffusion.folder import check_files, check_index, check_parts, read_json
from unteach.diffusion.foreign import foreign, unremarked
from unteach.errors import ConfigError, ModelError

# from_pretrained's argument; the old name warns from 0.42 on.
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
_VARIANT = re.compile(r"[^.]+\.(?P<variant>\w+?)(-\d{5}-of-\d{5})?\.safetensors")
_UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".msgpack")


@dataclass(frozen=True)
class Found:
    """What a folder holds: its family, the variant of its files ("fp16" or None), and its networks and tokenizers."""

    folder: Path
    family: Family
    variant: str | None
    parts: tuple[str, ...]


def known_families() -> str:
    """The families that can be loaded, for messages."""
    return ", ".join(f"{name} ({families[name].pipeline.__name__})" for name in families)


def inspect(path: str | Path) -> Found:
    """Read the index and the configurations and list the files, without loading or importing any.

    Raises:
        ModelError: the folder is missing, is not a diffusers pipeline, is of an unknown family, brings code or leads
            out of itself, lacks files of its tokenizer, or has no safetensors weights.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise ModelError(
            f"there is no folder '{path}'",
            fix="give a local diffusers folder (nothing is downloaded here; 'hf download' fetches one)",
        )
    if not folder.is_dir():
        raise ModelError(
            f"'{path}' is not a folder",
            found="a file",
            fix="convert a single-file checkpoint to a diffusers folder first",
        )
    index = _read_index(folder)
    family = _family(index.get("_class_name"), folder)
    check_files(folder)
    parts = check_index(index, family, folder)
    check_parts(family, parts, folder)
    variants = {_variant(folder / part, part) for part in parts if part in family.components} - {None}
    if len(variants) > 1:
        raise ModelError(f"'{folder}' mixes weights of several variants", found=sorted(map(str, variants)))
    return Found(folder, family, next(iter(variants), None), tuple(parts))


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ModelError(
            f"'{folder}' is not a diffusers pipeline: it has no model_index.json",
            found=shown or "an empty folder",
            fix="give the folder that save_pretrained wrote, not one of its parts",
        )
    index = read_json(file)
    if not isinstance(index, dict):
        raise ModelError(f"'{file}' is not a pipeline's index", found=type(index).__name__)
    return index


def _family(class_name: object, folder: Path) -> Family:
    for name in families:
        if families[name].pipeline.__name__ == class_name:
            return families[name]()
    raise ModelError(
        f"'{folder}' is not of a known model family",
        found=f"pipeline class {class_name}",
        fix=f"known families: {known_families()}",
    )


def _variant(folder: Path, part: str) -> str | None:
    files = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
    safe = [name for name in files if name.endswith(".safetensors")]
    if not safe:
        unsafe = sorted(name for name in files if name.endswith(_UNSAFE))
        raise ModelError(
            f"the part '{part}' has no safetensors weights in '{folder}'",
            found=", ".join(unsafe or sorted(files)) or "nothing",
            fix="if you trust them, load them elsewhere and save_pretrained(..., safe_serialization=True); "
            "formats that can run code on loading are never read"
            if unsafe
            else "the download or the copy is incomplete: fetch the folder again",
        )
    variants = [match["variant"] if (match := _VARIANT.fullmatch(name)) else None for name in safe]
    # Plain files win; a variant is taken only where there is nothing else.
    return None if None in variants else variants[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No loading bars from diffusers and transformers inside the block; afterwards as before."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def load_pipeline(found: Found, dtype: torch.dtype, device: str | torch.device) -> Pipeline:
    """Load the pipeline with every part in ``dtype`` on ``device``, whatever type it was saved in.

    Raises:
        ConfigError: the dtype is not a floating type, or the device is not there.
        ModelError: the files are damaged or do not fit each other.
    """
    if not dtype.is_floating_point:
        raise ConfigError("weights need a floating type", found=dtype, fix="torch.float32")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device '{device}' is not available", found=error) from error
    again = f"'{found.folder}' could not be loaded"
    with foreign(again, fix="fetch or save the folder again"), quiet(), unremarked():
        # Part by part, by the class that is known: what the files lack is told, and no class is looked up by name.
        parts: dict[str, Any] = dict.fromkeys(found.family.optional - set(found.parts))
        for part, cls in found.family.components.items():
            if part in found.parts:
                parts[part] = _load_part(found, part, cls, dtype)
        pipe = found.family.pipeline.from_pretrained(
            found.folder, local_files_only=True, use_safetensors=True, **parts, **found.family.loading
        )
    with foreign(f"'{found.folder}' could not be put on '{device}'", fix="choose another device or dtype"):
        return pipe.to(device)


def _load_part(found: Found, part: str, cls: str, dtype: torch.dtype) -> Any:
    own = hasattr(diffusers, cls)
    variant = found.variant if any((found.folder / part).glob(f"*.{found.variant}[.-]*")) else None
    module, told = getattr(diffusers if own else transformers, cls).from_pretrained(
        found.folder / part,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        variant=variant,
        **{_DTYPE if own else "dtype": dtype},
    )
    empty = [name for name, tensor in module.state_dict().items() if tensor.device.type == "meta"]
    lost = sorted({*told["missing_keys"], *empty})
    if lost:
        raise ModelError(
            f"the file of '{part}' in '{found.folder}' lacks {len(lost)} of its tensors: they would be random",
            found=f"missing: {', '.join(lost[:3])}" + (", …" if len(lost) > 3 else ""),
            fix="fetch or save the folder again; a folder saved by a newer release may need that release to be read",
        )
    return module
