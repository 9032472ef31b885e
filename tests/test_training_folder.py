"""What a folder of training pictures means, and what is wrong with it."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import settings

from autolora_jax.training.dataset import DatasetError, Example, read_folder
from tests.training_pictures import draw, pair, problems

LAW = settings(deadline=None)  # other processes may own the machine
FEWER = settings(LAW, max_examples=40)
CROP_TOLERANCE = 1  # of 255: resizing a crop alone against cropping the resized; seen 1, in 584 of 3.6e6 values
JPEG_TOLERANCE = 3  # of 255, quality 100 without subsampling; seen 2


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


def test_captions_without_pictures_and_shards_are_named(tmp_path):
    pair(tmp_path, "img.v1.0.png")
    (tmp_path / "img.v1.1.txt").write_text("a mistyped name")
    (tmp_path / "README.txt").write_text("for people")
    with pytest.warns(UserWarning, match=r"holds 1 captions without a picture: img.v1.1.txt"):
        read_folder(tmp_path)
    (tmp_path / "more.tar").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"holds 1 shards, which are not read to train: more.tar"):
        read_folder(tmp_path)


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
