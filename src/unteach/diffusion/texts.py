"""Whether a tokenizer and its text encoder fit each other, and the tokenizer tells words apart.

A tokenizer that lost its files still works: to it every word is the unknown one.
"""

import re
from typing import Any

from unteach.errors import ModelError

_WORD = re.compile(r"[a-z]{2,}")
_FIX = "fetch the folder again, with every file of the tokenizer"


def check_tokenizer(tokenizer: Any, encoder: Any, name: str) -> None:
    """Refuse a tokenizer that its text encoder cannot be used with.

    Raises:
        ModelError: it is missing, has no finite length, gives more ids than the encoder has embeddings or longer
            prompts than it has positions, or does not tell words apart.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise ModelError(f"the pipeline has no '{name}'", found=type(tokenizer).__name__, fix=_FIX)
    length, rows = tokenizer.model_max_length, encoder.get_input_embeddings().weight.shape[0]
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not 3 <= length <= (positions or 2**16):
        raise ModelError(
            f"the '{name}' has no length that its text encoder can read",
            found=f"model_max_length {length:g}, the encoder reads {positions} tokens",
            fix="set model_max_length in its tokenizer_config.json as the model was trained",
        )
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    highest = max(vocabulary.values(), default=-1)
    if highest >= rows:
        raise ModelError(
            f"the '{name}' is not the one of its text encoder: it gives ids that have no embedding",
            found=f"ids up to {highest}, {rows} embeddings",
            fix=_FIX,
        )
    special = set(tokenizer.all_special_tokens)
    # A few words of its own, from all over the vocabulary: what they are depends on what it was made for.
    words = sorted({found[0] for token in vocabulary if token not in special and (found := _WORD.search(token))})
    some = words[:: max(1, len(words) // 8)][:9]
    told = {tuple(tokenizer(word, truncation=True, max_length=length).input_ids) for word in some}
    if len(some) < 2 or len(told) < 2:
        raise ModelError(
            f"the '{name}' does not tell words apart: every prompt would be the same to the model",
            found=f"{len(vocabulary)} entries in its vocabulary"
            + (f", the same ids for '{some[0]}' and '{some[1]}'" if len(some) > 1 else ", no words among them"),
            fix=_FIX,
        )
