"""Training pictures: what a folder means, what is wrong with it, what pixels and sizes a step sees, exact resume."""

import csv
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autolora_jax.training import image_files
from autolora_jax.training.buckets import Crop, Plan, assign, assign_all, load_pixels, make_buckets
from autolora_jax.training.dataset import DatasetError, Example, read_folder
from autolora_jax.training.image_files import PictureError, read_rgb, read_size

LAW = settings(deadline=None)  # other processes may own the machine
FEWER = settings(LAW, max_examples=40)
CROP_TOLERANCE = 1  # of 255: resizing a crop alone against cropping the resized; seen 1, in 584 of 3.6e6 values
JPEG_TOLERANCE = 3  # of 255, quality 100 without subsampling; seen 2
RED, WHITE = (255, 0, 0), (255, 255, 255)


def draw(path: Path, size: tuple[int, int] = (12, 16), mode: str = "RGB", colour=RED, **options) -> Path:
    """Writes a picture of one colour; size is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], colour).save(path, **options)
    return path


def pair(folder: Path, name: str, caption: str = "a fox", **options) -> Path:
    path = draw(folder / name, **options)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def problems(folder: Path, **options) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        read_folder(folder, **options)
    return caught.value.problems


def noise_picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


# --- folders with captions beside the pictures ---


def test_pictures_with_captions_beside_them(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "d.bmp", "e.gif", "f.tiff", "g.jpeg"):
        pair(tmp_path, name, f"  caption of {name}\n", size=(10, 20))
    draw(tmp_path / "h.png").with_suffix(".caption").write_bytes("\ufefftwo\nlines".encode())
    (tmp_path / "a.caption").write_text("a second choice")
    draw(tmp_path / ".hidden" / "x.png")
    for name in ("Thumbs.db", "notes.json", "README.txt", ".DS_Store", "sub/._c.png", "latents.npz"):
        (tmp_path / name).write_bytes(b"anything")
    examples = read_folder(tmp_path)
    assert [e.path.relative_to(tmp_path).as_posix() for e in examples] == [
        *("a.jpg", "b.PNG", "d.bmp", "e.gif", "f.tiff", "g.jpeg", "h.png", "sub/c.webp")
    ]
    assert [e.caption for e in examples if e.path.stem != "h"] == [
        f"caption of {e.path.relative_to(tmp_path).as_posix()}" for e in examples if e.path.stem != "h"
    ]
    assert examples[6] == Example(tmp_path / "h.png", "two\nlines", (12, 16))
    assert {e.size for e in examples if e.path.stem != "h"} == {(10, 20)} and {e.repeats for e in examples} == {1}
    assert read_folder(str(tmp_path)) == examples
    assert len(read_folder(tmp_path, recursive=False)) == 7


def test_subfolders_repeat_and_caption_as_kohyas_do(tmp_path):
    draw(tmp_path / "10_red fox" / "a.png")
    pair(tmp_path / "10_red fox", "b.png", "a caption")
    draw(tmp_path / "10_red fox" / "near" / "c.png")
    draw(tmp_path / "3_" / "d.png")
    pair(tmp_path / "other", "e.png", "plain")
    examples = read_folder(tmp_path, default_caption="the default")
    assert [(e.path.stem, e.caption, e.repeats) for e in examples] == [
        ("a", "red fox", 10),
        ("b", "a caption", 10),
        ("c", "red fox", 10),
        ("d", "the default", 3),
        ("e", "plain", 1),
    ]
    # The folder itself is no subset: its name says nothing.
    assert [e.repeats for e in read_folder(tmp_path / "10_red fox", default_caption="")] == [1, 1, 1]


@pytest.mark.parametrize("name", ["0_fox", "20240131_walk"])
def test_impossible_repeats(tmp_path, name):
    draw(tmp_path / name / "a.png")
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{name}: its name means {name.split('_')[0]} repeats") and "rename" in problem


def test_a_link_in_a_circle_ends(tmp_path):
    pair(tmp_path / "sub", "a.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked").symlink_to(tmp_path / "sub", target_is_directory=True)
    assert [e.path.relative_to(tmp_path).as_posix() for e in read_folder(tmp_path)] == ["linked/a.png", "sub/a.png"]


def test_no_folder_no_pictures(tmp_path):
    assert "no such folder" in problems(tmp_path / "missing")[0]
    assert "is a file" in problems(draw(tmp_path / "sub" / "a.png"))[0]
    (tmp_path / "empty").mkdir()
    assert problems(tmp_path / "empty")[0].startswith("no pictures (.png")
    assert problems(tmp_path, recursive=False)[0].endswith("in it")
    with pytest.raises(ValueError, match="expected a dot"):
        read_folder(tmp_path, caption_extension="txt")


def test_pictures_without_captions_are_named_and_counted(tmp_path):
    for i in range(7):
        draw(tmp_path / f"{i}.png")
    (problem,) = problems(tmp_path)
    assert problem.startswith(
        "7 pictures have no caption: 0.png, 1.png, 2.png, 3.png, 4.png, … and 2 more; write a .txt"
    )
    assert [e.caption for e in read_folder(tmp_path, default_caption="x")] == ["x"] * 7
    assert [e.caption for e in read_folder(tmp_path, default_caption="")] == [""] * 7
    assert ".cap beside each" in problems(tmp_path, caption_extension=".cap")[0]
    for i in range(7):
        (tmp_path / f"{i}.cap").write_text("tags")
    assert {e.caption for e in read_folder(tmp_path, caption_extension=".cap")} == {"tags"}


def test_every_problem_is_told_at_once(tmp_path):
    pair(tmp_path, "empty.png", " \n")
    pair(tmp_path, "latin.png").with_suffix(".txt").write_bytes("Füchse".encode("latin-1"))
    pair(tmp_path, "utf16.png").with_suffix(".txt").write_bytes("fox".encode("utf-16-le"))
    pair(tmp_path, "tiny.png", size=(7, 100))
    pair(tmp_path, "text.png").write_text("no picture")
    (tmp_path / "photo.HEIC").write_bytes(b"?")
    draw(tmp_path / "captionless.png")
    found = problems(tmp_path)
    for start, then in {
        "photo.HEIC: .HEIC is not read": "PNG",
        "empty.txt: the caption is empty": "write one",
        "latin.txt: is not UTF-8": "save it as UTF-8",
        "utf16.txt: is not UTF-8": "save it as UTF-8",
        "tiny.png: is 7 × 100 pixels": "at least 8 × 8",
        "text.png: is no picture": "save it as PNG",
        "one picture has no caption: captionless.png": "default caption",
    }.items():
        assert [p for p in found if p.startswith(start) and then in p], start
    assert len(found) == 7


def test_the_message_shows_ten_problems_and_counts_the_rest(tmp_path):
    for i in range(13):
        pair(tmp_path, f"{i:02}.png", "")
    with pytest.raises(DatasetError, match="13 problems") as caught:
        read_folder(tmp_path)
    assert len(caught.value.problems) == 13
    lines = str(caught.value).splitlines()
    assert len(lines) == 12 and lines[-1] == "  … and 3 more" and str(tmp_path) in lines[0]


# --- metadata ---


def write_rows(folder: Path, rows: list[dict], kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    if kind == "csv":
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.write("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    (folder / f"metadata.{kind}").write_bytes(text.getvalue().encode("utf-8-sig"))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_gives_captions(tmp_path, kind, key):
    for name in ("b.png", "10_sub/a.png", ".hidden.png"):
        pair(tmp_path, name, "not read")
    captions = {"b.png": "tea, “hot”\u2028or iced", "10_sub/a.png": "two\nlines", "./.hidden.png": "named, so read"}
    write_rows(tmp_path, [{"file_name": n, "score": 3, key: c} for n, c in captions.items()], kind)
    assert read_folder(tmp_path) == tuple(
        Example(tmp_path / name, captions[name], (12, 16)) for name in ("./.hidden.png", "10_sub/a.png", "b.png")
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_bad_rows_are_numbered(tmp_path, kind):
    for name in ("folder/a.png", "folder/b.png", "folder/c.png", "outside.png", "folder/notes.md"):
        draw(tmp_path / name, format="PNG")
    folder = tmp_path / "folder"
    names = ["a.png", "missing.png", "../outside.png", str(tmp_path / "outside.png"), "sub/../a.png", "", "notes.md"]
    write_rows(folder, [*({"file_name": n, "text": "x"} for n in names), {"file_name": "b.png", "text": " "}], kind)
    # The first line of a CSV is its header; the test's JSON has empty lines between.
    lines = [i + 2 if kind == "csv" else 2 * i + 1 for i in range(8)]
    expected = {
        1: "missing.png does not exist",
        2: "../outside.png is outside the folder",
        3: f"{tmp_path}/outside.png is outside the folder",
        4: f"sub/../a.png is already on line {lines[0]}",
        5: "expected file_name and one of text",
        6: "notes.md is no picture",
        7: "b.png has no text under",
    }
    found = problems(folder)
    for (i, start), problem in zip(expected.items(), found[:-1], strict=True):
        assert problem.startswith(f"metadata.{kind} line {lines[i]}: {start}"), problem
    assert found[-1].startswith(f"one picture has no row in metadata.{kind}: c.png; add rows")


def test_invalid_json_is_numbered(tmp_path):
    draw(tmp_path / "a.png")
    rows = ['{"file_name": "a.png", "text": "x"}', '{"file_name": "a.png"', "[1, 2]", "[" * 100_000, '{"text": "x"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    found = problems(tmp_path)
    assert [p.split(":")[0] for p in found] == [f"metadata.jsonl line {i}" for i in (2, 3, 4, 5)]
    assert "invalid JSON" in found[0] and "invalid JSON" in found[2] and "[1, 2]" in found[1]
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in problems(tmp_path)[0]


def test_metadata_lies_in_the_folder_once(tmp_path):
    draw(tmp_path / "train" / "a.png")
    write_rows(tmp_path / "train", [{"file_name": "a.png", "text": "x"}], "jsonl")
    assert problems(tmp_path)[0].startswith("train/metadata.jsonl: expected one metadata file, in the folder itself")
    write_rows(tmp_path / "train", [{"file_name": "a.png", "text": "x"}], "csv")
    assert problems(tmp_path / "train")[0].startswith("metadata.csv, metadata.jsonl: expected one")


def test_the_default_caption_serves_pictures_without_a_row(tmp_path):
    draw(tmp_path / "a.png"), draw(tmp_path / "b.png")
    write_rows(tmp_path, [{"file_name": "a.png", "text": "x"}], "jsonl")
    assert [e.caption for e in read_folder(tmp_path, default_caption="y")] == ["x", "y"]


# --- files of pictures ---


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


# --- buckets ---

SDXL = make_buckets(1024)
sides = st.integers(8, 6000)
seeds = st.integers(0, 2**40)


def test_buckets_are_those_that_kohya_makes():
    """Worked out by hand from its rule for sides of 512 to 2048: 64 · floor(1024² / side / 64)."""
    half = {512: 2048, 576: 1792, 640: 1600, 704: 1472, 768: 1344, 832: 1216, 896: 1152, 960: 1088, 1024: 1024}
    other = {1280: 768, 1408: 704, 1536: 640, 1664: 576, 1728: 576, 1856: 512, 1920: 512, 1984: 512}
    pairs = {*half.items(), *other.items()}
    expected = sorted(pairs | {(b, a) for a, b in pairs})
    assert make_buckets(1024, minimum=512, maximum=2048, max_aspect=4) == tuple(expected)
    assert tuple(b for b in expected if max(b) <= 2 * min(b)) == SDXL
    assert make_buckets(1024, max_aspect=1) == ((1024, 1024),)
    assert make_buckets(64, step=8, max_aspect=1.5) == ((56, 72), (64, 64), (72, 56))


@LAW
@given(st.integers(1, 40), st.sampled_from([8, 16, 64]), st.floats(1, 5))
def test_bucket_laws(multiple, step, aspect):
    side = multiple * step
    buckets = make_buckets(side, step=step, max_aspect=aspect)
    assert (side, side) in buckets and len(set(buckets)) == len(buckets)
    for h, w in buckets:
        assert h % step == w % step == 0 and max(h, w) / min(h, w) <= aspect and (w, h) in buckets
        assert side**2 - step * max(h, w) < h * w <= side**2  # the shorter side could not be a step longer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1000}, "use 1024, or another step"),
        ({"resolution": 0}, "use 64"),
        ({"resolution": 1024, "step": 12}, "multiple of 8"),
        ({"resolution": 1024, "max_aspect": 0.5}, "at least 1"),
        ({"resolution": 1024, "maximum": 512}, "outside minimum 64 to maximum 512"),
        ({"resolution": 512, "minimum": 1024}, "outside minimum 1024"),
    ],
)
def test_bad_buckets(options, message):
    with pytest.raises(ValueError, match=message):
        make_buckets(**options)


@LAW
@given(sides, sides, st.sampled_from(["center", "random"]), seeds)
def test_crop_laws(height, width, place, seed):
    crop = assign((height, width), SDXL, place=place, seed=seed)
    (rows, columns), (top, left), (h, w) = crop.resized, crop.top_left, crop.target
    assert crop.original == (height, width) and crop.target in SDXL
    assert rows >= h and columns >= w and (rows == h or columns == w)
    assert 0 <= top <= rows - h and 0 <= left <= columns - w
    scale = max(h / height, w / width)
    assert abs(rows - height * scale) < 1 and abs(columns - width * scale) < 1
    best = min(abs(np.log(height / width) - np.log(a / b)) for a, b in SDXL)
    assert abs(np.log(height / width) - np.log(h / w)) <= best + 1e-9
    assert crop == assign((height, width), SDXL, place=place, seed=seed)
    upright = assign((width, height), SDXL, place=place, seed=seed)
    assert upright.target == (w, h) and upright.resized == (columns, rows)


@pytest.mark.parametrize(("longer", "bucket"), [(1873, (1408, 704)), (1868, (1344, 768))])
def test_nearest_is_by_the_ratio_of_aspect_ratios(longer, bucket):
    """Halfway between 1.75 and 2 is then 1.871; by difference it is 1.867 or 1.875, as height or width is divided."""
    assert assign((longer, 1000), SDXL).target == bucket
    assert assign((1000, longer), SDXL).target == bucket[::-1]


def test_random_crops_reach_every_position_evenly():
    crops = [assign((64, 72), [(64, 64)], place="random", seed=i).top_left for i in range(900)]
    counts = np.bincount([left for _, left in crops], minlength=9)
    assert {top for top, _ in crops} == {0} and counts.min() > 60 and counts.max() < 150


def test_no_upscaling():
    assert assign((1500, 1000), SDXL).target == (1216, 832) == assign((1500, 1000), SDXL, upscale=False).target
    assert assign((1100, 1000), SDXL).target == (1088, 960)
    assert assign((1020, 1500), SDXL, upscale=False).target == (832, 1216)
    # Nearest among those that fit, though another bucket is nearer in shape.
    assert assign((1000, 1100), SDXL, upscale=False).target == (960, 1088)
    assert assign((1023, 1088), SDXL, upscale=False).target == (960, 1088)
    with pytest.raises(ValueError, match="900 × 900 pixels cover no bucket; allow upscaling"):
        assign((900, 900), SDXL, upscale=False)
    small = Example(Path("small.png"), "x", (900, 900))
    with pytest.raises(DatasetError, match=r"small\.png: 900 × 900 pixels"):
        assign_all([small, Example(Path("b.png"), "x", (2000, 2000)), small], SDXL, upscale=False)


def test_assign_all_gives_every_example_its_own_position():
    examples = [Example(Path(f"{i}.png"), "x", (1024, 1600)) for i in range(20)]
    crops = assign_all(examples, [(1024, 1024)], place="random", seed=3)
    assert len({c.top_left for c in crops}) > 10
    assert crops == assign_all(examples, [(1024, 1024)], place="random", seed=3)
    assert crops != assign_all(examples, [(1024, 1024)], place="random", seed=4)
    assert {c.top_left for c in assign_all(examples, [(1024, 1024)])} == {(0, 288)}


def diffusers_center(height: int, width: int, resolution: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Resize(resolution), then CenterCrop: torchvision's size of the resized picture, the script's (y1, x1)."""
    short, long = min(height, width), max(height, width)
    longer = int(resolution * long / short)
    new_h, new_w = (resolution, longer) if height <= width else (longer, resolution)
    y1 = max(0, int(round((new_h - resolution) / 2.0)))  # noqa: RUF046
    x1 = max(0, int(round((new_w - resolution) / 2.0)))  # noqa: RUF046
    return (new_h, new_w), (y1, x1)


@LAW
@given(sides, sides, st.sampled_from([64, 512, 1024]))
def test_matches_the_order_and_numbers_of_diffusers_script(height, width, resolution):
    crop = assign((height, width), make_buckets(resolution, max_aspect=1))
    resized, (y1, x1) = diffusers_center(height, width, resolution)
    assert crop.resized == resized and crop.top_left == (y1, x1)
    ids = crop.time_ids()
    assert ids.dtype == np.float32 and ids.tolist() == [height, width, y1, x1, resolution, resolution]


# --- pixels ---


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (50, 70), (64, 64), (65, 64), (97, 131)])
@pytest.mark.parametrize("place", ["center", "random"])
def test_pixels_are_those_of_the_crop_of_the_resized_picture(tmp_path, size, place):
    path = tmp_path / "a.png"
    picture = noise_picture(*size)
    picture.save(path)
    example = Example(path, "x", size)
    crop = assign(size, make_buckets(64, step=8), place=place, seed=5)
    whole = np.asarray(picture.resize(crop.resized[::-1], Image.Resampling.LANCZOS))
    (top, left), (h, w) = crop.top_left, crop.target
    expected = whole[top : top + h, left : left + w]
    pixels = load_pixels(example, crop)
    assert pixels.dtype == np.uint8 and pixels.shape == (h, w, 3) and pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - expected).max() <= CROP_TOLERANCE
    if crop.resized == size:
        assert np.array_equal(pixels, expected)

    flipped = load_pixels(example, crop, flip=True)
    assert np.array_equal(flipped, pixels[:, ::-1])
    # With flip the numbers are those of a crop of the mirrored picture, which is what diffusers' script takes.
    y, x = crop.sizes(flip=True).crops_top_left
    assert crop.time_ids(flip=True).tolist() == [*size, y, x, h, w]
    assert np.abs(flipped.astype(int) - whole[:, ::-1][y : y + h, x : x + w]).max() <= CROP_TOLERANCE


def test_shrinking_is_antialiased(tmp_path):
    board = np.indices((512, 512)).sum(0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    pixels = load_pixels(Example(tmp_path / "a.png", "x", (512, 512)), assign((512, 512), [(64, 64)]))
    assert np.abs(pixels[4:-4, 4:-4].astype(int) - 128).max() <= 2


def test_a_long_strip_needs_no_memory(tmp_path):
    draw(tmp_path / "a.png", size=(8, 60_000))
    crop = assign((8, 60_000), SDXL)
    assert crop.resized == (704, 5_280_000)  # 11 GB
    assert load_pixels(Example(tmp_path / "a.png", "x", (8, 60_000)), crop).shape == (704, 1408, 3)


def test_files_that_changed_since(tmp_path):
    example = Example(draw(tmp_path / "a.png", size=(20, 20)), "x", (20, 20))
    crop = assign((20, 20), [(8, 8)])
    draw(tmp_path / "a.png", size=(20, 30))
    with pytest.raises(DatasetError, match="is 20 × 30 pixels, was 20 × 20; list the folder again"):
        load_pixels(example, crop)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"a\.png.*\n.*can't be decoded"):
        load_pixels(example, crop)


# --- batches ---


def plan_of(numbers: list[int], repeats: list[int], batch_size: int, seed: int) -> tuple[Plan, list[Crop]]:
    """A plan of examples, each in a bucket of that number and with these repeats."""
    crops = [assign((64, 64), [(8 * (bucket + 1), 64)]) for bucket in numbers]
    examples = [Example(Path(f"{i}.png"), "x", (64, 64), r) for i, r in enumerate(repeats)]
    return Plan(examples, crops, batch_size, seed), crops


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=30)  # (bucket, repeats)
batch_sizes = st.integers(1, 7)


@LAW
@given(rows, batch_sizes, seeds, st.integers(0, 1000))
def test_an_epoch_has_every_example_in_full_batches_of_one_bucket(rows, batch_size, seed, number):
    buckets, repeats = map(np.array, zip(*rows, strict=True))
    plan, crops = plan_of(buckets.tolist(), repeats.tolist(), batch_size, seed)
    batches = plan.epoch(number)
    assert len(batches) == plan.steps_per_epoch and batches == plan.epoch(number)
    for batch in batches:
        assert len(batch.indices) == batch_size and {crops[i].target for i in batch.indices} == {batch.bucket}
    counts = np.bincount([i for batch in batches for i in batch.indices], minlength=len(rows))
    assert (counts >= repeats).all()
    for bucket in set(buckets.tolist()):
        within = buckets == bucket
        assert counts[within].sum() - repeats[within].sum() < batch_size  # no batch too many


@FEWER
@given(rows, batch_sizes, seeds, st.data())
def test_batches_are_a_pure_function_of_the_step(rows, batch_size, seed, data):
    plan, _ = plan_of([bucket for bucket, _ in rows], [repeats for _, repeats in rows], batch_size, seed)
    steps = 3 * plan.steps_per_epoch
    in_order = [plan.batch_at(step) for step in range(steps)]
    assert in_order == [batch for epoch in range(3) for batch in plan.epoch(epoch)]
    for step in data.draw(st.lists(st.integers(0, steps - 1), max_size=10)):
        assert plan.batch_at(step) == in_order[step]


@FEWER
@given(seeds, st.integers(1, 60))
def test_a_resumed_run_sees_what_the_uninterrupted_one_does(seed, start):
    numbers, repeats = [0, 0, 1, 0, 2, 1, 0, 0], [1, 2, 1, 1, 3, 1, 1, 1]
    whole, _ = plan_of(numbers, repeats, 3, seed)
    expected = [whole.batch_at(step) for step in range(start + 20)]
    resumed, _ = plan_of(numbers, repeats, 3, seed)
    assert [resumed.batch_at(step) for step in range(start, start + 20)] == expected[start:]


def test_epochs_and_seeds_differ_and_no_example_is_favoured():
    plan, _ = plan_of([0] * 10, [1] * 10, 4, seed=0)
    other, _ = plan_of([0] * 10, [1] * 10, 4, seed=1)
    assert len({plan.epoch(i) for i in range(50)} | {other.epoch(i) for i in range(50)}) == 100
    # Two of twelve rows are fillers: each example is one in a fifth of the epochs.
    counts = np.bincount([i for e in range(1000) for batch in plan.epoch(e) for i in batch.indices])
    assert counts.sum() == 12_000 and abs(counts - 1200).max() < 60  # 4.7 standard deviations


def test_the_order_of_a_plan_never_changes():
    """A resumed run may meet another numpy: these values are for ever."""
    plan, _ = plan_of([0, 1, 0, 1, 0, 0], [1, 1, 1, 2, 1, 1], 2, seed=42)
    assert [batch.indices for batch in plan.epoch(7)] == [(3, 1), (0, 5), (2, 4), (1, 3)]
    assert assign((64, 640), [(64, 64)], place="random", seed=42).top_left == (0, 381)


def test_a_large_epoch_is_built_once(monkeypatch):
    n = 100_000
    examples = [Example(Path("a.png"), "x", (64, 64))] * n
    plan = Plan(examples, [assign((64, 64), [(64, 64)])] * n, 8, seed=1)
    built = []
    epoch = plan.epoch
    monkeypatch.setattr(plan, "epoch", lambda number: built.append(number) or epoch(number))
    for step in range(plan.steps_per_epoch - 100, plan.steps_per_epoch + 100):
        plan.batch_at(step)
    assert built == [0, 1] and plan.steps_per_epoch == n // 8


def test_bad_plans():
    crop = assign((64, 64), [(64, 64)])
    example = Example(Path("a.png"), "x", (64, 64))
    with pytest.raises(ValueError, match="got 0 and 0"):
        Plan([], [], 1)
    with pytest.raises(ValueError, match="got 1 and 2"):
        Plan([example], [crop, crop], 1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Plan([example], [crop], 0)
