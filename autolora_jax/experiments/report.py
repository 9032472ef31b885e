"""report.html: what was compared, what came out and how sure that is, in one file that needs nothing beside it.

Results become plain values, which stand in the page as JSON that nothing can break out of; its script puts every text
where only text can be, and the page's content security policy lets it load nothing and run no other script.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_jax import files as whole_files
from autolora_jax.experiments.findings import compared, findings, outcome
from autolora_jax.experiments.frontier import frontier_tables, frontiers
from autolora_jax.experiments.listing import listing
from autolora_jax.experiments.results import Results
from autolora_jax.experiments.tables import settings_table, shared_settings
from autolora_jax.pages import inert, sealed

PAGE = "report.html"
DATA = "REPORT-DATA"  # in the page, where the values stand
SHEETS = ("sheets/sheet-*.jpg", "sheet-*.jpg")
BESIDE = ("results.json", "table.*", "frontier.*", "plot*.png")
TOTAL = 16 * 2**20  # bytes of all pictures of a page
LARGEST = 2 * 2**20  # bytes of one
LONGEST, SHORTEST = 2400, 320  # pixels of the longer side: at first, and where shrinking ends
QUALITY = 86


def write_report(
    results: Results, folder: Path, *, sheets: Sequence[Path] | None = None, files: Sequence[Path] | None = None
) -> Path:
    """Writes report.html into a folder and returns its path. Raises OSError.

    sheets: pictures that it shows, embedded and small enough that the page stays below some 25 MB; None: those that
    `write_sheets` wrote into the folder or its subfolder `sheets`. files: what it links to, such as tables and plots,
    which have to stay where they are beside it; None: those that are in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = _found(folder, SHEETS) if sheets is None else sheets
    beside = _found(folder, BESIDE) if files is None else files
    links = [Path(os.path.relpath(path, folder)).as_posix() for path in beside]
    page = sealed(resources.files("autolora_jax.experiments").joinpath(PAGE).read_text(encoding="utf-8"))
    content = page.replace(DATA, inert({**values(results), "sheets": inlined(shown), "files": links}), 1)
    path = folder / PAGE
    whole_files.write(path, content)
    return path


def values(results: Results) -> dict[str, Any]:
    """All that the page shows of the results, as JSON values."""
    found = frontiers(results)
    drawings, undrawn = _drawings(results)
    return {
        **{name: value for name, value in results.plain().items() if name != "cells"},
        "lead": [sentence for sentence in (compared(results), outcome(results)) if sentence],
        "findings": [finding._asdict() for finding in findings(results)],
        "methods": results.methods,
        "numbers": listing(results) if any(cell.figures or cell.published for cell in results.cells) else None,
        "drawings": drawings,
        "undrawn": undrawn,
        "frontierTables": [table._asdict() for table in frontier_tables(results, found)] if found else [],
        "settings": settings_table(results)._asdict() if results.methods != ("",) else None,
        "shared": shared_settings(results),
    }


def _drawings(results: Results) -> tuple[list[dict[str, Any]], str]:
    """The page's figures, and why there are none."""
    try:
        from autolora_jax.experiments.plotting import page_figures
    except ModuleNotFoundError as e:
        if e.name != "matplotlib":
            raise
        return [], f"{e}. Then the same command with --report-only draws them."
    return page_figures(results), ""


def _found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def inlined(paths: Sequence[Path]) -> list[dict[str, str | int]]:
    """Pictures for a page that holds all it shows, small enough together, whatever their number.

    Each as src (a data URI), width and height in pixels, caption: its comment, else its name. Raises OSError.
    """
    most = min(LARGEST, TOTAL // max(1, len(paths)))
    return [_inlined(path, most) for path in paths]


def _inlined(path: Path, most: int) -> dict[str, str | int]:
    with Image.open(path) as image:
        comment, small = image.info.get("comment", b""), max(image.size) <= LONGEST and path.stat().st_size <= most
        if small and image.format == "JPEG":
            content, size = path.read_bytes(), image.size
        else:
            image.draft("RGB", (LONGEST, LONGEST))  # a JPEG is decoded no larger than is needed
            content, size = _shrunk(image.convert("RGB"), most)
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(content).decode(),
        "width": size[0],
        "height": size[1],
        "caption": comment.decode("utf-8", "replace") or path.stem,
    }


def _shrunk(image: Image.Image, most: int) -> tuple[bytes, tuple[int, int]]:
    """(content, size) of a picture that is as large as so many bytes allow, within LONGEST and SHORTEST."""
    side = min(LONGEST, max(image.size))
    while True:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY, optimize=True)
        if file.tell() <= most or side <= SHORTEST:
            return file.getvalue(), image.size
        side = max(SHORTEST, int(0.95 * side * math.sqrt(most / file.tell())))
