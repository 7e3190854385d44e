"""Compare two tokenizers by what they make of a text, however their files are laid out.

A CLIP tokenizer is kept as ``vocab.json`` and ``merges.txt`` by older releases of transformers and as
``tokenizer.json`` by newer ones; both are the same numbers. Every layout that a folder has must agree with the base's,
because it depends on the release which one is read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["FILES", "differing"]

FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "tokenizer_config.json",
)  # fmt: skip
"""What is read of a tokenizer's folder."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_DEFAULTS = {
    "bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END, "padding_side": "right",
    "truncation_side": "right", "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
}  # fmt: skip
_SILENT = {
    "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "backend", "is_local",
    "local_files_only", "processor_class", "added_tokens_decoder", "clean_up_tokenization_spaces", "use_fast",
    "_commit_hash", "trim_offsets", "errors",
}  # fmt: skip
_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ],
}
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def differing(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two tokenizers, in words; empty when they make the same of every text.

    Args:
        base, other: file of :data:`FILES` → its content: a table, or the text of ``merges.txt``.
    """
    wanted = next(_readings(base), None)
    found = list(_readings(other))
    if wanted is None or not found:
        return [] if wanted is None and not found else ["the vocabulary, which is not there"]
    problems = [part for reading in found for part in wanted if reading.get(part) != wanted[part]]
    first, second = _settings(base), _settings(other)
    for key in sorted(first.keys() | second.keys()):
        default = _DEFAULTS.get(key)
        a, b = first.get(key, default), second.get(key, default)
        if a != b and not (a in (None, [], {}) and b in (None, [], {})):
            problems.append(key)
    return list(dict.fromkeys(problems))


def _readings(files: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tokenizer as each layout in the folder has it, the newer first."""
    special = _settings(files)
    whole = files.get("tokenizer.json")
    if isinstance(whole, dict):
        model = _table(whole.get("model"))
        vocabulary = _table(model.get("vocab"))
        merges = model.get("merges")
        rest = {k: v for k, v in model.items() if k not in ("vocab", "merges", "unk_token", "dropout")}
        yield {
            "the vocabulary": vocabulary or model.get("vocab"),
            "the merges": [_merge(pair) for pair in merges] if isinstance(merges, list) else merges,
            "the added tokens": _added(whole.get("added_tokens"), vocabulary) | _beside(files, vocabulary),
            "the way a text is cut": [whole.get("normalizer"), whole.get("pre_tokenizer"), _quiet(rest)],
            "the tokens around a text": whole.get("post_processor"),
        }
    if isinstance(files.get("vocab.json"), dict) and isinstance(files.get("merges.txt"), str):
        vocabulary = files["vocab.json"]
        first, *others = files["merges.txt"].split("\n")
        pairs = [line.rstrip("\r") for line in (others if first.startswith("#version") else [first, *others])]
        pairs = [line for line in pairs if line]
        ends = [special.get(key, _DEFAULTS[key]) for key in ("eos_token", "bos_token")]
        sep, cls = ([token, vocabulary.get(token)] for token in ends)
        around = {"type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": False, "add_prefix_space": False}
        model = {"type": "BPE", "end_of_word_suffix": "</w>"}
        yield {
            "the vocabulary": vocabulary,
            "the merges": pairs,
            "the added tokens": _beside(files, vocabulary),
            "the way a text is cut": [_NORMALIZER, _PRE_TOKENIZER, model],
            "the tokens around a text": around,
        }


def _settings(files: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that matter, special tokens as texts."""
    found = {**_table(files.get("special_tokens_map.json")), **_table(files.get("tokenizer_config.json"))}
    settings = {key: value for key, value in found.items() if key not in _SILENT}
    for key in _SPECIAL:
        if isinstance(settings.get(key), dict):
            settings[key] = settings[key].get("content")
    cls = settings.get("tokenizer_class")
    if isinstance(cls, str):
        settings["tokenizer_class"] = cls.removesuffix("Fast")
    return settings


def _merge(pair: Any) -> Any:
    return " ".join(pair) if isinstance(pair, list) and all(isinstance(part, str) for part in pair) else pair


def _added(tokens: Any, vocabulary: Mapping[str, Any]) -> dict[Any, Any]:
    """Added tokens that the vocabulary does not have under the same number."""
    found: dict[Any, Any] = {}
    for token in tokens if isinstance(tokens, list) else ():
        content, number = _table(token).get("content"), _table(token).get("id")
        if not isinstance(content, str) or vocabulary.get(content) != number:
            found[str(content)] = number
    return found


def _beside(files: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> dict[Any, Any]:
    """Tokens that are added in files beside the vocabulary."""
    listed = [{"content": k, "id": v} for k, v in _table(files.get("added_tokens.json")).items()]
    table = _table(_table(files.get("tokenizer_config.json")).get("added_tokens_decoder"))
    tokens = [
        {"content": _table(token).get("content"), "id": int(number) if number.isdecimal() else number}
        for number, token in table.items()
    ]
    return _added([*listed, *tokens], vocabulary)


def _table(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _quiet(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings without those that are off."""
    return {key: value for key, value in model.items() if value not in (None, False, "")}
