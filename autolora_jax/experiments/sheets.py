"""The pictures themselves, side by side as in the paper's figures: the same noise along a row or column.

A sheet is a JPEG whose comment says what it shows; the report takes it as the picture's caption.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from autolora_jax.batch import Prompt
from autolora_jax.batch.plan import Plan
from autolora_jax.batch.prompts import read_prompts
from autolora_jax.experiments.experiment import Cell, Experiment, Sheet
from autolora_jax.experiments.tiles import Tiles
from autolora_jax.grid import comparison_grid

QUALITY = 90
NAMES = "sheet-*.jpg"
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
    return [
        Layout(
            f"sheet-{number:02}-prompt-{p:03}-seed-{seed}.jpg",
            [
                (_value(experiment, at), [places.get((method, at), {}).get((p, seed)) for method in methods])
                for at in values
            ],
            methods,
            f"{texts[p]}, seed {seed}: all from the same noise",
        )
        for p, seed in subjects
    ]


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
