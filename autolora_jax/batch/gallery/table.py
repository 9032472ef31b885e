"""The manifest by columns: each value once, and for every picture its number. Page and sheets are made of it."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autolora_jax.batch.manifest import ALONE, COLUMNS

SUBJECT = ("prompt", "negative_prompt", "seed")  # what pictures that are compared have in common
ABOUT = ("status", "reason", "file", "member", "id", "autolora_jax", "jax")  # neither subject nor setting
_LEFT_OUT = ("key", "sha256", "position", *ALONE)
# Hashes count as settings only where names do not tell the files apart.
_NAMED_BY = {
    "model_sha256": "model",
    "lora_sha256": "loras",
    "embedding_sha256": "embeddings",
    "image_sha256": "image",
    "mask_sha256": "mask",
}
_TITLES = {"gamma": "γ", "omega": "ω", "lora_scales": "LoRA scale"}  # of columns, where their names are not for the eye
SETTINGS = tuple(name for name in COLUMNS if name not in (*SUBJECT, *ABOUT, *_LEFT_OUT))


class Column(NamedTuple):
    """values: those that occur, in order of appearance. codes: of every picture, the number of its value."""

    values: list[Any]
    codes: array  # of "i"


class Table(NamedTuple):
    """keys: of the pictures. columns: by name. compared: the settings that tell pictures of a prompt and seed apart."""

    keys: list[str]
    columns: Mapping[str, Column]
    compared: tuple[str, ...]

    def value(self, name: str, picture: int) -> Any:
        column = self.columns[name]
        return column.values[column.codes[picture]]

    def label(self, picture: int) -> str:
        """The compared settings of a picture, as words; "" when all pictures have the same."""
        told = ((name, self.value(name, picture)) for name in self.compared)
        return ", ".join(f"{title(name)} {as_words(value)}" for name, value in told if value not in (None, []))


def title(name: str) -> str:
    """A column's name for the eye."""
    return _TITLES.get(name) or name.replace("_", " ")


def as_words(value: Any) -> str:
    """A setting's value for the eye."""
    if isinstance(value, list):
        return " + ".join(map(as_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def tabulate(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of a manifest's rows, in their order."""
    columns = {name: _column(_values(rows, name)) for name in (*SUBJECT, *SETTINGS, *ABOUT)}

    def compared(name: str) -> bool:
        if name in _NAMED_BY:
            named = columns[_NAMED_BY[name]]
            return len(set(zip(named.codes, columns[name].codes, strict=True))) > len(named.values)
        return len(columns[name].values) > 1

    return Table([row["key"] for row in rows], columns, tuple(filter(compared, SETTINGS)))


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[Any]:
    """A column. A picture's key stands as * in where it is found, which makes that the same for many."""
    if name not in ("file", "member"):
        return (row.get(name) for row in rows)
    return (found and found.replace(row["key"], "*") for row in rows for found in [row.get(name)])


def _column(values: Iterable[Any]) -> Column:
    numbers: dict[Any, int] = {}
    codes = array("i", (numbers.setdefault(tuple(v) if isinstance(v, list) else v, len(numbers)) for v in values))
    return Column([list(v) if isinstance(v, tuple) else v for v in numbers], codes)
