"""Training pictures as files: which pixels and which size they have, and which are refused."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from autolora_jax import image_files
from autolora_jax.image_files import PictureError, read_rgb, read_size
from autolora_jax.training.dataset import read_folder
from tests.training_pictures import RED, WHITE, draw, noise_picture, pair, problems

LAW = settings(deadline=None)  # other processes may own the machine
FEWER = settings(LAW, max_examples=40)
CROP_TOLERANCE = 1  # of 255: resizing a crop alone against cropping the resized; seen 1, in 584 of 3.6e6 values
JPEG_TOLERANCE = 3  # of 255, quality 100 without subsampling; seen 2


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HALF_RED = {"RGBA": (255, 0, 0, 128), "LA": (0, 128)}
ON_WHITE = {"RGBA": (255, 127, 127), "LA": (127, 127, 127)}


@pytest.mark.parametrize("mode", ON_WHITE)
@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_transparency_shows_white(tmp_path, mode, kind):
    path = draw(
        tmp_path / f"a.{kind}", mode=mode, colour=HALF_RED[mode], **({"lossless": True} if kind == "webp" else {})
    )
    assert set(read_rgb(path).get_flattened_data()) == {ON_WHITE[mode]}


def test_transparent_palettes_and_colour_keys_show_white(tmp_path):
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(0, (0, 0, 8, 16))
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    palette.save(tmp_path / "levels.png", transparency=bytes([0, 255]))
    picture = Image.new("RGB", (16, 16), RED)
    picture.paste((0, 0, 0), (0, 0, 8, 16))
    picture.save(tmp_path / "key.png", transparency=(0, 0, 0))
    for name in ("p.png", "p.gif", "levels.png", "key.png"):
        pixels = read_rgb(tmp_path / name)
        assert pixels.mode == "RGB" and pixels.getpixel((3, 3)) == WHITE and pixels.getpixel((12, 3)) == RED, name


def test_an_opaque_palette_one_bit_and_grey(tmp_path):
    draw(tmp_path / "p.png", mode="P", colour=1)
    Image.new("RGB", (16, 16), RED).quantize(4).save(tmp_path / "p.png")
    draw(tmp_path / "1.png", mode="1", colour=1)
    draw(tmp_path / "l.png", mode="L", colour=77)
    colours = [read_rgb(tmp_path / name).getpixel((2, 2)) for name in ("p.png", "1.png", "l.png")]
    assert colours == [RED, WHITE, (77, 77, 77)]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_keep_their_brightness(tmp_path, kind):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16)
    Image.fromarray(np.tile(values, (8, 1))).save(tmp_path / f"a.{kind}")
    pixels = np.asarray(read_rgb(tmp_path / f"a.{kind}"))
    assert np.array_equal(pixels[0, :, 0], np.arange(256)) and np.array_equal(pixels[..., 0], pixels[..., 2])


def test_big_endian_sixteen_bits(tmp_path):
    values = np.tile(np.arange(0, 65536, 257, np.uint16).astype(">u2"), (8, 1))
    Image.frombytes("I;16B", (256, 8), values.tobytes()).save(tmp_path / "a.tiff")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.tiff"))[0, :, 1], np.arange(256))


@pytest.mark.parametrize("kind", ["jpg", "tiff"])
def test_cmyk(tmp_path, kind):
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    path = draw(tmp_path / f"a.{kind}", mode="CMYK", colour=(0, 255, 255, 0), **options)
    assert np.abs(np.asarray(read_rgb(path), int) - RED).max() <= JPEG_TOLERANCE


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(tmp_path, mode):
    pair(tmp_path, "a.tiff", mode=mode, colour=1)
    assert "whose white is unknown" in problems(tmp_path)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_exif_rotates_size_and_pixels(tmp_path, kind, orientation):
    """The top left of what a viewer shows is red, wherever it is in the file."""
    upright = np.full((24, 40, 3), 255, np.uint8)
    upright[:12, :20] = RED
    stored = [
        *(upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]),
        *(upright.swapaxes(0, 1), upright[:, ::-1].swapaxes(0, 1)),  # 6: shown turned clockwise by a quarter
        *(upright[::-1, ::-1].swapaxes(0, 1), upright[::-1].swapaxes(0, 1)),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    assert read_size(path) == (24, 40)
    assert np.abs(np.asarray(read_rgb(path), int) - upright).max() <= JPEG_TOLERANCE


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = draw(tmp_path / "a.png", size=(12, 40)).read_bytes()
    end = data.rindex(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[end:])
    assert read_size(tmp_path / "a.png") == (40, 12) and read_rgb(tmp_path / "a.png").size == (12, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_cut_files_are_found_before_training(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    noise_picture(64, 64).save(path)
    path.with_suffix(".txt").write_text("x")
    assert read_folder(tmp_path)
    data = path.read_bytes()
    for part in (10, len(data) // 2, len(data) - 64):
        path.write_bytes(data[:part])
        (problem,) = problems(tmp_path)
        assert problem.startswith(f"a.{kind}: "), problem
    path.write_bytes(b"")
    assert "is no picture" in problems(tmp_path)[0]


def test_whole_files_are_not_decoded_to_learn_their_size(tmp_path, monkeypatch):
    options = {"jpg": {"exif": Image.Exif()}, "png": {"exif": Image.Exif()}, "webp": {}, "gif": {}}
    paths = [draw(tmp_path / f"a.{kind}", **o) for kind, o in options.items()]
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for cls in {type(Image.open(path)) for path in paths}:
        monkeypatch.setattr(cls, "load", lambda self: pytest.fail("decoded"))
    assert [read_size(path) for path in paths] == [(12, 16)] * 4


def test_bytes_behind_a_jpeg_do_no_harm(tmp_path):
    path = draw(tmp_path / "motion.jpg")
    path.write_bytes(path.read_bytes() + b"a film")
    assert read_size(path) == (12, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_refused_unopened(tmp_path, side):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    (tmp_path / "a.txt").write_text("x")
    (problem,) = problems(tmp_path)
    assert "shrink it" in problem
    with pytest.raises(PictureError, match="shrink it"):
        read_rgb(tmp_path / "a.png")
    assert image_files.LARGEST == Image.MAX_IMAGE_PIXELS
