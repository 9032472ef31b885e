"""Files of prompts: a line each, or rows with the column prompt and, if there are any, the others of COLUMNS.

image, mask and embeds are paths beside the file, or URLs; a row with embeds needs no prompt.
"""

import csv
import difflib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from autolora_jax import foreign
from autolora_jax.batch.storage import read_anywhere
from autolora_jax.config import ConfigError
from autolora_jax.settings.jobs import Prompt
from autolora_jax.settings.pictures import read_seeds

COLUMNS = ("prompt", "negative_prompt", "seeds", "id", "image", "mask", "embeds")  # others are the user's own
MEANT = {
    "mask_image": "write 'mask'",
    "prompt_embeds": "write 'embeds', a file's path",
    "strength": "it is a setting of the job: --set settings.strength=0.6, or several values of it in a grid",
}


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file on this machine or at a URL (gs://, s3://, …).

    Raises ConfigError naming the file and its row, OSError when it can't be read.
    """
    suffix = path.rpartition(".")[2].lower()
    if suffix not in READERS:
        raise ConfigError(f"{path} should be a file of prompts: {', '.join(f'.{known}' for known in READERS)}")
    try:
        rows = enumerate(READERS[suffix](read_anywhere(path)), 1)
        prompts = [_prompt(row, f"{path}, row {i}", os.path.dirname(path)) for i, row in rows]
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8") from None
    except (ValueError, csv.Error) as e:  # a ConfigError is a ValueError
        raise ConfigError(str(e) if str(e).startswith(path) else f"{path}: {e}") from None
    if not prompts:
        raise ConfigError(f"{path} holds no prompt")
    return prompts


def _prompt(row: Mapping[str, Any], where: str, folder: str) -> Prompt:
    for name in row.keys() - set(COLUMNS):
        if name in MEANT:
            raise ConfigError(f"{where}: column {name!r} is not known; {MEANT[name]}")
        if near := difflib.get_close_matches(str(name), COLUMNS, 1, cutoff=0.8):
            raise ConfigError(f"{where}: column {name!r} is not known; did you mean {near[0]!r}?")
    if "prompt" not in row and not row.get("embeds"):
        raise ConfigError(f"{where}: there is no column `prompt`; the columns are {_quoted(row)}")
    text, negative, seeds, own, *given = (row.get(column) for column in COLUMNS)
    for column, value in zip(("prompt", "negative_prompt", *COLUMNS[4:]), (text, negative, *given), strict=True):
        if not isinstance(value, str) and (value is not None or (column == "prompt" and not row.get("embeds"))):
            raise ConfigError(f"{where}: {column} = {value!r} should be a text")
    return Prompt(
        text or "",
        negative,
        None if seeds is None or seeds == "" else read_seeds(seeds, f"{where}: seeds"),
        None if own is None or own == "" else str(own),
        *(os.path.join("" if "://" in each else folder, each) if each else None for each in given),
    )


def _lines(content: bytes) -> Iterator[str]:
    return (line for line in content.decode("utf-8-sig").split("\n") if line.strip())


def _text(content: bytes) -> Iterator[dict[str, Any]]:
    return ({"prompt": line.strip()} for line in _lines(content))


def _jsonl(content: bytes) -> Iterator[dict[str, Any]]:
    for line in _lines(content):
        row = foreign.parse_json(line)
        if not isinstance(row, dict):
            raise ConfigError(f'{line[:80]} should be a JSON object such as {{"prompt": "a cat"}}')
        yield row


def _csv(content: bytes) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    heading = reader.fieldnames or ()
    if heading and "prompt" not in heading:
        other = next((f"; it is separated by {name}, not commas" for mark, name in _MARKS if mark in heading[0]), "")
        raise ConfigError(
            f"the first line names no column `prompt` but {_quoted(heading)}{other}; begin with a line such as "
            "prompt,negative_prompt,seeds"
        )
    for row in reader:
        if beyond := row.pop(None, None):
            raise ConfigError(
                f"line {reader.line_num} has {len(beyond)} fields more than the {len(heading)} columns: {beyond[0]!r}, "
                '…; put a text with commas in "quotes"'
            )
        # An empty field is none: a prompt without a negative one of its own.
        yield {name: value or None for name, value in row.items() if name}


_MARKS = ((";", "semicolons"), ("\t", "tabs"))


def _quoted(names: Iterable[object]) -> str:
    return ", ".join(f"{str(name)[:80]!r}" for name in names) or "none"


def _parquet(content: bytes) -> Iterable[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("a .parquet file of prompts needs pyarrow: pip install 'autolora-jax[batch]'") from None
    rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(content)).to_pylist()
    return rows


READERS: Mapping[str, Callable[[bytes], Iterable[dict[str, Any]]]] = {
    "txt": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
