"""A labelled grid of pictures, to compare them in."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LARGEST = 16384  # pixels a side: what common viewers still open
SMALL = 128  # pixels: pictures up to this size are shown twice or more as large, at least
PAPER, INK = (255, 255, 255), (24, 24, 24)
_BREAK = re.compile(r" (?!-?\d)")  # where a line may end: a number stays with its name, "gamma 1.5"
_SIMPLER = str.maketrans("−–—×’‘“”", "---x''\"\"")
Picture = Image.Image | Path  # a path is opened when its turn comes: a large grid need not be in memory twice


def comparison_grid(
    columns: Sequence[tuple[str, Sequence[Picture]]], rows: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """Columns of pictures with labels above, and beside each row if `rows` has any. All pictures have one size.

    They are shrunk together if the grid would be larger than 16384 pixels a side, and enlarged by a whole factor where
    they are small. title: stands above all.
    Raises ValueError for columns of different lengths and pictures of different sizes.
    """
    counts = sorted({len(pictures) for _, pictures in columns})
    if len(counts) != 1 or counts[0] == 0 or (rows and len(rows) != counts[0]):
        raise ValueError(f"columns hold {counts} pictures and there are {len(rows)} row labels; give each as many")
    count = counts[0]
    size = _open(columns[0][1][0]).size
    enlarge = max(1, -(-2 * SMALL // max(size))) if max(size) <= SMALL else 1
    # 1.1 and 0.5: room for what stands between and beside the pictures.
    scale = min(
        float(enlarge), LARGEST / 1.1 / ((len(columns) + 0.5) * size[0]), LARGEST / 1.1 / ((count + 0.5) * size[1])
    )
    width, height = (max(1, int(s * scale)) for s in size)
    gap = max(4, width // 64)

    font = ImageFont.load_default(min(max(12, width // 18), 48))
    assert isinstance(font, ImageFont.FreeTypeFont)  # what load_default(size) gives, or it raises
    line = round(font.size * 1.25)
    heads = [_wrap(label, font, width, 4) for label, _ in columns]
    beside = max(line * 5, width // 4)
    sides = [_wrap(label, font, beside, max(1, height // line)) for label in rows]
    margin = max(gap, line // 2)
    left = margin + (int(max(font.getlength(text) for side in sides for text in side)) + margin if rows else 0)
    across, down = len(columns) * (width + gap) - gap, count * (height + gap) - gap
    above_all = _wrap(title, font, left + across - margin, 4) if title else []
    top = margin + (len(above_all) + max(map(len, heads))) * line + margin // 2

    grid = Image.new("RGB", (left + across + margin, top + down + margin), PAPER)
    draw = ImageDraw.Draw(grid)
    for i, text in enumerate(above_all):
        draw.text((margin, margin // 2 + i * line), text, INK, font)
    for c, (_, pictures) in enumerate(columns):
        x = left + c * (width + gap)
        above = top - margin // 2 - len(heads[c]) * line
        for i, text in enumerate(heads[c]):
            draw.text((x + width / 2, above + i * line), text, INK, font, anchor="ma")
        for r, picture in enumerate(pictures):
            image = _open(picture)
            if image.size != size:
                raise ValueError(f"picture {r} of {columns[c][0]!r} is {image.size}, the first is {size}")
            grid.paste(image.resize((width, height), Image.Resampling.LANCZOS), (x, top + r * (height + gap)))
    for r, side in enumerate(sides):
        y = top + r * (height + gap) + (height - len(side) * line) / 2
        for i, text in enumerate(side):
            draw.text((left - margin, y + i * line), text, INK, font, anchor="ra")
    return grid


def _open(picture: Picture) -> Image.Image:
    return Image.open(picture) if isinstance(picture, Path) else picture


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels; the last of at most `most` lines ends in … if something is left out."""
    lines = [""]
    for word in _BREAK.split(_drawable(text).replace("\n", " \n ")):
        if word == "\n":
            lines.append("")
        elif font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
        else:
            lines.append("")
            for letter in word:
                if font.getlength(lines[-1] + letter) > width and lines[-1]:
                    lines.append("")
                lines[-1] += letter
    lines = [line for line in lines if line] or [""]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + "…"]


def _drawable(text: str) -> str:
    """Text in what Pillow's own font has: ASCII. Greek letters are named, accents go, others become one '?'."""
    result = ""
    for letter in unicodedata.normalize("NFKD", text.translate(_SIMPLER)):
        name = unicodedata.name(letter, "")
        if letter == "\n" or (letter.isascii() and letter.isprintable()):
            result += letter
        elif name.startswith("GREEK SMALL LETTER "):
            result += name.rpartition(" ")[2].lower()
        elif not unicodedata.combining(letter) and not result.endswith("?"):
            result += "?"
    return result
