"""The manifest: a row of JSON for every picture, from parts (one per finished batch) to one file in the plan's order.

What a clock or a machine decides stands in lines of its own, which end in log.jsonl: the manifest of a job that was
stopped and resumed is, byte for byte, that of one that was not.
"""

import json
import os
import re
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from autolora_jax import __version__
from autolora_jax.batch.plan import KEY_LENGTH, Row
from autolora_jax.batch.storage import STATE, Storage, StorageError, open_storage
from autolora_jax.batch.store import is_place, shard_number
from autolora_jax.given import COLUMNS as GIVEN
from autolora_jax.settings.model import ModelConfig
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.rules import numbers
from autolora_jax.settings.values import columns_of

MANIFEST, PARQUET, LOG = "manifest.jsonl", "manifest.parquet", "log.jsonl"
PARTS = f"{STATE}/parts"
SOURCES = "sources"  # in a run's line of the log: see Plan.sources
OK, FAILED, NOT_FINITE = "ok", "failed", "not_finite"  # what became of a picture
_ROW, _LOG = b'{"key": "', b'{"log": '  # how lines begin
_PART, _NOTE = re.compile(r"([0-9a-f]{8})-(\d{8,})\.jsonl"), re.compile(r"log-.+\.jsonl")
_KEY = re.compile(rb'\{"key": "([0-9a-f]{%d})"' % KEY_LENGTH).match
_SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
_LIST = "list<string>"
# Column -> its type in Parquet.
COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(["key", "status", "file", "member"], "string"),
    "position": "int64",
    **dict.fromkeys(["sha256", "prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"], "string"),
    "seed": "int64",
    **dict.fromkeys(["id", *GIVEN, "model", "model_sha256"], "string"),
    **columns_of(ModelConfig),
    **{"loras": _LIST, "lora_sha256": _LIST, "lora_scales": "list<double>"},
    **dict.fromkeys(["lora_roles", "lora_strengths", "lora_blocks"], _LIST),
    **{"lora": "string", "lora_scale": "double", "embeddings": _LIST},
    **{"embedding_sha256": _LIST, "guidance": "string"},
    **{name: "double" for name in numbers()},
    **columns_of(DrawingConfig),
    **{"width": "int64", "height": "int64", "recipe": "int64"},
    **dict.fromkeys(["autolora_jax", "jax", "reason"], "string"),
}


# Columns that a run and the names of files decide, beside what a picture's key is made of.
_OF_A_RUN = frozenset({"status", "file", "member", "position", "sha256", "reason", "autolora_jax", "jax"}) | frozenset(
    {"model", "loras", "lora", "id", *(name for name in GIVEN if not name.endswith("_sha256"))}
)
ALONE = {
    "lora": "loras",
    "lora_scale": "lora_scales",
}  # column -> the list whose only entry it holds; null beside others


def make_row(row: Row, status: str, **found: str | int | None) -> dict[str, Any]:
    """A picture's row: its columns in their order. found: its Place and sha256; or the reason why it is not."""
    columns = {
        **row.recipe.columns,
        **(row.base.columns if row.base else {}),
        **(row.embeds.columns if row.embeds else {}),
        **{"key": row.key, "status": status, **found},
        **{"prompt": row.prompt, "negative_prompt": row.negative_prompt, "seed": row.seed, "id": row.id},
        **{"autolora_jax": __version__, "jax": jax.__version__},
    }
    return {name: columns.get(name) for name in COLUMNS} | _alone(columns)


def _alone(row: Mapping[str, Any]) -> dict[str, Any]:
    lists: dict[str, list[Any]] = {name: row.get(several) or [] for name, several in ALONE.items()}
    return {name: values[0] if len(values) == 1 else None for name, values in lists.items()}


def _read(line: bytes) -> dict[str, Any]:
    """A row, with the columns that a version before did not write."""
    row = json.loads(line)
    return {**row, **_alone(row)}


class Part(NamedTuple):
    """Where a batch of a record is recorded."""

    record: str
    batch: int

    @property
    def file(self) -> str:
        return f"{PARTS}/{self.record}-{self.batch:08}.jsonl"


def parts_in(storage: Storage) -> list[Part]:
    """Those that a place holds, in order; files of other names are nobody's."""
    return [Part(match[1], int(match[2])) for match in map(_PART.fullmatch, storage.names(PARTS)) if match]


def notes_in(storage: Storage) -> list[str]:
    """The files that hold lines for the log alone."""
    return [f"{PARTS}/{name}" for name in storage.names(PARTS) if _NOTE.fullmatch(name)]


def note_file(name: str) -> str:
    return f"{PARTS}/log-{name}.jsonl"


def read_part(content: bytes) -> list[dict[str, Any]] | None:
    """The rows of a part; None for one that is not whole."""
    *rows, last = content.splitlines(keepends=True) or [b""]
    if not last.startswith(_LOG) or not all(line.startswith(_ROW) for line in rows):
        return None
    try:
        read = [_checked(json.loads(line), line) for line in rows]
        return [_typed(row) for row in read if row is not None] if json.loads(last) and None not in read else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def make_part(rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> bytes:
    """A part's content. facts: of this run alone."""
    return "".join(json.dumps(line) + "\n" for line in (*rows, {"log": facts})).encode()


def read_manifest(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a job's pictures, also of an unfinished one. Raises StorageError."""
    storage = open_storage(out)
    rows = (_read(line) for line in _lines(storage) if line.startswith(_ROW))
    return list({row["key"]: row for row in rows}.values())


def sources_in(storage: Storage) -> dict[str, dict[str, Any]]:
    """By its hash, where each file that pictures were drawn from was found, as the newest run says it."""
    names, mark = [*({LOG} & {*storage.names("")}), *notes_in(storage)], f'"{SOURCES}": {{'.encode()
    lines = (line for content in storage.read_all(names) for line in content.splitlines() if mark in line)
    told = (json.loads(line) for line in lines)
    return {sha256: found for line in told for sha256, found in line.get("log", line)[SOURCES].items()}


class Recorded(NamedTuple):
    """Of some keys: whether a place holds them, in parts or not; whether with their pictures.

    rows: of the place. shards: the numbers of those that rows name.
    """

    known: np.ndarray
    ok: np.ndarray
    rows: int
    shards: frozenset[int]


def recorded(storage: Storage, keys: np.ndarray) -> Recorded:
    """What a place says of these keys."""
    joined, ok, shards = bytearray(), bytearray(), set()
    for line in _lines(storage):
        if line.startswith(_ROW):
            row = json.loads(line)
            joined += _key(line)
            ok.append(row["status"] == OK)
            shards.add(shard_number(row["file"]))
    # Of a key that stands there twice the last row counts: it is first in the reversed order.
    found, first = np.unique(_as_keys(joined)[::-1], return_index=True)
    at, known = _find(keys, found)
    drawn = known.copy()
    drawn[known] = np.frombuffer(ok, bool)[::-1][first][at[known]]
    return Recorded(known, drawn, len(ok), frozenset(number for number in shards if number is not None))


def fold(storage: Storage, plan_keys: np.ndarray, mend: bool = False) -> None:
    """Makes one file of the manifest and its parts: rows of other jobs as they stand, then this plan's in its order.

    Parts stay, to be removed when nothing depends on them any more: folding again changes nothing.
    mend: leave out lines that are no rows, in place of raising StorageError.
    """
    keys, ends = bytearray(), array("q", [0])
    with storage.scratch() as rows, storage.scratch() as log:  # a row's place and length is all that memory holds
        for line in _lines(storage, mend):
            if line.startswith(_LOG):
                log.write(json.dumps(json.loads(line)["log"]).encode() + b"\n")
            else:
                rows.write(line)
                keys += _key(line)
                ends.append(ends[-1] + len(line))
        with storage.writing(MANIFEST) as file:
            for i in _order(_as_keys(keys), plan_keys):
                rows.seek(ends[i])
                file.write(rows.read(ends[i + 1] - ends[i]))
        _write_parquet(storage)
        _add_to_log(storage, log)


def _add_to_log(storage: Storage, lines: IO[bytes]) -> None:
    """Adds lines to the log, but for those that it has: a fold that was killed is done again."""
    lines.seek(0)
    known: set[int] = set()
    with storage.writing(LOG) as log:
        if LOG in storage.names(""):
            with storage.reading(LOG) as before:
                for line in before:
                    known.add(hash(line))
                    log.write(line)
        log.writelines(line for line in lines if hash(line) not in known)


def _order(keys: np.ndarray, plan_keys: np.ndarray) -> Iterator[int]:
    """Numbers of the rows that stay, in their new order."""
    newest, last = np.unique(keys[::-1], return_index=True)
    rows = len(keys) - 1 - last
    planned, first = np.unique(plan_keys, return_index=True)
    at, known = _find(newest, planned)
    place = rows.astype(np.int64)
    place[known] = len(keys) + first[at[known]]
    return map(int, rows[np.argsort(place)])


def _find(keys: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places of keys among sorted ones, whether they are there)."""
    at = np.searchsorted(there, keys)
    known = at < len(there)
    known[known] = there[at[known]] == keys[known]
    return at, known


def lines_of(storage: Storage) -> Iterator[tuple[str, int, bytes]]:
    """(file, number, line) of the manifest's lines, then of its parts', whatever they are. Raises StorageError."""
    if MANIFEST in storage.names(""):
        with storage.reading(MANIFEST) as file:
            yield from ((MANIFEST, number, line) for number, line in enumerate(file, 1))
    names = [*(part.file for part in parts_in(storage)), *notes_in(storage)]
    for name, content in zip(names, storage.read_all(names), strict=True):
        yield from ((name, number, line) for number, line in enumerate(content.splitlines(keepends=True), 1))


def _lines(storage: Storage, mend: bool = False) -> Iterator[bytes]:
    """The lines. Raises StorageError for one that is neither a row nor a log's; or, to mend, leaves it out."""
    reader = Reader()
    for file, number, line in lines_of(storage):
        if (reader(line) if is_row(line) else read_part(line)) is not None:
            yield line
        elif not mend:
            raise StorageError(
                f"{storage.where}/{file}: line {number} is no row of a manifest; restore the file, or let --verify "
                "--repair make the row anew"
            )


def is_row(line: bytes) -> bool:
    """Whether a line should be one."""
    return not line.startswith(_LOG)


def read_row(line: bytes) -> dict[str, Any] | None:
    """A row, by a line of the manifest; None for what is none."""
    return Reader()(line)


class Reader:
    """Reads rows as read_row does, but of most only what stands before SHARED: equal ends are parsed once."""

    SHARED = b', "model": '  # whose quotes no text can hold
    _MOST = 10_000  # ends of rows that are remembered

    def __init__(self) -> None:
        self._ends: set[bytes] = set()

    def __call__(self, line: bytes) -> dict[str, Any] | None:
        start, shared, rest = line.partition(self.SHARED)
        try:
            if rest in self._ends:
                return _checked(json.loads(start + b"}"), line)
            row = _checked(json.loads(line), line)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if row is not None and shared and len(self._ends) < self._MOST:
            self._ends.add(rest)
        return row


def _checked(row: dict[str, Any], line: bytes) -> dict[str, Any] | None:
    """Raises KeyError, TypeError for what is no row."""
    whole = line.endswith(b"}\n") and row["key"] == key_of(line) and isinstance(row["prompt"], str)
    if row["status"] == OK:
        whole = whole and _SHA256(row["sha256"]) is not None and is_place(row["key"], row["file"], row["member"])
    return row if whole and row["status"] in (OK, FAILED, NOT_FINITE) else None


_PYTHON: dict[str, Any] = {"string": str, "int64": int, "double": (int, float)}  # of Parquet's types


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row. Raises TypeError for a value that its column can't hold."""
    for name, kind in COLUMNS.items():
        value = row.get(name)
        each, inner = (value, kind[5:-1]) if kind.startswith("list") and isinstance(value, list) else ([value], kind)
        if not all(one is None or isinstance(one, _PYTHON.get(inner, ())) for one in each):
            raise TypeError(f"{name} = {value!r} should be {kind}")
    return row


def key_of(line: bytes) -> str | None:
    """The key that a row begins with; None where there is none."""
    found = _KEY(line)
    return found[1].decode() if found else None


def planned_columns(row: Row) -> dict[str, Any]:
    """The columns that follow from a picture's key, with what they should hold."""
    columns = json.loads(json.dumps(make_row(row, OK)))
    free = _OF_A_RUN | ({"prompt", "negative_prompt"} if row.embeds else set())  # captions, there
    return {name: value for name, value in columns.items() if name not in free}


def parquet_keys(storage: Storage) -> np.ndarray | None:
    """The keys in manifest.parquet; None where it is not there, or pyarrow is not. Raises StorageError."""
    try:
        from pyarrow import parquet
    except ImportError:
        return None
    if PARQUET not in storage.names(""):
        return None
    with storage.reading(PARQUET) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(columns=["key"])
            keys = [np.array(batch.column(0).to_pylist(), f"S{KEY_LENGTH}") for batch in batches]
        except Exception as e:  # pyarrow's errors have no class of their own
            raise StorageError(f"can't be read: {e}") from None
    return np.concatenate(keys) if keys else np.zeros(0, f"S{KEY_LENGTH}")


def _key(line: bytes) -> bytes:
    return line[len(_ROW) : len(_ROW) + KEY_LENGTH]


def _as_keys(joined: bytearray) -> np.ndarray:
    return np.frombuffer(bytes(joined), f"S{KEY_LENGTH}")


def _write_parquet(storage: Storage) -> None:
    """manifest.parquet beside manifest.jsonl, where pyarrow is installed; else none, rather than an old one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        storage.remove([PARQUET])
        return
    try:
        try:
            _write_table(storage, pyarrow, parquet, pyarrow.int64())
        except OverflowError:  # a seed from 2^63 on: whole numbers of 20 digits
            _write_table(storage, pyarrow, parquet, pyarrow.decimal128(20))
    except pyarrow.ArrowException as e:
        warnings.warn(f"{storage.where}: no {PARQUET}, because a row holds what its column can't: {e}", stacklevel=2)
        storage.remove([PARQUET])


def _write_table(storage: Storage, pyarrow: Any, parquet: Any, seeds: Any) -> None:
    """seeds: the type of that column."""
    kinds = {
        **{"string": pyarrow.string(), "int64": pyarrow.int64(), "double": pyarrow.float64()},
        **{_LIST: pyarrow.list_(pyarrow.string()), "list<double>": pyarrow.list_(pyarrow.float64())},
    }
    schema = pyarrow.schema([(name, seeds if name == "seed" else kinds[kind]) for name, kind in COLUMNS.items()])
    with (
        storage.reading(MANIFEST) as source,
        storage.writing(PARQUET) as target,
        parquet.ParquetWriter(target, schema) as writer,
    ):
        while rows := [_utf8(_read(line)) for line in islice(source, 10_000)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _utf8(row: dict[str, Any]) -> dict[str, Any]:
    """A row without halves of characters, which Parquet can't hold."""
    return {name: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for name, v in row.items()}
