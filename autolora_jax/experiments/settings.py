"""How an experiment's methods were drawn: what they share, and where they differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autolora_jax.batch.gallery.table import as_words
from autolora_jax.experiments.layout import Entry, Table, span
from autolora_jax.experiments.results import CellResult, Results

NOT_SET = "–"
SEVERAL = 4  # values of a method's cells that are all told; of more, the first and the last


def shared_settings(results: Results) -> dict[str, str]:
    """What all pictures share, in words; what is not set is left out."""
    columns = _columns(results.cells)
    return {name: values[0] for name, values in columns.items() if len({*values}) == 1 and values[0] != NOT_SET}


def settings_table(results: Results) -> Table:
    """A row a method, a column for each setting in which pictures differ. Strong: what the first method does not have.

    Along the axis a method's values stand from its first cell to its last.
    """
    differing = [name for name, values in _columns(results.cells).items() if len({*values}) > 1]
    curves = {method: results.curve(method) for method in results.methods}
    told = {
        method: [_along(_columns(cells).get(name, [NOT_SET])) for name in differing] for method, cells in curves.items()
    }
    first = told[results.methods[0]]
    rows = tuple(
        (
            method,
            (
                *(Entry(text, strong=text != usual) for text, usual in zip(words, first, strict=True)),
                Entry(span(cell.evaluations for cell in curves[method])),
            ),
        )
        for method, words in told.items()
    )
    columns = (*(name.replace("_", " ") for name in differing), "network evaluations a picture")
    return Table("Where the methods differ", "Marked: what the first method does not have.", "", (), columns, rows)


def _columns(cells: Sequence[CellResult]) -> dict[str, list[str]]:
    """Setting -> its value in each cell, in words."""
    flat = [dict(_flat(cell.settings)) for cell in cells]
    names = dict.fromkeys(name for each in flat for name in each)
    return {name: [each.get(name, NOT_SET) for each in flat] for name in names}


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, NOT_SET if value in (None, "", [], ()) else as_words(value)


def _along(values: Sequence[str]) -> str:
    several = list(dict.fromkeys(values))
    return ", ".join(several) if len(several) <= SEVERAL else f"{several[0]} … {several[-1]}"
