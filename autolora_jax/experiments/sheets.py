"""The pictures themselves, side by side as in the paper's figures: the same noise along a row or column.

A sheet is a JPEG whose comment says what it shows; the report takes it as the picture's caption. Where there is no
picture, a tile says so.
"""

import io
import math
from collections.abc import Mapping, Sequence, Set
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from autolora_jax.batch import Prompt, read_manifest
from autolora_jax.batch.formats import FORMATS
from autolora_jax.batch.manifest import FAILED, NOT_FINITE, OK
from autolora_jax.batch.plan import Plan
from autolora_jax.batch.prompts import read_prompts
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.store import Place, read_pictures
from autolora_jax.experiments.experiment import Cell, Experiment, Sheet
from autolora_jax.grid import PAPER, comparison_grid

QUALITY = 90
NAMES = "sheet-*.jpg"
SIDE = 512  # pixels: pictures are shown no larger
PIXELS = 2**25  # of all tiles together: 96 MiB
NOTHING = (256, 256)  # pixels of a tile where no picture says a size
FIELD, CROSS, INK = (238, 238, 240), (205, 205, 210), (120, 120, 128)
_MISSING = {FAILED: "failed", NOT_FINITE: "not finite"}
Keys = Mapping[tuple[int, int], str]  # of a cell's pictures: (number of the prompt, seed) -> key


class Layout(NamedTuple):
    """A sheet as it will be: columns (label, keys from top to bottom), labels of the rows, caption."""

    name: str
    columns: list[tuple[str, list[str | None]]]
    rows: list[str]
    caption: str


def picture_keys(plan: Plan) -> list[Keys]:
    """The keys of every cell's pictures: the i-th recipe of an experiment's plan is its i-th cell."""
    keys: list[dict[tuple[int, int], str]] = [{} for _ in plan.recipes]
    items = iter(plan.keys)
    for prompt, seeds in enumerate(plan.seeds):
        for cell in keys:
            cell |= {(prompt, seed): next(items).decode() for seed in seeds}
    return [*keys]


def write_sheets(
    experiment: Experiment, pictures: str | PathLike[str], keys: Sequence[Keys], folder: Path
) -> list[Path]:
    """Writes sheet-*.jpg, as the experiment's sheets say, into a folder, and returns them in order; older ones go.

    pictures: where its job is drawn, finished or not: a picture that is missing is an empty tile that says why.
    keys: of each cell's pictures, see `picture_keys`. Memory: some 400 MiB for any number of pictures of any size.
    Raises StorageError or OSError; ValueError for a place of latents.
    """
    layouts = [made for n, sheet in enumerate(experiment.sheets) for made in _layouts(experiment, sheet, keys, n)]
    wanted = {key for layout in layouts for _, column in layout.columns for key in column if key}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if layouts:
        tiles = Tiles(pictures, wanted)
        for layout in layouts:
            columns = [(label, [tiles[key] for key in column]) for label, column in layout.columns]
            grid = comparison_grid(columns, layout.rows if any(layout.rows) else (), layout.caption)
            paths.append(folder / layout.name)
            grid.save(paths[-1], "JPEG", quality=QUALITY, comment=layout.caption.encode())
    for old in {*folder.glob(NAMES)} - {*paths}:
        old.unlink()
    return paths


def _layouts(experiment: Experiment, sheet: Sheet, keys: Sequence[Keys], number: int) -> list[Layout]:
    texts = _prompts(experiment)
    cells = [
        (cell, own)
        for cell, own in zip(experiment.cells, keys, strict=True)
        if cell.method in (sheet.methods or experiment.methods)
    ]
    subjects = _subjects(cells[0][1], sheet) if cells else []
    several = len({prompt for prompt, _ in subjects}) > 1
    if sheet.by == "cell" and subjects:
        rows = [f"{texts[p]}, seed {seed}" if several else f"seed {seed}" for p, seed in subjects]
        columns = [(_label(experiment, cell), [own.get(at) for at in subjects]) for cell, own in cells]
        caption = "Each row from the same noise" + ("" if several else f": {texts[subjects[0][0]]}")
        return [Layout(f"sheet-{number:02}.jpg", columns, rows, caption)]
    methods = list(dict.fromkeys(cell.method for cell, _ in cells))
    values = sorted({cell.at for cell, _ in cells}, key=lambda at: (at is not None, at))
    places = {(cell.method, cell.at): own for cell, own in cells}
    layouts = []
    for p, seed in subjects:
        shown = {at: [places.get((method, at), {}).get((p, seed)) for method in methods] for at in values}
        columns = [(_value(experiment, at), column) for at, column in shown.items()]
        name, caption = f"sheet-{number:02}-prompt-{p:03}-seed-{seed}.jpg", f"{texts[p]}, seed {seed}"
        layouts.append(Layout(name, columns, methods, f"{caption}: all from the same noise"))
    return layouts


def _subjects(keys: Keys, sheet: Sheet) -> list[tuple[int, int]]:
    """(prompt, seed) of what is shown: the first seeds of the first prompts."""
    seeds: dict[int, list[int]] = {}
    for prompt, seed in keys:
        seeds.setdefault(prompt, []).append(seed)
    return [(prompt, seed) for prompt in [*seeds][: sheet.prompts] for seed in seeds[prompt][: sheet.seeds]]


def _prompts(experiment: Experiment) -> list[str]:
    job = experiment.job
    prompts = [*job.prompts, *(read_prompts(job.prompt_file) if job.prompt_file else ())]
    return [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]


def _label(experiment: Experiment, cell: Cell) -> str:
    return cell.method if cell.at is None else f"{cell.method}, {_value(experiment, cell.at)}"


def _value(experiment: Experiment, at: float | None) -> str:
    return "" if at is None else f"{experiment.axis} {at:g}"


class Tiles:
    """Tiles of one size, by the pictures' keys. size: (width, height), pixels."""

    def __init__(self, pictures: str | PathLike[str], keys: Set[str]) -> None:
        """pictures: where the batch is, finished or not. keys: of the pictures that are wanted.

        A picture of another shape than the largest one gets margins. Raises StorageError; ValueError for latents.
        """
        rows = {row["key"]: row for row in read_manifest(pictures) if row["key"] in keys}
        drawn = {key: row for key, row in rows.items() if row["status"] == OK}
        if latents := [row["file"] for row in drawn.values() if _name(row).endswith(FORMATS["latent"].suffix)]:
            raise ValueError(
                f"{latents[0]} holds latents, which can't be shown; draw the batch as png, webp or jpeg to see sheets"
            )
        self.size = _size(drawn, len(keys))
        self._why = {key: _MISSING[row["status"]] for key, row in rows.items() if key not in drawn}
        self._pictures: dict[str, Image.Image] = {}
        self._others: dict[str, Image.Image] = {}  # by what they say
        places = {key: Place(row["file"], row["member"]) for key, row in drawn.items()}
        for key, found in read_pictures(open_storage(pictures), places):
            small = None if isinstance(found, str) else _small(found, self.size)
            if small is None:
                self._why[key] = "not readable"
            else:
                self._pictures[key] = small

    def __getitem__(self, key: str | None) -> Image.Image:
        """The tile of a picture; None: of one that the experiment does not have, which is plain paper."""
        if key in self._pictures:
            return self._pictures[key]
        why = "" if key is None else self._why.get(key, "not drawn yet")
        if why not in self._others:
            self._others[why] = _empty(self.size, why) if why else Image.new("RGB", self.size, PAPER)
        return self._others[why]


def _name(row: Mapping[str, Any]) -> str:
    return row["member"] or row["file"]


def _size(rows: Mapping[str, Mapping[str, Any]], count: int) -> tuple[int, int]:
    if not rows:
        return NOTHING
    width, height = (max(row[name] for row in rows.values()) for name in ("width", "height"))
    scale = min(1.0, SIDE / max(width, height), math.sqrt(PIXELS / (count * width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _small(content: bytes, size: tuple[int, int]) -> Image.Image | None:
    """A picture that fits in this size, with margins; None for what is no picture."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", size)
            whole = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow says of broken files
        return None
    return whole if whole.size == size else ImageOps.pad(whole, size, Image.Resampling.LANCZOS, PAPER)


def _empty(size: tuple[int, int], why: str) -> Image.Image:
    """Crossed out, with a word."""
    width, height = size
    tile = Image.new("RGB", size, FIELD)
    draw = ImageDraw.Draw(tile)
    for ends in (((0, 0), (width - 1, height - 1)), ((0, height - 1), (width - 1, 0))):
        draw.line(ends, CROSS, max(1, width // 128))
    font = ImageFont.load_default(max(8, min(width // 9, 40)))
    left, top, right, bottom = draw.textbbox((width / 2, height / 2), why, font, anchor="mm")
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), FIELD)
    draw.text((width / 2, height / 2), why, INK, font, anchor="mm")
    return tile
