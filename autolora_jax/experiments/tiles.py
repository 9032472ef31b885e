"""A batch's pictures, small enough to stand beside many others; where there is none, a tile says so."""

import io
import math
from collections.abc import Mapping, Set
from os import PathLike
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from autolora_jax.batch import read_manifest
from autolora_jax.batch.contents import read_pictures
from autolora_jax.batch.formats import FORMATS
from autolora_jax.batch.manifest import FAILED, NOT_FINITE, OK
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.store import Place
from autolora_jax.grid import PAPER

SIDE = 512  # pixels: pictures are shown no larger
PIXELS = 2**25  # of all tiles together: 96 MiB
NOTHING = (256, 256)  # pixels of a tile where no picture says a size
FIELD, CROSS, INK = (238, 238, 240), (205, 205, 210), (120, 120, 128)
_MISSING = {FAILED: "failed", NOT_FINITE: "not finite"}


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
