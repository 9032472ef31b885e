"""Files of tokenizers, looked at before transformers reads them: it takes a part of one for the whole in silence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from autolora_jax import foreign
from autolora_jax.weights.errors import WeightsError, printable

_AGAIN = "the file is damaged or only a part of it; download it again"
_END_OF_WORD = "</w>"
_SIZES = {1: 8, 5: 4}  # protobuf's kinds of fields of fixed size
_TRAINER = 2  # the field of a SentencePiece model that follows its pieces


def check_tokenizer(paths: Sequence[Path]) -> None:
    """Raises WeightsError for files of a tokenizer, of one folder, that are not whole. Names of no known kind pass."""
    for path in paths:
        _check(path, _stamp(path))
    there = {path.name: path for path in paths}
    if {"vocab.json", "merges.txt"} <= there.keys():
        vocabulary, merges = there["vocab.json"], there["merges.txt"]
        _check_merges(vocabulary, merges, _stamp(vocabulary), _stamp(merges))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does: a file is looked at once."""
    try:
        stat = foreign.check_regular(path)
    except OSError as e:
        raise WeightsError(f"{path} can't be read: {e.strerror}; download it again") from None
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=64)
def _check(path: Path, stamp: tuple[int, int]) -> None:
    _KINDS.get(path.suffix, lambda path: None)(path)


def _json_object(path: Path) -> Mapping[str, Any]:
    try:
        return foreign.parse_object(foreign.read_file(path, foreign.MOST_JSON))
    except ValueError as e:
        raise WeightsError(f"{path} is not valid JSON ({printable(str(e))}); {_AGAIN}") from None


def _check_text(path: Path) -> None:
    try:
        foreign.read_file(path, foreign.MOST_JSON).decode()
    except ValueError as e:
        raise WeightsError(f"{path} is not text ({printable(str(e))}); {_AGAIN}") from None


@lru_cache(maxsize=64)
def _check_merges(vocabulary: Path, merges: Path, *stamps: tuple[int, int]) -> None:
    """Every token longer than a byte is made by a merge, and every merge makes a token."""
    tokens, made = _json_object(vocabulary), set()
    if wrong := [token for token, number in tokens.items() if type(number) is not int]:
        raise WeightsError(f"{vocabulary}: the number of {printable(wrong[0])!r} is {tokens[wrong[0]]!r}; {_AGAIN}")
    for number, line in enumerate(foreign.read_file(merges).decode().splitlines(), 1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.split()
        if len(pair) != 2 or "".join(pair) not in tokens:
            what = f"line {number}, {printable(line)!r}, makes no token of {vocabulary.name}"
            raise WeightsError(f"{merges}: {what}; one of both is damaged or of another model; download both again")
        made.add("".join(pair))
    if lacking := [token for token in tokens if _is_made(token) and token not in made]:
        raise WeightsError(
            f"{merges} has no merge for {len(lacking)} tokens of {vocabulary.name}, such as {printable(lacking[0])!r}; "
            f"{_AGAIN}"
        )


def _is_made(token: str) -> bool:
    """Whether it stands for more than a byte, and for text: special tokens look like <|endoftext|>."""
    return len(token.removesuffix(_END_OF_WORD)) > 1 and not (token.startswith("<") and token.endswith(">"))


def _check_sentencepiece(path: Path) -> None:
    """A model is a protobuf message: its fields must end where the file does, and what follows the pieces be there."""
    content = foreign.read_file(path)
    try:
        fields = set(_fields(content))
    except (IndexError, KeyError, ValueError):
        raise WeightsError(f"{path} is not a whole SentencePiece model; {_AGAIN}") from None
    if _TRAINER not in fields:
        raise WeightsError(f"{path} ends before the end of a SentencePiece model; {_AGAIN}")


def _fields(content: bytes) -> Iterator[int]:
    """The numbers of a message's fields. Raises IndexError, KeyError or ValueError for what is none."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = content[at], at + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(content):
        field, kind = divmod(number(), 8)
        size = number() if kind in (0, 2) else _SIZES[kind]  # reading a number moves `at` past it
        at += 0 if kind == 0 else size
        if at > len(content):
            raise ValueError(f"field {field} ends beyond the file")
        yield field


# By the ending of a file's name.
_KINDS: Mapping[str, Callable[[Path], object]] = {
    ".json": _json_object,
    ".txt": _check_text,
    ".model": _check_sentencepiece,
}
