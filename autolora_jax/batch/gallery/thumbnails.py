"""Small copies of pictures, in one folder per size, and contact sheets of them.

A thumbnail that is there is not made again. A sheet shows one prompt: a row for each settings, a column for each seed.
"""

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from autolora_jax.batch.gallery.table import Table
from autolora_jax.batch.manifest import OK
from autolora_jax.batch.storage import Storage
from autolora_jax.batch.store import Place, read_pictures
from autolora_jax.grid import comparison_grid

FOLDER = "gallery"
SIZE = 384  # pixels of the longer side, where nothing else is wished
THREADS = max(4, min(32, os.cpu_count() or 1))
PICTURES = (".png", ".webp", ".jpg")  # what can be shown
SHEETS = "sheets"
SEEDS = 16  # columns; more seeds make more sheets
EMPTY = (224, 224, 224)  # where there is no picture
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
    groups = _wanted(storage, table, thumbnails)
    total, done, problems = sum(map(len, groups)), 0, []

    def make(places: Mapping[str, Place]) -> list[str | None]:
        contents = read_pictures(storage, places)
        return [_make(storage, thumbnails, key, places[key], content) for key, content in contents]

    pool = ThreadPoolExecutor(THREADS)
    try:
        for found in pool.map(make, groups):
            problems += [problem for problem in found if problem]
            done += len(found)
            if on_done:
                on_done(done, total)
    finally:
        pool.shutdown(cancel_futures=True)  # a full disk or Ctrl-C does not wait for all the others
    return thumbnails._replace(problems=tuple(problems))


def _wanted(storage: Storage, table: Table, thumbnails: Thumbnails) -> list[dict[str, Place]]:
    """Of which pictures, by key: each file for itself, then those of a shard together."""
    folders = {f"{FOLDER}/thumbnails-{thumbnails.size}/{key[:2]}" for key in table.keys}
    with ThreadPoolExecutor(THREADS) as pool:
        there = {name for names in pool.map(storage.names, folders) for name in names}
    files: list[dict[str, Place]] = []
    shards: dict[str, dict[str, Place]] = {}
    for i, key in enumerate(table.keys):
        if table.value("status", i) != OK or thumbnails.name(key).rpartition("/")[2] in there:
            continue
        file, member = (table.value(name, i) for name in ("file", "member"))
        if not (member or file).endswith(PICTURES):
            continue
        if member:
            shards.setdefault(file, {})[key] = Place(file, member.replace("*", key))
        else:
            files.append({key: Place(file.replace("*", key), None)})
    return [*files, *shards.values()]


def _make(storage: Storage, thumbnails: Thumbnails, key: str, place: Place, content: bytes | str) -> str | None:
    """Writes a picture's thumbnail, or says why it can't be made. content: in its place, why there is none."""
    if isinstance(content, str):
        return content
    size, file = (thumbnails.size, thumbnails.size), io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", size)
            small = image.convert("RGB")
        small.thumbnail(size, reducing_gap=2.0)
        small.save(file, "WEBP", quality=82)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # what Pillow says of broken files
        return f"{': '.join(filter(None, place[:2]))} can't be read: {e}"
    storage.write(thumbnails.name(key), file.getvalue())
    return None


def write_sheets(storage: Storage, table: Table, thumbnails: Thumbnails, on_done: OnDone | None = None) -> list[str]:
    """Writes the sheets, of thumbnails, and returns their names: prompts are numbered in the job's order.

    Pictures of another size or negative prompt have a sheet of their own. Raises StorageError.
    """
    prompts: dict[tuple[object, ...], list[int]] = {}
    for i in range(len(table.keys)):
        of = tuple(table.value(name, i) for name in ("prompt", "negative_prompt", "width", "height"))
        prompts.setdefault(of, []).append(i)
    names = []
    for number, ((prompt, *_), pictures) in enumerate(prompts.items()):
        seeds = list(dict.fromkeys(table.value("seed", i) for i in pictures))
        for part, start in enumerate(range(0, len(seeds), SEEDS)):
            sheet = _sheet(storage, table, thumbnails, str(prompt), pictures, seeds[start : start + SEEDS])
            file = io.BytesIO()
            sheet.save(file, "JPEG", quality=90)
            names.append(f"{SHEETS}/{number:04}-{part:02}.jpg")
            storage.write(names[-1], file.getvalue())
        if on_done:
            on_done(number + 1, len(prompts))
    there = (f"{SHEETS}/{name}" for name in storage.names(SHEETS) if re.fullmatch(r"\d{4,}-\d{2,}\.jpg", name))
    storage.remove([name for name in there if name not in set(names)])
    return names


def _sheet(
    storage: Storage, table: Table, thumbnails: Thumbnails, prompt: str, pictures: Sequence[int], seeds: Sequence[int]
) -> Image.Image:
    """One prompt's pictures of these seeds."""
    labels = list(dict.fromkeys(table.label(i) for i in pictures))
    wanted = [i for i in pictures if table.value("seed", i) in seeds]
    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(storage.read, (thumbnails.name(table.keys[i]) for i in wanted)))
    cells = {
        (table.label(i), table.value("seed", i)): Image.open(io.BytesIO(content))
        for i, content in zip(wanted, contents, strict=True)
        if content
    }
    size = next((image.size for image in cells.values()), (thumbnails.size, thumbnails.size))
    empty = Image.new("RGB", size, EMPTY)
    columns = [(f"seed {seed}", [cells.get((label, seed), empty) for label in labels]) for seed in seeds]
    return comparison_grid(columns, labels if any(labels) else (), title=prompt)
