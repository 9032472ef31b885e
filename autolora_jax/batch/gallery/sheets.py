"""Contact sheets: one for every prompt, a row of it for each settings, a column for each seed."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from autolora_jax.batch.gallery.table import Table
from autolora_jax.batch.gallery.thumbnails import THREADS, OnDone, Thumbnails
from autolora_jax.batch.storage import Storage
from autolora_jax.grid import comparison_grid

FOLDER = "sheets"
SEEDS = 16  # columns; more seeds make more sheets
EMPTY = (224, 224, 224)  # where there is no picture


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
            names.append(f"{FOLDER}/{number:04}-{part:02}.jpg")
            storage.write(names[-1], file.getvalue())
        if on_done:
            on_done(number + 1, len(prompts))
    there = (f"{FOLDER}/{name}" for name in storage.names(FOLDER))
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
