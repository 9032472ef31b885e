"""The pieces of a prompt -> token ids."""

import importlib
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from autolora_jax.config import CLIPTextConfig, JsonConfig, T5Config
from autolora_jax.text.words import Piece, Words

TOKENIZERS: Mapping[type[JsonConfig], str] = {CLIPTextConfig: "CLIPTokenizer", T5Config: "T5TokenizerFast"}
NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def open_tokenizer(config: type[JsonConfig], folder: Path) -> Any:
    """The tokenizer of an encoder with such a config, from its files.

    transformers is imported here, where it is needed first: it takes as long as all the rest.
    """
    before = os.environ.get(NO_ADVICE)
    os.environ[NO_ADVICE] = "1"  # else it says that there is no PyTorch
    try:
        transformers = importlib.import_module("transformers")
    finally:
        os.environ.pop(NO_ADVICE) if before is None else os.environ.update({NO_ADVICE: before})
    return getattr(transformers, TOKENIZERS[config]).from_pretrained(folder)


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
