"""The folder that pictures go to. Nothing in it is overwritten unasked."""

import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_jax.pictures import save_png


def slug(text: str) -> str:
    """A text as part of a file name: its letters and digits, of any script, at most 40 characters and 100 bytes."""
    words = "-".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).lower()))
    return words[:40].encode()[:100].decode(errors="ignore").strip("-_")


class PictureFolder:
    """Numbers pictures on from those that are there or, with `overwrite`, from 0 over them."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        """Raises OSError when nothing can be written there: before hours of drawing, not after."""
        self.path, self.overwrite = path, overwrite
        self.saved: list[Path] = []
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"x")
        self.first = 0 if overwrite else self._free()

    def _free(self) -> int:
        """The number after the highest in use."""
        names = (re.match(r"\d{4,}(?=-)", file.name) for file in self.path.iterdir())
        return max((int(name[0]) + 1 for name in names if name), default=0)

    def save(self, index: int, name: str, image: Image.Image, settings: Mapping[str, Any]) -> Path:
        """Writes picture `index` of this run as NUMBER-name.png. Raises OSError."""
        while True:
            path = self.path / f"{self.first + index:04}-{name}.png"
            try:
                save_png(path, image, settings, self.overwrite)
            except FileExistsError:  # another run draws into the same folder
                self.first = max(self.first + 1, self._free() - index)
            else:
                self.saved.append(path)
                return path

    def write_json(self, stem: str, content: Mapping[str, Any]) -> Path:
        """Writes a JSON file beside the pictures."""
        path = self.unused(stem, ".json")
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def unused(self, stem: str, suffix: str) -> Path:
        """A path beside the pictures: "grid.png"; "grid-0016.png" where they begin with 0016 or grid.png exists."""
        numbers = (f"-{self.first:04}{more}" for more in ("", *(f"-{i}" for i in range(2, 10_000))))
        names = itertools.chain([""] if self.first == 0 else [], numbers)
        paths = (self.path / f"{stem}{name}{suffix}" for name in names)
        return next(path for path in paths if self.overwrite or not path.exists())
