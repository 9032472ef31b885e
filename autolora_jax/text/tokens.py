"""The pieces of a prompt -> token ids."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from autolora_jax.text.words import Piece, Words


def token_ids(
    tokenizer: Any, vocabulary: int, pieces: Sequence[Piece], words: Words, encoder: str, length: int
) -> Int[np.ndarray, "1 t"]:
    """What an encoder of `vocabulary` token vectors reads, as its tokenizer would begin, end and fill it up.

    Ids from `vocabulary` on are rows of the encoder's table of words. Warns when not all pieces fit in.
    """
    read: list[int] = []
    for text, is_word in pieces:
        if is_word:
            read += [vocabulary + row for row in words.rows(encoder, text)]
        else:
            read += tokenizer(text, add_special_tokens=False).input_ids
    *begin, end = tokenizer("").input_ids
    room = length - len(begin) - 1
    if cut := read[room:]:
        groups = itertools.groupby(cut, lambda token: words.name(encoder, token - vocabulary))
        said = " ".join(name or tokenizer.decode(list(tokens)).strip() for name, tokens in groups)
        warnings.warn(f"prompt is longer than {room} tokens; not read: {said!r}", stacklevel=2)
    ids = [*begin, *read[:room], end]
    return np.array([ids + [tokenizer.pad_token_id] * (length - len(ids))], np.int32)
