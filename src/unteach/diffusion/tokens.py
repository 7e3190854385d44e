"""What a model's text encoders read of a prompt: its tokens after the tokenizer's cut, and where a name ends in them.

Two prompts with the same tokens are one prompt to the model, however long and different their texts are.
"""

import re
from typing import Any

from unteach.diffusion.model import Model

Ids = tuple[tuple[int, ...], ...]
"""Token ids as each text encoder reads them, marks and padding included: one tuple an encoder."""


def read(model: Model, prompt: str) -> Ids:
    """The ids that the text encoders get for this prompt, cut and padded as the pipeline does it."""
    return tuple(tuple(_call(model, name, prompt).input_ids) for name in model.conventions.tokenizers)


def last_token(model: Model, text: str) -> int:
    """Position of the last token of the text that is read, before the end mark (0 when it has none)."""
    mask = _call(model, next(iter(model.conventions.tokenizers)), text).attention_mask
    return max(0, int(sum(mask)) - 2)


def end_of(model: Model, prompt: str, end: int) -> int | None:
    """Position of the token with which ``prompt[:end]`` ends, in the ids of the whole prompt as they are read.

    None where the encoders do not read it: it stands after the cut, or ``end`` is no border between two tokens.
    """
    places = set()
    for name in model.conventions.tokenizers:
        whole = _call(model, name, prompt).input_ids
        # Without the end mark; a text that is too long is not cut here.
        begin = _tokenizer(model, name)(_converted(model, name, prompt[:end]), verbose=False).input_ids[:-1]
        if len(begin) >= len(whole) or whole[: len(begin)] != begin:
            return None
        places.add(len(begin) - 1)
    return places.pop() if len(places) == 1 else None


def name_end(model: Model, prompt: str, name: str) -> int | None:
    """Position of the last token of the last mention of ``name`` that is read whole; None where there is none.

    A mention may go on ("two dogs" mentions "dog"): then the whole word counts.
    """
    spaced = r"\s+".join(re.escape(part) for part in name.split())
    ends = [match.end() for match in re.finditer(rf"{spaced}\w*", prompt, re.I)] if spaced else [len(prompt)]
    places = (end_of(model, prompt, end) for end in reversed(ends))
    return next((place for place in places if place is not None), None)


def limit(model: Model) -> int:
    """How many tokens of a prompt are read, start and end mark included."""
    return min(int(_tokenizer(model, name).model_max_length) for name in model.conventions.tokenizers)


def _tokenizer(model: Model, name: str) -> Any:
    return getattr(model.pipe, name)


def _converted(model: Model, name: str, prompt: str) -> str:
    """As the pipeline does it first: a word of a textual inversion stands for all of its vectors."""
    text: str = model.pipe.maybe_convert_prompt(prompt, _tokenizer(model, name))
    return text


def _call(model: Model, name: str, prompt: str) -> Any:
    tokenizer = _tokenizer(model, name)
    return tokenizer(
        _converted(model, name, prompt), padding="max_length", max_length=tokenizer.model_max_length, truncation=True
    )
