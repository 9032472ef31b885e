"""The parts of a prompt -> token ids."""

import importlib
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.config import CLIPTextConfig, JsonConfig, T5Config
from autolora_jax.text.syntax import Cut, Token, Unit
from autolora_jax.text.words import Piece, Words
from autolora_jax.weights.errors import WeightsError, printable

TOKENIZERS: Mapping[type[JsonConfig], str] = {CLIPTextConfig: "CLIPTokenizer", T5Config: "T5TokenizerFast"}
Read = tuple[tuple[Piece, ...] | None, float]  # (a part's pieces, None for a BREAK; its weight)
Filled = tuple[tuple[int, ...], tuple[float, ...]]  # ids and weights of a chunk's tokens
NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def open_tokenizer(config: type[JsonConfig], folder: Path) -> Any:
    """The tokenizer of an encoder with such a config, from its files.

    transformers is imported here, where it is needed first: it takes as long as all the rest.
    Raises WeightsError when it can't read them.
    """
    before = os.environ.get(NO_ADVICE)
    os.environ[NO_ADVICE] = "1"  # else it says that there is no PyTorch
    try:
        transformers = importlib.import_module("transformers")
    finally:
        os.environ.pop(NO_ADVICE) if before is None else os.environ.update({NO_ADVICE: before})
    try:
        return getattr(transformers, TOKENIZERS[config]).from_pretrained(folder)
    except Exception as e:  # the classes of errors differ by what is wrong, and by transformers' version
        why = printable(f"{type(e).__name__}: {e}")
        raise WeightsError(f"the tokenizer in {folder} can't be read ({why}); download its files again") from e


class Vocabulary(NamedTuple):
    """What an encoder can read."""

    encoder: str
    tokenizer: Any
    size: int  # token vectors; ids from here on are rows of the encoder's table of words
    words: Words

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def known(self, token: str) -> int | None:
        """A token's id, None if there is none."""
        number: int = self.tokenizer.convert_tokens_to_ids(token)
        return None if number == self.tokenizer.unk_token_id else number

    def word(self, word: str) -> list[int]:
        """As ComfyUI: one that CLIP's vocabulary holds is taken as it is written, capitals and signs included."""
        whole = self.known(f"{word}</w>")
        return self.tokens(word) if whole is None else [whole]

    def said(self, tokens: Iterable[Token]) -> str:
        """Tokens as they are written."""
        ids = (token.id for token in tokens)
        groups = itertools.groupby(ids, lambda token: self.words.name(self.encoder, token - self.size))
        return " ".join(name or self.tokenizer.decode(list(group)).strip() for name, group in groups)

    def units(self, parts: Sequence[Read], splits_words: bool) -> list[Unit]:
        """The tokens of a prompt's parts."""
        read: list[Unit] = []
        for pieces, weight in parts:
            if pieces is None:
                read.append(None)
            for text, is_word in pieces or ():
                if is_word:
                    ids = [[self.size + row for row in self.words.rows(self.encoder, text)]]
                elif splits_words:
                    ids = [self.word(word) for word in text.split()]
                else:
                    ids = [[token] for token in self.tokens(text)]
                read += [[Token(token, weight) for token in unit] for unit in ids if unit]
        return read


def chunked(
    vocabulary: Vocabulary, parts: Sequence[Read], splits_words: bool, cut: Cut, length: int, most: int
) -> list[Filled]:
    """The `most` chunks of `length` tokens that an encoder reads, as its tokenizer would begin, end and fill them up.

    Warns when not all parts fit in.
    """
    *begin, end = vocabulary.tokenizer("").input_ids
    pad, room = vocabulary.tokenizer.pad_token_id, length - len(begin) - 1
    chunks = cut(vocabulary.units(parts, splits_words), room, vocabulary.known(",</w>"))
    if unread := [token for chunk in chunks[most:] for token in chunk]:
        said = f"prompt is longer than {most * room} tokens; not read: {vocabulary.said(unread)!r}"
        advice = f"; prompt_chunks={len(chunks)} reads all" if begin else ""  # T5's have no begin
        warnings.warn(said + advice, stacklevel=2)
    result = []
    for chunk in [*chunks, *([[]] * most)][:most]:
        ids = [*begin, *(token.id for token in chunk), end]
        weights = [1.0] * len(begin) + [token.weight for token in chunk]
        fill = length - len(ids)
        result.append(((*ids, *[pad] * fill), (*weights, *[1.0] * (fill + 1))))
    return result
