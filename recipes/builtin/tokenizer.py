"""A CLIP tokenizer made of a list of words: each of them is one token, all others are spelled letter by letter."""

import json
from collections.abc import Iterable
from pathlib import Path

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes. Source: GPT-2's byte-level BPE, which CLIP shares."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [*map(chr, printable), *map(chr, range(256, 256 + others))]


def merges_of(words: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Merges that put each word together from the left: c a, ca t</w>. The first of them win where two could apply."""
    found: dict[tuple[str, str], None] = {}
    for word in words:
        so_far = ""
        for letter in (*word[:-1], f"{word[-1]}</w>"):
            if so_far:
                found[so_far, letter] = None
            so_far += letter
    return tuple(found)


def vocabulary_size(merges: tuple[tuple[str, str], ...]) -> int:
    """Tokens of the tokenizer with these merges."""
    return 2 * 256 + len(merges) + 2


def write_tokenizer(folder: Path, pad_token: str, merges: tuple[tuple[str, str], ...] = ()) -> int:
    """Writes the files that transformers' CLIPTokenizer reads; returns the vocabulary's size.

    pad_token: SDXL's first tokenizer pads with the end token, its second with "!".
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = byte_alphabet()
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), BOS, EOS]
    texts = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": BOS,
                "eos_token": EOS,
                "unk_token": EOS,
                "pad_token": pad_token,
                "do_lower_case": True,
            }
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return len(words)
