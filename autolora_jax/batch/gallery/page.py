"""index.html, and beside it the pictures' settings as scripts: a page from a file:// URL may load those, but no JSON.

Nothing of a job is written into the page itself. Its script puts every text where only text can be, and the page's
content security policy runs no other script than the page's own and the data's.
"""

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from autolora_jax.batch.gallery.table import SUBJECT, Table, title
from autolora_jax.batch.gallery.thumbnails import FOLDER, Thumbnails
from autolora_jax.batch.manifest import COLUMNS, sources_in
from autolora_jax.batch.storage import Storage
from autolora_jax.pages import sealed
from autolora_jax.settings.fields import settings_of
from autolora_jax.settings.model import Checkpoint, ModelConfig
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.rules import NEUTRAL, numbers, owners

PAGE, HEAD = "index.html", "gallery-data.js"
CHUNK = 10_000  # pictures a file of data
_EXACT = 2**53  # whole numbers up to here are exact in JavaScript


def write_page(storage: Storage, table: Table, name: str, thumbnails: Thumbnails | None = None) -> str:
    """Writes the page of a job's pictures and returns its name. Raises StorageError.

    name: of the page. thumbnails: those that it shows; without any it shows the pictures themselves, smaller.
    """
    pictures = len(table.keys)
    chunks = [f"gallery-data-{start // CHUNK:03}.js" for start in range(0, pictures, CHUNK)]
    for i, chunk in enumerate(chunks):
        storage.write(f"{FOLDER}/{chunk}", _call("add", _chunk(table, i * CHUNK, min((i + 1) * CHUNK, pictures))))
    head = {
        "title": name,
        "pictures": pictures,
        "chunks": chunks,
        "thumbnails": thumbnails and thumbnails.pattern,
        "subject": SUBJECT,
        "compared": table.compared,
        "titles": {column: title(column) for column in table.columns},
        "flags": _flags(),
        "sources": _sources(storage, table),
        "values": {column: [_exact(value) for value in values] for column, (values, _) in table.columns.items()},
    }
    storage.write(f"{FOLDER}/{HEAD}", _call("begin", head))
    there = storage.names(FOLDER)
    ours = (name for name in there if re.fullmatch(r"gallery-data-\d{3,}\.js", name))
    storage.remove(f"{FOLDER}/{name}" for name in ours if name not in chunks)
    storage.write(PAGE, page().encode())
    return PAGE


def page() -> str:
    """The page, which is the same for all jobs."""
    return sealed(resources.files("autolora_jax.batch.gallery").joinpath(PAGE).read_text(encoding="utf-8"))


def _chunk(table: Table, start: int, stop: int) -> dict[str, Any]:
    """Pictures start to stop: their keys in one text, and the codes of columns that have more than one value."""
    several = {name: column.codes for name, column in table.columns.items() if len(column.values) > 1}
    return {
        "start": start,
        "keys": " ".join(table.keys[start:stop]),
        "codes": {name: codes[start:stop].tolist() for name, codes in several.items()},
    }


def _flags() -> list[tuple[str, str, Any]]:
    """(flag of `autolora generate`, the column that says its value, the value that need not be told)."""
    settings = {
        field.said.column or field.name: field for kind in (ModelConfig, DrawingConfig) for field in settings_of(kind)
    }
    told = {column: field for column, field in settings.items() if column in COLUMNS and column != "lora_scale"}
    # A default that a model or a rule decides is told.
    return [
        *((field.option, column, field.default if field.said.column else None) for column, field in told.items()),
        *(
            (field.option, column, None if owners(column) and column not in NEUTRAL else field.default)
            for column, field in numbers().items()
        ),
    ]


def _sources(storage: Storage, table: Table) -> dict[str, list[str]]:
    """By its hash, how a command names each file of the table: where it was found, and flags that open a model."""
    shown = {name for column in table.columns if column.endswith("_sha256") for name in _flat(table, column)}
    options = {field.name: field.option for field in settings_of(Checkpoint)}
    return {
        sha256: [found.pop("source"), *(_option(options[name], value) for name, value in found.items())]
        for sha256, found in sources_in(storage).items()
        if sha256 in shown
    }


def _option(option: str, value: Any) -> str:
    return option.split("/")[not value] if isinstance(value, bool) else f"{option}={value}"


def _flat(table: Table, column: str) -> Iterator[str]:
    for value in table.columns[column].values:
        yield from value if isinstance(value, list) else [value]


def _call(function: str, value: Any) -> bytes:
    return f"gallery.{function}({json.dumps(value, separators=(',', ':'))});\n".encode()


def _exact(value: Any) -> Any:
    return str(value) if isinstance(value, int) and value > _EXACT else value
