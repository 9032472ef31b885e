"""The manifest: a row of JSON for every picture, from parts (one per finished batch) to one file in the plan's order.

What a clock or a machine decides stands in lines of its own, which end in log.jsonl: the manifest of a job that was
stopped and resumed is, byte for byte, that of one that was not.
"""

import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from autolora_jax import __version__
from autolora_jax.batch.plan import KEY_LENGTH, Row
from autolora_jax.batch.storage import STATE, Storage, StorageError, open_storage
from autolora_jax.settings.pictures import DrawingConfig, ModelConfig
from autolora_jax.settings.rules import numbers
from autolora_jax.settings.values import columns_of

MANIFEST, PARQUET, LOG = "manifest.jsonl", "manifest.parquet", "log.jsonl"
PARTS = f"{STATE}/parts"
OK, FAILED, NOT_FINITE = "ok", "failed", "not_finite"  # what became of a picture
_ROW, _LOG = b'{"key": "', b'{"log": '  # how lines begin
_LIST = "list<string>"
# Column -> its type in Parquet.
COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(["key", "status", "file", "member", "sha256", "prompt", "negative_prompt"], "string"),
    "seed": "int64",
    **dict.fromkeys(["id", "model", "model_sha256"], "string"),
    **columns_of(ModelConfig),
    **{"loras": _LIST, "lora_sha256": _LIST, "lora_scales": "list<double>", "embeddings": _LIST},
    **{"embedding_sha256": _LIST, "guidance": "string"},
    **{name: "double" for name in numbers()},
    **columns_of(DrawingConfig),
    **{"width": "int64", "height": "int64", "recipe": "int64"},
    **dict.fromkeys(["autolora_jax", "jax", "reason"], "string"),
}


class Recorded(NamedTuple):
    """What a place holds: keys as bytes [n], sorted, and whether each has its picture [n]."""

    keys: np.ndarray
    ok: np.ndarray

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(whether each of these keys is recorded, whether with a picture)."""
        if not len(self.keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), bool)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        return known, known & self.ok[at]


def make_row(row: Row, status: str, **found: str | None) -> dict[str, Any]:
    """A picture's row: its columns in their order. found: file, member, sha256 of it; or the reason why it is not."""
    columns = {
        **row.recipe.columns,
        **{"key": row.key, "status": status, **found},
        **{"prompt": row.prompt, "negative_prompt": row.negative_prompt, "seed": row.seed, "id": row.id},
        **{"autolora_jax": __version__, "jax": jax.__version__},
    }
    return {name: columns.get(name) for name in COLUMNS}


def make_part(rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> bytes:
    """A part's content. facts: of this run alone."""
    return "".join(json.dumps(line) + "\n" for line in (*rows, {"log": facts})).encode()


def read_manifest(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a job's pictures, also of an unfinished one. Raises StorageError."""
    storage = open_storage(out)
    rows = (json.loads(line) for line in _lines(storage) if line.startswith(_ROW))
    return list({row["key"]: row for row in rows}.values())


def recorded(storage: Storage) -> Recorded:
    """The keys that a place holds, in parts or not."""
    keys, ok = bytearray(), bytearray()
    for line in _lines(storage):
        if line.startswith(_ROW):
            keys += _key(line)
            ok.append(json.loads(line)["status"] == OK)
    # Of a key that stands there twice the last row counts: it is first in the reversed order.
    found, first = np.unique(_as_keys(keys)[::-1], return_index=True)
    return Recorded(found, np.frombuffer(ok, bool)[::-1][first])


def fold(storage: Storage, plan_keys: np.ndarray) -> None:
    """Makes one file of the manifest and its parts: rows of other jobs as they stand, then this plan's in its order.

    Parts stay, to be removed when nothing depends on them any more: folding again changes nothing.
    """
    keys, ends, logs = bytearray(), array("q", [0]), []
    with tempfile.TemporaryFile() as spool:  # a row's place and length is all that memory holds
        for line in _lines(storage):
            if line.startswith(_LOG):
                logs.append(json.dumps(json.loads(line)["log"]))
            else:
                spool.write(line)
                keys += _key(line)
                ends.append(ends[-1] + len(line))
        with storage.writing(MANIFEST) as file:
            for i in _order(_as_keys(keys), plan_keys):
                spool.seek(ends[i])
                file.write(spool.read(ends[i + 1] - ends[i]))
    _write_parquet(storage)
    before = (storage.read(LOG) or b"").decode().splitlines()
    known = set(before)
    storage.write(LOG, "".join(f"{line}\n" for line in (*before, *(n for n in logs if n not in known))).encode())


def _order(keys: np.ndarray, plan_keys: np.ndarray) -> Iterator[int]:
    """Numbers of the rows that stay, in their new order."""
    newest, last = np.unique(keys[::-1], return_index=True)
    rows = len(keys) - 1 - last
    planned, first = np.unique(plan_keys, return_index=True)
    place = rows.astype(np.int64)
    if len(planned):
        at = np.minimum(np.searchsorted(planned, newest), len(planned) - 1)
        place = np.where(planned[at] == newest, len(keys) + first[at], place)
    return map(int, rows[np.argsort(place)])


def _lines(storage: Storage) -> Iterator[bytes]:
    """Of the manifest, then of its parts. Raises StorageError for a line that is neither a row nor a log's."""
    if MANIFEST in storage.names(""):
        with storage.reading(MANIFEST) as file:
            yield from _checked(file, f"{storage.where}/{MANIFEST}")
    names = [f"{PARTS}/{name}" for name in storage.names(PARTS)]
    for name, content in zip(names, storage.read_all(names), strict=True):
        yield from _checked(content.splitlines(keepends=True), f"{storage.where}/{name}")


def _checked(lines: Iterable[bytes], where: str) -> Iterator[bytes]:
    for number, line in enumerate(lines, 1):
        if not line.startswith((_ROW, _LOG)) or not line.endswith(b"}\n"):
            raise StorageError(f"{where}: line {number} is no row of a manifest; restore the file")
        yield line


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
    kinds = {
        **{"string": pyarrow.string(), "int64": pyarrow.int64(), "double": pyarrow.float64()},
        **{_LIST: pyarrow.list_(pyarrow.string()), "list<double>": pyarrow.list_(pyarrow.float64())},
    }
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    with (
        storage.reading(MANIFEST) as source,
        storage.writing(PARQUET) as target,
        parquet.ParquetWriter(target, schema) as writer,
    ):
        while rows := [_utf8(json.loads(line)) for line in islice(source, 10_000)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _utf8(row: dict[str, Any]) -> dict[str, Any]:
    """A row without halves of characters, which Parquet can't hold."""
    return {name: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for name, v in row.items()}
