"""index.html, and beside it the pictures' settings as scripts: a page from a file:// URL may load those, but no JSON.

Nothing of a job is written into the page itself. Its script puts every text where only text can be, and the page's
content security policy runs no other script than the page's own and the data's.
"""

import json
import re
from importlib import resources
from typing import Any

from autolora_jax.batch.gallery.table import SUBJECT, Table
from autolora_jax.batch.gallery.thumbnails import FOLDER, Thumbnails
from autolora_jax.batch.storage import Storage
from autolora_jax.pages import sealed

PAGE, HEAD = "index.html", "gallery-data.js"
CHUNK = 10_000  # pictures a file of data
_EXACT = 2**53  # whole numbers up to here are exact in JavaScript


def write_page(storage: Storage, table: Table, title: str, thumbnails: Thumbnails | None = None) -> str:
    """Writes the page of a job's pictures and returns its name. Raises StorageError.

    title: of the page. thumbnails: those that it shows; without any it shows the pictures themselves, smaller.
    """
    pictures = len(table.keys)
    names = [f"gallery-data-{start // CHUNK:03}.js" for start in range(0, pictures, CHUNK)]
    for i, name in enumerate(names):
        storage.write(f"{FOLDER}/{name}", _call("add", _chunk(table, i * CHUNK, min((i + 1) * CHUNK, pictures))))
    head = {
        "title": title,
        "pictures": pictures,
        "chunks": names,
        "thumbnails": thumbnails and thumbnails.pattern,
        "subject": SUBJECT,
        "compared": table.compared,
        "values": {name: [_exact(value) for value in column.values] for name, column in table.columns.items()},
    }
    storage.write(f"{FOLDER}/{HEAD}", _call("begin", head))
    there = storage.names(FOLDER)
    ours = (name for name in there if re.fullmatch(r"gallery-data-\d{3,}\.js", name))
    storage.remove(f"{FOLDER}/{name}" for name in ours if name not in names)
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


def _call(function: str, value: Any) -> bytes:
    return f"gallery.{function}({json.dumps(value, separators=(',', ':'))});\n".encode()


def _exact(value: Any) -> Any:
    return str(value) if isinstance(value, int) and value > _EXACT else value
