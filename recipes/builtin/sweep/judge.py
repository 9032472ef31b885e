"""Draws the cells' pictures and keeps what the classifier says of them; a cell that is kept is never drawn again."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo.classifier import Classifier, Judgement
from autolora_jax.demo.world import LABELS
from recipes.builtin.drawing import draw_pairs
from recipes.builtin.sweep.cells import Cell, Shot


class Store:
    """A folder of judgements, one file a cell. Other files or settings than before have a folder of their own."""

    def __init__(self, work: Path, files: Sequence[Path], settings: Mapping[str, Any]) -> None:
        """files: all that pictures and judgements depend on; a folder stands for the .safetensors and .json in it."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path in files:
            inside = sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".json"))
            for part in inside if path.is_dir() else [path]:
                digest.update(part.read_bytes())
        self.folder = work / digest.hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def __contains__(self, cell: Cell) -> bool:
        return self._path(cell).exists()

    def __getitem__(self, cell: Cell) -> Judgement:
        with np.load(self._path(cell)) as kept:
            return Judgement({name: kept[name] for name in LABELS}, kept["features"])

    def __setitem__(self, cell: Cell, judgement: Judgement) -> None:
        unfinished = self._path(cell).with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, features=judgement.features, **judgement.probabilities)
        os.replace(unfinished, self._path(cell))  # a killed run leaves no half cell

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.npz"


def judge_cells(
    pipe: AutoLoRAPipeline,
    classifier: Classifier,
    cells: Sequence[Cell],
    shots: Mapping[str, Sequence[Shot]],
    store: Store,
    steps: int,
    batch: int,
) -> int:
    """Draws and judges the cells that the store lacks, each on the same seeds; returns how many there were.

    A cell's LoRA scale is the same for all of its pictures, so that one merged kernel serves them; scales and γ are
    data: the four methods are four programs.
    """
    missing = [cell for cell in dict.fromkeys(cells) if cell not in store]
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        work = sum(cell.evaluations * len(shots[cell.block]) for cell in missing)
        task = progress.add_task("", total=work or 1, completed=0 if work else 1)
        for cell in missing:
            progress.update(task, description=cell.name)
            wanted = shots[cell.block]

            def drawn(pictures: int, each: int = cell.evaluations) -> None:
                progress.advance(task, pictures * each)

            prompts, seeds = [shot.prompt for shot in wanted], [shot.seed for shot in wanted]
            pixels = draw_pairs(pipe, prompts, seeds, cell.rule, steps, batch, drawn, lora_scale=cell.scale)
            store[cell] = classifier(pixels)
    return len(missing)
