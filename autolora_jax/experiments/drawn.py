"""What of an experiment is drawn: the pictures of its cells, by the manifest of its job."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.batch.manifest import OK, read_manifest
from autolora_jax.batch.plan import Plan
from autolora_jax.evaluation.pictures import Picture
from autolora_jax.experiments.sheets import picture_keys

Shot = tuple[int, int]  # number of the prompt, seed


class DrawnPictures:
    """Pictures with what the manifest tells of them, read one by one as often as wanted."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        told = ({name: value for name, value in row.items() if value is not None} for row in rows)
        self._rows = {row["key"]: row for row in told}

    @property
    def keys(self) -> list[str]:
        """In their order."""
        return [*self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Picture]:
        """Raises OSError for a file that is gone."""
        return (self.one(row["key"]) for row in self._rows.values())

    def one(self, key: str) -> Picture:
        """The picture of a key. Raises OSError for a file that is gone."""
        row = self._rows[key]
        return Picture(key, (self.folder / row["file"]).read_bytes(), row)


class Drawn(NamedTuple):
    """cells: (prompt, seed) -> key, of each cell's pictures, drawn or not. pictures: those that are there, each once.

    missing: key -> why there is none.
    """

    cells: Sequence[Mapping[Shot, str]]
    pictures: DrawnPictures
    missing: Mapping[str, str]


def find_drawn(plan: Plan, folder: Path) -> Drawn:
    """What a folder has of a plan. Raises StorageError for a broken manifest."""
    rows = {row["key"]: row for row in read_manifest(folder)}
    cells = picture_keys(plan)
    wanted = dict.fromkeys(key for cell in cells for key in cell.values())
    there = [rows[key] for key in wanted if key in rows and rows[key]["status"] == OK]
    missing = {key: _why(rows.get(key)) for key in wanted.keys() - {row["key"] for row in there}}
    return Drawn(cells, DrawnPictures(folder, there), missing)


def _why(row: Mapping[str, Any] | None) -> str:
    return "not drawn yet" if row is None else f"{row['status'].replace('_', ' ')}: {row['reason']}"
