"""Pictures for a page that holds all it shows: small enough together, whatever their number."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

TOTAL = 16 * 2**20  # bytes of all pictures of a page
LARGEST = 2 * 2**20  # bytes of one
LONGEST, SHORTEST = 2400, 320  # pixels of the longer side: at first, and where shrinking ends
QUALITY = 86


def inlined(paths: Sequence[Path]) -> list[dict[str, str | int]]:
    """Each as src (a data URI), width and height in pixels, caption: its comment, else its name. Raises OSError."""
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
