"""Words of a prompt that stand for vectors instead of for their letters: textual-inversion embeddings.

A prompt is searched for them before it is tokenised: whole words (no letter, digit or underscore beside them), upper
case or not, the longest first, with ComfyUI's `embedding:` before them or without. What stands between them is
tokenised by itself. A word with n vectors takes n places of the encoder's.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from autolora_jax.weights.errors import WeightsError

LEAST_ROWS = 64  # of a table: few embeddings more compile nothing


class Word(NamedTuple):
    """A word and its vectors."""

    name: str
    vectors: Mapping[str, np.ndarray]  # encoder -> float32 [n d]; an encoder without reads nothing in its place
    source: str  # the file
    lora: int | None = None  # number of the LoRA it came with, whose scale switches it; None: always on


class Piece(NamedTuple):
    """A part of a prompt: text, or the name of a word."""

    text: str
    is_word: bool = False


class Words:
    """All words that a pipeline knows. Never changed: replaced."""

    def __init__(self, words: Iterable[Word] = ()) -> None:
        """Raises WeightsError where two have one name."""
        self._words = tuple(words)
        self._rows: dict[tuple[str, str], range] = {}  # (encoder, name) -> rows of the encoder's table
        vectors: dict[str, list[np.ndarray]] = {}
        named: dict[str, Word] = {}
        for word in self._words:
            if (other := named.setdefault(word.name.casefold(), word)) is not word:
                raise WeightsError(
                    f"{word.source}: its word {word.name!r} stands for an embedding of {other.source} already; unload "
                    "that one first (unload_lora, unload_textual_inversion), or give this one another token"
                )
            for encoder, rows in word.vectors.items():
                before = sum(map(len, vectors.setdefault(encoder, [])))
                self._rows[encoder, word.name] = range(before, before + len(rows))
                vectors[encoder].append(rows)
        self.tables = {encoder: _padded(np.concatenate(rows)) for encoder, rows in vectors.items()}  # [r d] each

    def __iter__(self) -> Iterator[Word]:
        return iter(self._words)

    def split(self, text: str, scales: Sequence[float] | np.ndarray) -> tuple[Piece, ...]:
        """A prompt as its pieces.

        scales: of the LoRAs; the words of a LoRA at scale 0 are plain text.
        """
        names = sorted((w.name for w in self if w.lora is None or _is_on(scales, w.lora)), key=len, reverse=True)
        pieces: list[Piece] = []
        end = 0
        for match in _pattern(tuple(names)).finditer(text) if names else ():
            assert match.lastindex is not None
            pieces += [Piece(text[end : match.start()].strip()), Piece(names[match.lastindex - 1], is_word=True)]
            end = match.end()
        rest = text[end:].strip() if pieces else text
        return tuple(piece for piece in (*pieces, Piece(rest)) if piece.text or not pieces)

    def rows(self, encoder: str, name: str) -> range:
        """The rows of an encoder's table that a word's places take."""
        return self._rows.get((encoder, name), range(0))

    def name(self, encoder: str, row: int) -> str | None:
        """Whose row of an encoder's table this is; None of a row before the first and after the last."""
        return next((name for (owner, name), rows in self._rows.items() if owner == encoder and row in rows), None)


def _is_on(scales: Sequence[float] | np.ndarray, lora: int) -> bool:
    """Whether a LoRA has a scale. One that a call does not know is off: training asks for the bare model so."""
    return lora < len(scales) and bool(scales[lora])


@functools.lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds whole words, the i-th as group i + 1."""
    words = (rf"{_edge(name[0], '(?<!')}({re.escape(name)}){_edge(name[-1], '(?!')}" for name in names)
    return re.compile(rf"(?:(?<!\w)embedding:)?(?:{'|'.join(words)})", re.IGNORECASE)


def _edge(letter: str, no: str) -> str:
    """A word's end that is a letter can't be inside another word; "<s0>" may stand beside anything."""
    return rf"{no}\w)" if re.match(r"\w", letter) else ""


def _padded(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r d"]:
    """Rows of zeros behind it, up to a power of two: what is compiled depends on the shape."""
    size = max(LEAST_ROWS, 1 << (len(rows) - 1).bit_length())
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))
