"""What a prompt's marks mean: weights, chunks of an encoder's window, and what a weight does to an encoder's states.

    plain   none: every letter is read, as diffusers does
    a1111   AUTOMATIC1111's webui: (word:1.3), (word), [word], BREAK, \\( for a bracket; modules/prompt_parser.py
            parse_prompt_attention, sd_hijack_clip.py tokenize_line, the emphasis "Original"; but a BREAK in brackets
            breaks, which A1111 reads as a word of negative weight
    comfy   ComfyUI: (word:1.3), (word), \\( for a bracket; comfy/sd1_clip.py token_weights, tokenize_with_weights,
            encode_token_weights

CLIP reads 75 tokens at a time, chunk by chunk, each between a begin and an end of its own; T5 reads its length at once.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from autolora_jax.config import ConfigError

ROUND = 1.1  # what a round bracket multiplies by; a square one divides by it
BACKTRACK = 20  # tokens that A1111 moves to the next chunk, with what fills this one, rather than cut behind a comma
WHOLE_WORD = 8  # tokens from which on ComfyUI cuts a word at the end of a chunk
_MARKS = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:([+-]?[.\d]+)\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
# Of A1111, with no meaning here: LoRAs and hypernetworks (but see text.mentions), what changes over the steps, several
# prompts in one.
_LORA = re.compile(r"<(lora|lyco|hypernet):([^:>]+)[^>]*>")
_EDITING = re.compile(r"\[[^\[\]]*:\s*[.\d]+\s*\]|\[[^\[\]]*\|[^\[\]]*\]")
_AND = re.compile(r"\bAND\b")
_EMPHASIS = re.compile(r"\([^()]*:[+-]?[.\d]+\)|\(\(|\[\[|\bBREAK\b")


class Part(NamedTuple):
    """A part of a prompt. text: None for a BREAK."""

    text: str | None
    weight: float = 1.0


class Token(NamedTuple):
    """What an encoder reads, and how much of it."""

    id: int
    weight: float


BREAK = Part(None)
Chunk = list[Token]
Unit = list[Token] | None  # tokens that belong together: a word, the vectors of an embedding; None for a BREAK
Cut = Callable[[Sequence[Unit], int, int | None], list[Chunk]]  # (units, room of a chunk, id of a comma)
States = Sequence[Float[np.ndarray, "_t _d"]]  # an encoder each, of their own widths
Weights = Sequence[Float[np.ndarray, " _t"]]


class Syntax(NamedTuple):
    """How a program reads prompts."""

    parts: Callable[[str], list[Part]]
    cut: Cut
    weigh: Callable[[States, Weights, States], list[np.ndarray]]  # (states, weights, states of an empty prompt)
    splits_words: bool = False  # at spaces, before tokenising
    weighs_t5: bool = False
    names_loras: bool = False  # see text.mentions


# ---- plain -----------------------------------------------------------------------------------------------------------


def plain_parts(text: str) -> list[Part]:
    return [Part(text)]


def slices(units: Sequence[Unit], room: int, comma: int | None = None) -> list[Chunk]:
    """Full chunks, and what is left."""
    read = [token for unit in units if unit for token in unit]
    return [read[i : i + room] for i in range(0, max(len(read), 1), room)]


def unweighed(states: States, weights: Weights, empty: States) -> list[np.ndarray]:
    return list(states)


def foreign(text: str) -> str | None:
    """What a prompt holds that only other programs read, in words; None if nothing."""
    found = [f"{match[0]!r} loads no {match[1]}" for match in _LORA.finditer(text)]
    if match := _EMPHASIS.search(text):
        found.append(f"{match[0]!r} is no weight and no break")
    return " and ".join(found) or None


# ---- A1111 -----------------------------------------------------------------------------------------------------------


def a1111_parts(text: str) -> list[Part]:
    """Brackets as weights. One that is not closed holds to the end; one that was not opened is a letter.

    Raises ConfigError for what A1111 reads and this library does not.
    """
    for pattern, what in (
        (_LORA, "a LoRA is named in the prompt itself, no negative one, and no hypernetwork is read"),
        (
            _EDITING,
            "a prompt that changes over the steps is not read here; escape its brackets as \\[ \\] to draw them",
        ),
        (_AND, "several prompts in one are not read here; write them with commas"),
    ):
        if match := pattern.search(text):
            raise ConfigError(f"the prompt {text!r} holds {match[0]!r}: {what}")
    parts: list[list[Any]] = []  # [text or None, weight]
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        for part in parts[start:]:
            part[1] *= factor

    for match in _MARKS.finditer(text):
        mark, weight = match[0], match[1]
        if mark.startswith("\\"):
            parts.append([mark[1:], 1.0])
        elif mark in opened:
            opened[mark].append(len(parts))
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), _number(weight, text))
        elif mark == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif mark == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / ROUND)
        else:
            first, *others = _BREAK.split(mark)
            parts.append([first, 1.0])
            for other in others:
                parts += [[None, 1.0], [other, 1.0]]
    for mark, factor in (("(", ROUND), ("[", 1 / ROUND)):
        for start in opened[mark]:
            multiply(start, factor)
    merged: list[Part] = []
    for words, weight in parts:
        if words is not None and merged and merged[-1].text is not None and merged[-1].weight == weight:
            merged[-1] = Part(merged[-1].text + words, weight)
        else:
            merged.append(BREAK if words is None else Part(words, weight))
    return merged or [Part("")]


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"the prompt {prompt!r} holds the weight {text!r}, which is no number") from None


def a1111_chunks(units: Sequence[Unit], room: int, comma: int | None) -> list[Chunk]:
    """A BREAK ends a chunk. What follows a comma near a chunk's end moves to the next one."""
    chunks: list[Chunk] = [[]]
    last_comma = None
    for unit in units:
        if unit is None:
            chunks.append([])
            last_comma = None
            continue
        full = len(chunks[-1]) == room
        if unit[0].id == comma:
            last_comma = len(chunks[-1])
        elif full and last_comma is not None and room - last_comma <= BACKTRACK:
            chunks[-1:] = [chunks[-1][: last_comma + 1], chunks[-1][last_comma + 1 :]]
            last_comma = None
        if len(chunks[-1]) + len(unit) > room:
            chunks.append([])
            last_comma = None
        chunks[-1] += unit
    return chunks if len(chunks) == 1 or chunks[-1] else chunks[:-1]


def restored(states: States, weights: Weights, empty: States) -> list[np.ndarray]:
    """Each token's states times its weight, and all of them by what brings their mean back."""
    weighed = [state * weight[:, None] for state, weight in zip(states, weights, strict=True)]
    before, after = (math.fsum(float(state.sum(dtype=np.float64)) for state in group) for group in (states, weighed))
    return [state * np.float32(before / after) for state in weighed]


# ---- ComfyUI ---------------------------------------------------------------------------------------------------------


def comfy_parts(text: str) -> list[Part]:
    """Round brackets as weights: a number in them is the weight, whatever is around them."""
    escaped = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    return [
        Part(words.replace("\0\1", ")").replace("\0\2", "("), weight) for words, weight in _comfy_weights(escaped, 1.0)
    ]


def _comfy_weights(text: str, weight: float) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    waiting = [(text, weight, False)]  # with whether no bracket is left in it; a list: texts may nest without bound
    while waiting:
        text, weight, is_plain = waiting.pop()
        if is_plain:
            found.append((text, weight))
            continue
        inside = []
        for item in _outermost(text):
            if len(item) >= 2 and item[0] == "(" and item[-1] == ")":
                inside.append((*_bracketed(item[1:-1], weight), False))
            else:
                inside.append((item, weight, True))
        waiting += reversed(inside)
    return found


def _bracketed(words: str, weight: float) -> tuple[str, float]:
    head, _, tail = words.rpartition(":")
    try:
        return (head, float(tail)) if head else (words, weight * ROUND)
    except ValueError:
        return words, weight * ROUND


def _outermost(text: str) -> list[str]:
    """The text, taken apart at its outermost brackets, which stay around what they hold."""
    items, start, depth = [], 0, 0
    for i, letter in enumerate(text):
        if letter == "(":
            if depth == 0:
                items.append(text[start:i])
                start = i
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                items.append(text[start : i + 1])
                start = i + 1
    return [item for item in (*items, text[start:]) if item]


def comfy_chunks(units: Sequence[Unit], room: int, comma: int | None = None) -> list[Chunk]:
    """A word stays whole in the next chunk rather than be cut, unless it is long."""
    chunks: list[Chunk] = [[]]
    for unit in filter(None, units):
        rest = unit
        while len(rest) + len(chunks[-1]) > room:
            taken = room - len(chunks[-1]) if len(unit) >= WHOLE_WORD else 0
            chunks[-1] += rest[:taken]
            rest = rest[taken:]
            chunks.append([])
        chunks[-1] += rest
    return chunks


def away_from_empty(states: States, weights: Weights, empty: States) -> list[np.ndarray]:
    """What sets a token's states apart from those of an empty prompt, times its weight."""
    return [
        np.where(weight[:, None] == 1, state, (state - nothing) * weight[:, None] + nothing)
        for state, weight, nothing in zip(states, weights, empty, strict=True)
    ]


SYNTAXES: Mapping[str, Syntax] = {
    "plain": Syntax(plain_parts, slices, unweighed),
    "a1111": Syntax(a1111_parts, a1111_chunks, restored, names_loras=True),
    "comfy": Syntax(comfy_parts, comfy_chunks, away_from_empty, splits_words=True, weighs_t5=True),
}
