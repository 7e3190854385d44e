"""Compare the configurations of an upload with the base's: they switch tensors off, redirect them and change their use.

A configuration is compared by what it makes a loader build. A key that one side leaves out has its class's default;
keys that say only who wrote a file, or how to train and generate text, are passed over.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

__all__ = ["differing", "index_problems", "off", "redirects"]

_SILENT = {
    # who wrote it, in which number format
    "_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures",
    "_use_default_values", "_commit_hash", "requires_safety_checker",
    # how it is trained, and what an average of weights remembers
    "attention_dropout", "dropout", "initializer_factor", "initializer_range", "gradient_checkpointing", "decay",
    "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
    # how text is generated and classes are named, which none of these models does
    "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length",
    "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torchscript",
    "typical_p", "use_bfloat16", "use_cache",
    # names of a preprocessor's class, whose settings are compared
    "feature_extractor_type", "image_processor_type", "processor_class",
}  # fmt: skip
_PREPROCESSOR = {
    "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True, "do_resize": True, "do_normalize": True,
    "do_center_crop": True, "data_format": "channels_first", "resample": 3,
}  # fmt: skip
_REDIRECTS = (
    "auto_map",
    "quantization_config",
    "base_model_name_or_path",
    "_pre_quantization_dtype",
)
_SAME = {
    "CLIPFeatureExtractor": "CLIPImageProcessor", "CLIPImageProcessorFast": "CLIPImageProcessor",
    "CLIPImageProcessorPil": "CLIPImageProcessor", "CLIPTokenizerFast": "CLIPTokenizer",
}  # fmt: skip
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion", "stable_diffusion_xl"}
_ATTENDED = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.")


def differing(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys in which two configurations make different things; "a.b" for a key inside another."""
    first, second = _flat(base), _flat(other)
    known = _defaults(str(base.get("_class_name", base.get("model_type", ""))))
    return sorted(
        key
        for key in first.keys() | second.keys()
        if key.rpartition(".")[2] not in _SILENT
        and not _equal(first.get(key, known.get(key)), second.get(key, known.get(key)))
    )


def off(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Tensors of a U-Net for which its configuration makes no module, so that a loader passes over them."""
    gone: list[str] = []
    if "mid_block_type" in config and config["mid_block_type"] is None:
        gone += [name for name in names if name.startswith("mid_block.")]
    for side in ("down", "up"):
        kinds = config.get(f"{side}_block_types")
        if not isinstance(kinds, list):
            continue
        for name in names:
            place = re.match(rf"{side}_blocks\.(\d+)\.", name)
            attended = _ATTENDED.match(name)
            kind = str(kinds[int(place[1])]) if place and int(place[1]) < len(kinds) else ""
            if place and (not kind or (attended and not re.search("Attn|Attention", kind))):
                gone.append(name)
    return gone


def redirects(config: Mapping[str, Any]) -> list[str]:
    """Keys by which a configuration takes weights or code from elsewhere, or has weights transformed."""
    return [key for key in _REDIRECTS if config.get(key)]


def index_problems(
    index: Mapping[str, Any], base: Mapping[str, Any] | None, component: str
) -> Iterator[tuple[str, str]]:
    """What keeps a ``model_index.json`` from loading the base's parts: (key, sentence).

    Args:
        index: the upload's.
        base: the base's; None when it is not known.
        component: the part that must be among them.
    """
    mine = _parts(index)
    for part, (library, cls) in mine.items():
        if str(library) not in _LIBRARIES or not isinstance(cls, str):
            yield part, f"'{part}' is loaded as {str(library)[:60]}.{str(cls)[:60]}, with code from elsewhere"
    if component not in mine:
        yield component, f"does not load '{component}'"
    if base is None:
        return
    for part, entry in _parts(base).items():
        if part in mine and _named(entry) != _named(mine[part]):
            yield part, f"loads '{part}' as {str(mine[part][1])[:60]}, the base as {entry[1]}"
    for part in mine.keys() - _parts(base).keys():
        yield part, f"loads a part '{part[:60]}' that the base does not have"
    plain = [{k: v for k, v in each.items() if not isinstance(v, list)} for each in (base, index)]
    for key in differing(*plain):
        yield key, f"sets {key[:60]} to {json.dumps(index.get(key))[:60]}, the base to {json.dumps(base.get(key))[:60]}"


def left_out(index: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Parts that the base's pipeline has and this one does not."""
    return sorted(_parts(base).keys() - _parts(index).keys())


def _parts(index: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        part: (entry[0], entry[1]) if len(entry) == 2 else (entry, None)
        for part, entry in index.items()
        if isinstance(entry, list) and entry != [None, None]
    }


def _named(entry: tuple[Any, Any]) -> tuple[Any, Any]:
    return entry[0], _SAME.get(str(entry[1]), entry[1])


def _flat(config: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested tables as one, with "." between the names; overriding tables of transformers are applied."""
    config = dict(config)
    for name in ("text_config", "vision_config"):
        more = config.pop(f"{name}_dict", None)
        if isinstance(more, dict) and isinstance(config.get(name, {}), dict):
            config[name] = {**config.get(name, {}), **more}
        elif more is not None:
            config[f"{name}_dict"] = more
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("size", "crop_size") and type(value) is int:
            value = {"shortest_edge": value} if key == "size" else {"height": value, "width": value}
        if key in _SILENT:
            continue
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{head}{key}.")
        else:
            found[head + key] = value
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) != isinstance(b, bool) and not (a in (None, False) and b in (None, False)):
        return False
    return bool(a == b or (_empty(a) and _empty(b)))


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "")


@cache
def _defaults(kind: str) -> dict[str, Any]:
    """Defaults of a class of diffusers' or a model type of transformers', by key; those of a preprocessor without."""
    from unteach.diffusion.defaults import defaults

    return _flat(defaults(kind)) if kind else dict(_PREPROCESSOR)
