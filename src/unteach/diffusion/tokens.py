"""What a model's text encoders read of a prompt: its tokens after the tokenizer's cut, and where a name ends in them.

Two prompts with the same tokens are one prompt to the model, however long and different their texts are.
"""

import re
from typing import Any

from unteach.diffusion.families import Segment
from unteach.diffusion.model import Model

Ids = tuple[tuple[int, ...], ...]
"""Token ids as each text encoder reads them, marks and padding included: one tuple an encoder."""


def segments(model: Model) -> tuple[Segment, ...]:
    """The text states in their order."""
    return model.conventions.segments(model.pipe)


def vocabulary(model: Model) -> dict[str, int]:
    """Token → id of the first tokenizer."""
    found: dict[str, int] = getattr(model.pipe, segments(model)[0].tokenizers[0]).get_vocab()
    return found


def read(model: Model, prompt: str) -> Ids:
    """The ids that the text encoders get for this prompt, cut and padded as the pipeline does it."""
    return tuple(
        tuple(_call(model, name, prompt, part).input_ids) for part in segments(model) for name in part.tokenizers
    )


def last_tokens(model: Model, text: str) -> tuple[int, ...]:
    """In each segment: position of the last token of the text that is read, before the end mark (0 without one)."""
    masks = (_call(model, part.tokenizers[0], text, part).attention_mask for part in segments(model))
    return tuple(max(0, int(sum(mask)) - 2) for mask in masks)


def ends_of(model: Model, prompt: str, end: int) -> tuple[int, ...] | None:
    """In each segment: position of the token with which ``prompt[:end]`` ends, in the whole prompt as it is read.

    None where an encoder does not read it: it stands after the cut, or ``end`` is no border between two tokens.
    """
    found = []
    for part in segments(model):
        places = set()
        for name in part.tokenizers:
            whole = _call(model, name, prompt, part).input_ids
            # Without the end mark; a text that is too long is not cut here.
            tokenizer = getattr(model.pipe, name)
            begin = tokenizer(_converted(model, tokenizer, prompt[:end]), verbose=False).input_ids[:-1]
            if len(begin) >= len(whole) or whole[: len(begin)] != begin:
                return None
            places.add(len(begin) - 1)
        if len(places) > 1:
            return None
        found.append(places.pop())
    return tuple(found)


def name_ends(model: Model, prompt: str, name: str) -> tuple[int, ...] | None:
    """In each segment: position of the last token of the last mention of ``name`` that is read whole; None: nowhere.

    A mention may go on ("two dogs" mentions "dog"): then the whole word counts.
    """
    spaced = r"\s+".join(re.escape(part) for part in name.split())
    ends = [match.end() for match in re.finditer(rf"{spaced}\w*", prompt, re.I)] if spaced else [len(prompt)]
    places = (ends_of(model, prompt, end) for end in reversed(ends))
    return next((place for place in places if place is not None), None)


def limit(model: Model) -> int:
    """How many tokens of a prompt are read, start and end mark included."""
    return min(part.length for part in segments(model))


def _converted(model: Model, tokenizer: Any, prompt: str) -> str:
    """As the pipeline does it first: a word of a textual inversion stands for all of its vectors."""
    convert = getattr(model.pipe, "maybe_convert_prompt", None)
    text: str = prompt if convert is None else convert(prompt, tokenizer)
    return text


def _call(model: Model, name: str, prompt: str, part: Segment) -> Any:
    tokenizer = getattr(model.pipe, name)
    text = _converted(model, tokenizer, prompt)
    return tokenizer(text, padding="max_length", max_length=part.length, truncation=True)
