"""Small copies of pictures, in one folder per size. What is there is not made again."""

import io
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from autolora_jax.batch.contents import read_members
from autolora_jax.batch.gallery.table import Table
from autolora_jax.batch.manifest import OK
from autolora_jax.batch.storage import Storage

FOLDER = "gallery"
SIZE = 384  # pixels of the longer side, where nothing else is wished
THREADS = max(4, min(32, os.cpu_count() or 1))
PICTURES = (".png", ".webp", ".jpg")  # what can be shown
OnDone = Callable[[int, int], None]  # (done, total)


class Thumbnails(NamedTuple):
    """Those of one size. problems: why there is none of a picture, for each such picture."""

    size: int
    problems: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        """Where one is found: ** is the beginning of the picture's key, * the key."""
        return f"{FOLDER}/thumbnails-{self.size}/**/*.webp"

    def name(self, key: str) -> str:
        """Where a picture's is found."""
        return self.pattern.replace("**", key[:2]).replace("*", key)


def make_thumbnails(storage: Storage, table: Table, size: int = SIZE, on_done: OnDone | None = None) -> Thumbnails:
    """Makes the thumbnails that a place lacks, from files and WebDataset shards. Raises StorageError, ValueError.

    size: pixels of the longer side; smaller pictures stay as they are.
    """
    if not 16 <= size <= 4096:
        raise ValueError(f"thumbnails of {size} pixels can't be meant; take 16 to 4096")
    thumbnails = Thumbnails(size)
    files, shards = _wanted(storage, table, thumbnails)
    total, done, problems = len(files) + sum(map(len, shards.values())), 0, []

    def from_file(key: str, name: str) -> Iterator[str | None]:
        yield _make(storage, thumbnails.name(key), name, storage.read(name))

    def from_shard(name: str, keys: dict[str, str]) -> Iterator[str | None]:
        for member, found in read_members(storage, name, keys):
            small = thumbnails.name(keys[member])
            yield found if isinstance(found, str) else _make(storage, small, f"{name}: {member}", found)

    pool = ThreadPoolExecutor(THREADS)
    try:
        made = pool.map(lambda file: list(from_file(*file)), files.items())
        more = pool.map(lambda shard: list(from_shard(*shard)), shards.items())
        for found in itertools.chain(made, more):
            problems += [problem for problem in found if problem]
            done += len(found)
            if on_done:
                on_done(done, total)
    finally:
        pool.shutdown(cancel_futures=True)  # a full disk or Ctrl-C does not wait for all the others
    return thumbnails._replace(problems=tuple(problems))


def _wanted(storage: Storage, table: Table, thumbnails: Thumbnails) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What is to be made: key -> file, and shard -> its members -> their keys."""
    folders = {f"{FOLDER}/thumbnails-{thumbnails.size}/{key[:2]}" for key in table.keys}
    with ThreadPoolExecutor(THREADS) as pool:
        there = {name for names in pool.map(storage.names, folders) for name in names}
    files: dict[str, str] = {}
    shards: dict[str, dict[str, str]] = {}
    for i, key in enumerate(table.keys):
        if table.value("status", i) != OK or thumbnails.name(key).rpartition("/")[2] in there:
            continue
        file, member = (table.value(name, i) for name in ("file", "member"))
        if not (member or file).endswith(PICTURES):
            continue
        if member:
            shards.setdefault(file, {})[member.replace("*", key)] = key
        else:
            files[key] = file.replace("*", key)
    return files, shards


def _make(storage: Storage, name: str, source: str, content: bytes | None) -> str | None:
    """Writes a thumbnail, or says why it can't be made."""
    if content is None:
        return f"{source} is not there"
    size = int(name.split("/")[1].rpartition("-")[2])
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (size, size))
            small = image.convert("RGB")
        small.thumbnail((size, size), reducing_gap=2.0)
        small.save(file, "WEBP", quality=82)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # what Pillow says of broken files
        return f"{source} can't be read: {e}"
    storage.write(name, file.getvalue())
    return None
