"""What a pipeline's folder may hold: data of known kinds, no code, and nothing that leads out of the folder.

Nothing is loaded or imported here. Loaders of diffusers and transformers follow what these files say, some releases as
far as running a Python file that lies in the folder, so the folder is read first.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unteach.diffusion.families import Family
from unteach.errors import ModelError

_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
_READ_ELSEWHERE = ("auto_map", "quantization_config", "custom_pipelines")
_TOKENIZER_FILES = ("vocab_file", "merges_file", "tokenizer_file")
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
    "image_encoder": ("CLIPVisionModelWithProjection",),
}
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)
_TOKENIZERS = {"CLIP": ("CLIPTokenizer", "CLIPTokenizerFast"), "T5": ("T5Tokenizer", "T5TokenizerFast")}


def check_files(folder: Path) -> None:
    """Refuse a folder that holds code, or links that lead out of it (into the blobs of a download cache they may).

    Raises:
        ModelError: names the files.
    """
    root = folder.resolve()
    # HUB/models--NAME/snapshots/REVISION: its files are links to HUB/models--NAME/blobs.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    code, outside = [], []
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.suffix.lower() in _CODE and name in files:
                code.append(str(path.relative_to(root)))
            if path.is_symlink():
                target = path.resolve()
                if not any(target.is_relative_to(home) for home in (root, blobs) if home is not None):
                    outside.append(str(path.relative_to(root)))
    if code:
        raise ModelError(
            f"'{folder}' brings code; a pipeline's folder may not",
            found=_some(code),
            fix="no code of a folder is run; delete these files if the model needs none",
        )
    if outside:
        raise ModelError(
            f"'{folder}' has links that lead out of it",
            found=_some(outside),
            fix="copy the folder with what the links stand for (cp -rL), if you trust them",
        )


def check_index(index: Mapping[str, Any], family: Family, folder: Path) -> list[str]:
    """Only known classes of diffusers and transformers, whatever the part is called.

    Returns:
        The networks and tokenizers that the folder has.

    Raises:
        ModelError: a part is of another class, or of another library.
    """
    known: dict[str, tuple[str, ...]] = {part: (cls,) for part, cls in family.components.items()}
    for name, encoder in family.tokenizers.items():
        known[name] = _TOKENIZERS["T5" if family.components[encoder].startswith("T5") else "CLIP"]
    known |= {**_OTHERS, "scheduler": family.schedulers}
    for part, entry in index.items():
        if not isinstance(entry, list) or entry == [None, None]:
            continue
        library, cls = entry if len(entry) == 2 else (None, entry)
        own = part == "safety_checker" and library == "stable_diffusion"
        if library not in ("diffusers", "transformers") and not own:
            raise ModelError(
                f"the part '{part}' of '{folder}' asks for code outside diffusers and transformers",
                found=f"{library}.{cls}",
                fix="no such code is run; use a folder whose parts are of the usual classes",
            )
        if part not in known or cls not in known[part]:
            raise _unknown(part, cls, known.get(part, ()), family, folder)
    named = (*family.components, *family.tokenizers, "scheduler")
    gone = {part for part in named if not isinstance(index.get(part), list) or index[part] == [None, None]}
    for part in named:
        if part in gone - family.optional:
            raise _unknown(part, None, known[part], family, folder)
    return [part for part in named[:-1] if part not in gone]


def _unknown(part: str, cls: object, classes: tuple[str, ...], family: Family, folder: Path) -> ModelError:
    if part == "scheduler":
        return ModelError(
            f"the scheduler of '{folder}' is not of a known kind",
            found=str(cls),
            fix=f"a {family.pipeline.__name__} works with {', '.join(classes)}; with EDM or others a model is noised "
            "and called by other rules, and would be trained wrongly here",
        )
    if not classes:
        return ModelError(
            f"'{folder}' has a part '{part}' that a {family.pipeline.__name__} has not",
            found=cls,
            fix="take it out of model_index.json if the model does not need it",
        )
    return ModelError(
        f"a {family.pipeline.__name__} needs a '{part}' of class {' or '.join(classes)}", found=f"{cls} in '{folder}'"
    )


def check_parts(family: Family, parts: Sequence[str], folder: Path) -> None:
    """What the configurations and indexes in the folders of the parts say, and the files of the tokenizers.

    Raises:
        ModelError: a part's weights would come from elsewhere (an adapter, a quantiser, code, a path in an index),
            it names another class, or a tokenizer has no vocabulary.
    """
    for part in (*parts, "scheduler"):
        place = folder / part
        if (place / "adapter_config.json").exists():
            raise ModelError(
                f"the part '{part}' of '{folder}' is an adapter: its weights would come from somewhere else",
                found="adapter_config.json",
                fix="merge the adapter into the model and save it, or delete the file if it is a leftover",
            )
        for config in _configs(place):
            content = read_json(config)
            _check_config(config, content, part, family)
            _check_layers(config, content, place)
    for part in parts:
        if part in family.tokenizers:
            _check_tokenizer(folder / part)


def _configs(place: Path) -> Iterator[Path]:
    return (file for file in sorted(place.glob("*.json")) if file.name.endswith(("config.json", ".index.json")))


def _check_config(file: Path, config: Any, part: str, family: Family) -> None:
    if not isinstance(config, dict):
        raise ModelError(f"'{file}' is not a configuration", found=type(config).__name__)
    elsewhere = [key for key in _READ_ELSEWHERE if config.get(key)]
    elsewhere += [key for key in _TOKENIZER_FILES if config.get(key)]
    if elsewhere:
        raise ModelError(
            f"'{file}' asks for other code or files than those of its folder",
            found=", ".join(elsewhere),
            fix="use a plain float model with its own files",
        )
    cls = family.components.get(part)
    named = config.get("_class_name", cls)
    if part == "scheduler":
        cls = named if named in family.schedulers else "a known scheduler"
    if cls is not None and named != cls:
        raise ModelError(f"'{file}' is of another class than its part", found=named, fix=f"it must be {cls}")
    shards = config.get("weight_map", {})
    names = {str(name) for name in (shards.values() if isinstance(shards, dict) else [shards])}
    wrong = sorted(name for name in names if name in ("", ".", "..") or "/" in name or "\\" in name)
    if wrong:
        raise ModelError(f"'{file}' leads out of its folder", found=_some(wrong), fix="shards lie beside their index")


def _check_layers(file: Path, config: Mapping[str, Any], place: Path) -> None:
    """Refuse more layers than there are weights: building them for nothing could take hours."""
    asked = [number for key in _LAYERS for number in _numbers(config.get(key))]
    if not asked:
        return
    have = 0
    for weights in place.glob("*.safetensors"):
        try:
            with safe_open(weights, framework="pt") as tensors:
                have += len(tensors.keys())
        except (OSError, SafetensorError):
            return  # whoever loads it says so
    if have and max(asked) > have:
        raise ModelError(
            f"'{file}' asks for more layers than its part has tensors", found=f"{max(asked)}, {have} tensors"
        )


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int):
        yield value


def _check_tokenizer(place: Path) -> None:
    have = {file.name for file in place.iterdir() if file.is_file()} if place.is_dir() else set()
    lost = [name for name in ("vocab.json", "merges.txt") if name not in have]
    if lost and "tokenizer.json" not in have:
        raise ModelError(
            f"the tokenizer in '{place}' has no vocabulary: it needs vocab.json and merges.txt, or tokenizer.json",
            found=f"{' and '.join(lost)} missing",
            fix="fetch the folder again, with every file of the tokenizer",
        )


def read_json(file: Path) -> Any:
    """A JSON file of the folder.

    Raises:
        ModelError: it cannot be read; also when it is nested too deeply.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"'{file}' cannot be read", found=str(error)[:300]) from error


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
