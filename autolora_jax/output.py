"""What a call gives back: pictures that say how they were made, to save, to lay out and to look at in a notebook."""

import base64
import html
import io
import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_jax.grid import comparison_grid
from autolora_jax.pictures import Picture, save_png
from autolora_jax.settings.rules import numbers_of

SHOWN = 64  # pictures of a call that a notebook shows
LEAST_WIDTH = 192  # of their captions, pixels


@dataclass(frozen=True, repr=False)
class Output:
    """images: ordered prompt-major, (p0,s0), (p0,s1), …, (p1,s0), …; settings[i]: all that image i was made from."""

    images: Any  # list of pictures.Picture, which are PIL images | uint8 [n h w 3] | float32 latents [n h/8 w/8 c]
    settings: list[dict[str, Any]]

    def save(self, folder: str | Path, overwrite: bool = False) -> list[Path]:
        """Writes every picture as NUMBER-seed-prompt.png with its settings, numbered on from those that are there.

        overwrite: numbered from 0, over them. Raises OSError where nothing can be written.
        """
        into = PictureFolder(Path(folder), overwrite)
        return [
            into.save(i, "-".join(filter(None, (f"seed{told['seed']}", slug(name_of(told))))), image, told)
            for i, (image, told) in enumerate(zip(self._pictures(), self.settings, strict=True))
        ]

    def grid(self) -> Image.Image:
        """All pictures in one: a column a prompt and guidance, a row a seed. Raises ValueError where seeds differ."""
        columns: dict[tuple[str, str], list[Image.Image]] = {}
        seeds: dict[tuple[str, str], list[str]] = {}
        for image, told in zip(self._pictures(), self.settings, strict=True):
            column = name_of(told), str(told["guidance"])
            columns.setdefault(column, []).append(image)
            seeds.setdefault(column, []).append(f"seed {told['seed']}")
        rows, *others = seeds.values()
        if any(other != rows for other in others):
            raise ValueError("a grid has the same seeds in all columns: draw them in one call without paired=True")
        same = len({guidance for _, guidance in columns}) == 1
        heads = [
            (prompt if same else f"{prompt}\n{guidance}", images) for (prompt, guidance), images in columns.items()
        ]
        return comparison_grid(heads, rows)

    def _pictures(self) -> list[Image.Image]:
        if isinstance(self.images, list):
            return self.images
        if self.images.dtype != "uint8":
            raise ValueError("these are latents, not pictures: pipe.decode(out.images) makes pictures of them")
        return [Picture.of(pixels, told) for pixels, told in zip(self.images, self.settings, strict=True)]

    def __repr__(self) -> str:
        """What it holds, not the numbers."""
        if isinstance(self.images, list):
            return f"Output of {len(self.images)} pictures: .images, .settings, .save(folder), .grid()"
        what = "pictures" if self.images.dtype == "uint8" else "latents, of which pipe.decode makes pictures"
        return f"Output of {len(self.images)} {what}: .images {self.images.dtype} {list(self.images.shape)}, .settings"

    def _repr_html_(self) -> str | None:
        """For notebooks. None of latents: they are told by their repr."""
        try:
            pictures = self._pictures()
        except ValueError:
            return None
        figures = "".join(map(_figure, pictures[:SHOWN], self.settings))
        more = f"<p>and {len(pictures) - SHOWN} more</p>" if len(pictures) > SHOWN else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:start">{figures}</div>{more}'


def _figure(image: Image.Image, told: Mapping[str, Any]) -> str:
    """A picture over its caption, which is no wider, or hardly: pictures stand side by side whatever was asked."""
    name, rule = name_of(told), told["guidance"]
    width = f"width:{max(image.width, LEAST_WIDTH)}px;max-width:100%"
    said = f"{name}\nseed {told['seed']}, {type(rule).__name__} {numbers_of(rule)}"
    return (
        f'<figure style="margin:0;{width}">'
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{_base64(image)}" style="max-width:100%">'
        f'<figcaption style="font-size:85%;overflow-wrap:anywhere">{html.escape(said).replace(chr(10), "<br>")}'
        "</figcaption></figure>"
    )


def _base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def name_of(told: Mapping[str, Any]) -> str:
    """What a picture is called for people: its prompt, or what stands for one."""
    return f"embeds {told.get('prompt_embeds')}" if told["prompt"] is None else told["prompt"]


def slug(text: str) -> str:
    """A text as part of a file name: its letters and digits, of any script, at most 40 characters and 100 bytes."""
    words = "-".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).lower()))
    return words[:40].encode()[:100].decode(errors="ignore").strip("-_")


class PictureFolder:
    """Where pictures go. Numbers them on from those that are there or, with `overwrite`, from 0 over them."""

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
