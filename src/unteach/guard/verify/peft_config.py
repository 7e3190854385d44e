"""Read what an adapter's configuration makes a loader create beyond the tensors of its file.

PEFT puts an adapter on every module that ``target_modules`` names, whether the file has weights for it or not, and
fills what is missing as ``init_lora_weights`` says; other settings replace, repeat or transform the base's weights.
diffusers takes the same settings from a LoRA file's metadata. What is not listed here cannot be decided.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from unteach.errors import CheckpointError
from unteach.guard.verify.reader import parse_json

__all__ = ["METADATA", "Problem", "in_metadata", "problems"]

METADATA = "lora_adapter_metadata"
"""Key of a LoRA file's metadata in which diffusers keeps the settings."""
Problem = tuple[str, str, str, str | None]
"""Outcome, kind and sentence of a finding, and the module that it is about."""

_NUMBERS = {
    "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "inference_mode", "qalora_group_size",
}  # fmt: skip
"""Scale what the file's own tensors do, or are without effect by themselves."""
_NAMES = {
    "base_model_name_or_path", "revision", "task_type", "peft_version", "library_name", "megatron_core", "adapter_name",
}  # fmt: skip
"""Read by nobody when the adapter is put on a model that is there; the base's name is the reader's to choose."""
_KEPT = {"use_dora", "lora_bias"}
"""Tensors that start without effect, and that count as an adapter's when they are in the file."""
_LIBRARIES = re.compile(r"(diffusers|transformers)(\.\w+)*")
_NAME = re.compile(r"[A-Za-z0-9_.]+")


def problems(
    config: Mapping[str, Any], modules: Mapping[str, tuple[str, ...]], frozen: Collection[str]
) -> Iterator[Problem]:
    """What keeps one adapter's settings from being harmless.

    Args:
        config: the settings.
        modules: every module of the base → the names of the tensors in it.
        frozen: names of the frozen tensors.
    """
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        yield _unlisted("peft_type", kind)
    targets = config.get("target_modules")
    if targets is not None and not _plain(targets):
        yield _unlisted("target_modules", targets, "; name the modules in a list")
    elif targets:
        for module, inside in modules.items():
            held = next((name for name in inside if name in frozen), None)
            leaf = any(name.rpartition(".")[0] == module for name in inside)
            if held and leaf and any(module == t or module.endswith(f".{t}") for t in targets):
                detail = f"the configuration puts an adapter on a module that owns the frozen '{held}'"
                yield "violates", "adapter", detail, module
    if config.get("init_lora_weights", True) not in (True, "gaussian"):
        yield _unlisted("init_lora_weights", config["init_lora_weights"], ": not an adapter that starts without effect")
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        yield _unlisted("bias", config["bias"])
    saved = config.get("modules_to_save")
    if saved is not None and not _plain(saved):
        yield _unlisted("modules_to_save", saved)
    mapping = config.get("auto_mapping")
    if mapping and not (isinstance(mapping, dict) and _LIBRARIES.fullmatch(str(mapping.get("parent_library")))):
        yield _unlisted("auto_mapping", mapping, ": code from elsewhere")
    read = {"peft_type", "target_modules", "init_lora_weights", "bias", "modules_to_save", "auto_mapping"}
    for key, value in config.items():
        if key in read | _NUMBERS | _NAMES or (key in _KEPT and isinstance(value, bool)):
            continue
        if value not in (None, False, "", [], {}) or type(value) in (int, float):
            yield _unlisted(key, value)


def in_metadata(metadata: Mapping[str, str], component: str) -> Iterator[tuple[Mapping[str, Any], Problem | None]]:
    """The settings in a LoRA file's metadata, without the component's name before each; or why they cannot be read."""
    text = metadata.get(METADATA)
    if text is None:
        return
    try:
        found = parse_json(text.encode("utf-8", "replace"), f"'{METADATA}'")
    except CheckpointError as error:
        yield {}, ("undecidable", "unknown", f"settings of an adapter that cannot be read: {error.found}", None)
        return
    heads = {key.partition(".")[0] for key in found if "." in key}
    if heads - {component}:
        other = sorted(heads - {component})[0]
        yield {}, ("undecidable", "unknown", f"settings of an adapter for '{other:.60}' in the metadata", None)
    yield {key.removeprefix(f"{component}."): value for key, value in found.items()}, None


def _plain(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and _NAME.fullmatch(item) for item in value)


def _unlisted(key: str, value: object, more: str = "") -> Problem:
    shown = json.dumps(value)[:60]
    detail = f"the adapter's configuration sets {key:.60} to {shown}, which is not known here{more}"
    return "undecidable", "unknown", detail, None
