"""A picture file -> its size without decoding it, or its pixels as a model takes them: upright 8-bit RGB.

Pillow does the decoding; here is what it leaves to its caller: rotation by EXIF, transparency on white, 16 bits to 8,
and telling early and cheaply whether a file is whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from autolora_jax import foreign

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Pictures that are not read: they deserve a message, where a Thumbs.db is rightly ignored.
FOREIGN_EXTENSIONS = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".tga", ".raw", ".dng")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # by content, whatever the extension says
SMALLEST = 8  # pixels a side
LARGEST = 89_478_485  # pixels in all: where Pillow starts to warn of decompression bombs
WITHOUT_RANGE = {"I": "32-bit integers", "F": "floating point", "LAB": "L*a*b*"}  # Pillow modes with no one meaning
File = BinaryIO | BytesIO
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
PNG_IMAGE_DATA, PNG_END = b"IDAT", b"IEND"


class PictureError(ValueError):
    """A picture can't be used. The message is the reason and the remedy, without the file's name."""


def read_size(source: Path | BytesIO) -> tuple[int, int]:
    """(height, width) in pixels after rotation by EXIF. Decodes only files that may be cut short.

    Raises PictureError if the file is no picture, truncated, corrupt, too small, too large or of an ambiguous mode.
    """
    with _opened(source) as image:
        if not _ends_well(source):
            image.load()  # raises if something is missing
        width, height = image.size
        # The base class's method: PngImageFile's decodes the pixels to look for EXIF behind them (see _png_ends_well).
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        return (width, height) if orientation in ROTATED else (height, width)


def read_rgb(source: Path | BytesIO | Image.Image) -> Image.Image:
    """The first frame, decoded in full: mode RGB, rotated by EXIF, transparency composited on white.

    source: a file, its content, or what Pillow has opened already. Raises as read_size.
    """
    with _opened(source) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would clip at 255
            values = np.asarray(upright).astype(np.uint32)
            upright = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert("RGB")


@contextmanager
def _opened(source: Path | BytesIO | Image.Image) -> Iterator[Image.Image]:
    """The picture, checked; whatever goes wrong with it in the block is a PictureError."""
    try:
        if isinstance(source, Path):
            foreign.check_regular(source)
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS) as image:
            _check(image)
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"is no picture in any of the formats {', '.join(FORMATS)}; save it as PNG") from None
    except Image.DecompressionBombError as e:
        raise PictureError(f"is too large ({e}); shrink it") from None
    except OSError as e:
        if e.errno is None:  # Pillow's own
            raise PictureError(f"can't be decoded ({e}); replace it or take it out") from e
        raise PictureError(f"can't be read: {e.strerror}") from None
    except Exception as e:  # Pillow's decoders meet corrupt files with struct.error, IndexError, SyntaxError, …
        raise PictureError(f"can't be decoded ({e or type(e).__name__}); replace it or take it out") from e


def _check(image: Image.Image) -> None:
    width, height = image.size
    if min(height, width) < SMALLEST:
        raise PictureError(f"is {height} × {width} pixels; at least {SMALLEST} × {SMALLEST} are needed")
    if height * width > LARGEST:
        raise PictureError(f"is {height} × {width} pixels, more than {LARGEST / 1e6:.0f} million in all; shrink it")
    if image.mode in WITHOUT_RANGE:
        raise PictureError(f"holds {WITHOUT_RANGE[image.mode]}, whose white is unknown; save it with 8 or 16 bits")


def _png_ends_well(file: File, size: int) -> bool:
    """Whether nothing but the end follows the pixels: then the file is whole and has no EXIF still to come."""
    position, before = 8, b""
    while position + 12 <= size:
        file.seek(position)
        head = file.read(8)
        kind = head[4:]
        if kind == PNG_END:
            return before == PNG_IMAGE_DATA
        position, before = position + 12 + int.from_bytes(head[:4], "big"), kind
    return False


def _ends_with(mark: bytes) -> Callable[[File, int], bool]:
    def ends(file: File, size: int) -> bool:
        file.seek(max(0, size - len(mark)))
        return file.read() == mark

    return ends


def _riff_ends_well(file: File, size: int) -> bool:
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= size


# First bytes of a file -> whether its end is where it should be. No: perhaps cut short, so decoding has to tell.
ENDINGS: dict[bytes, Callable[[File, int], bool]] = {
    b"\x89PNG": _png_ends_well,
    b"\xff\xd8": _ends_with(b"\xff\xd9"),
    b"GIF8": _ends_with(b";"),
    b"RIFF": _riff_ends_well,
}


def _ends_well(source: Path | BytesIO) -> bool:
    with nullcontext(source) if isinstance(source, BytesIO) else source.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(4)
        return any(ends(file, size) for mark, ends in ENDINGS.items() if start.startswith(mark))
