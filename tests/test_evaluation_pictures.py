"""Where measured pictures come from: folders and shards, what is told of them, and what is wrong with some."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora_jax import CFG, pictures
from autolora_jax.evaluation.pictures import Pictures, as_text, labels
from autolora_jax.image_files import PictureError
from tests.batch_jobs import draw_all, rows_of, small_job
from tests.test_cli import settings


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def write_shard(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_is_read_in_one_order(tmp_path: Path):
    for i, name in enumerate(["b/2.png", "a.png", "b/10.JPG", "b.webp", ".hidden/x.png", "b/.y.png", "notes.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        kind = {"G": "JPEG", "p": "WEBP"}.get(name[-1], "PNG")
        (tmp_path / name).write_bytes(encoded(picture(i), kind))
    found = list(Pictures(tmp_path))
    assert [each.key for each in found] == ["a.png", "b/10.JPG", "b/2.png", "b.webp"]
    assert [each.fields["folder"] for each in found] == [".", "b", "b", "."]
    assert Pictures(tmp_path).count == 4
    assert np.array_equal(found[0].image(), picture(1))
    assert [each.key for each in Pictures(tmp_path / "b", tmp_path / "a.png")] == ["10.JPG", "2.png", "a.png"]


def test_a_jobs_pictures_are_not_met_again_in_its_gallery(tmp_path: Path):
    for name in ("job/images/ab/1.png", "job/gallery/thumbnails-16/ab/1.webp", "job/sheets/0.jpg", "gallery/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(encoded(picture(1)))
    (tmp_path / "job" / "batch.json").write_text("{}")
    assert [each.key for each in Pictures(tmp_path)] == ["gallery/2.png", "job/images/ab/1.png"]
    assert [each.key for each in Pictures(tmp_path / "job")] == ["images/ab/1.png"]


def test_what_pictures_say_of_themselves(tmp_path: Path):
    ours = settings(prompt="süß cat", seed=5, lora_scales=[0.7], loras=["x"], guidance=CFG(2.5))
    pictures.save_png(tmp_path / "1.png", picture(1), ours)
    webui = "a dog, <lora:pixel:0.8>\nat night\nNegative prompt: ugly\nSteps: 20, Sampler: Euler, Seed: 123, Size: 8x8"
    pictures.write_png(tmp_path / "2.png", picture(2), {"parameters": webui})
    pictures.write_png(tmp_path / "3.png", picture(3), {"autolora": json.dumps({"settings": {"seeds": [1]}})})
    pictures.write_png(tmp_path / "4.png", picture(4), {"autolora": "{broken"})
    one, two, four = Pictures(tmp_path)  # the third is a grid
    assert (one.fields["prompt"], one.fields["seed"], one.fields["lora_scales"]) == ("süß cat", 5, [0.7])
    assert as_text(one.fields["guidance"]) == "rule cfg, w 2.5, start 0, stop 1"
    assert two.fields == {"folder": ".", "prompt": "a dog,\nat night", "seed": 123}
    assert (four.key, four.fields) == ("4.png", {"folder": "."})


def test_what_is_told_beside_them(tmp_path: Path):
    """A manifest has the last word, the nearest one before those above it; then a JSON file of the same name."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        pictures.write_png(tmp_path / name, picture(1), {"parameters": "own\nSteps: 1, Seed: 7"})
    (tmp_path / "a.json").write_text('{"prompt": "sidecar", "style": "pixel"}')
    rows = [{"file": "sub/b.png", "prompt": "above", "model": "m"}, {"key": "a", "seed": 3, "prompt": None}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "sub" / "manifest.jsonl").write_text('{"file": "b.png", "prompt": "nearest"}')
    a, b, c = (each.fields for each in Pictures(tmp_path))
    assert (a["prompt"], a["style"], a["seed"]) == ("sidecar", "pixel", 3)
    assert (b["prompt"], b["model"], b["seed"]) == ("nearest", "m", 7)
    assert (c["prompt"], c["seed"]) == ("own", 7)
    assert labels([a, b, c], ["prompt", "model"]) == [("sidecar", ""), ("nearest", "m"), ("own", "")]
    assert labels([a, b], []) == [(), ()]


def test_shards(tmp_path: Path):
    files = {
        "./0001.png": encoded(picture(1)),
        "0001.json": b'{"prompt": "a cat", "seed": 4}',
        "x/0002.txt": b"a dog\n",
        "x/0002.jpg": encoded(picture(2), "JPEG"),
        "x/0003.json": b'{"prompt": "no picture"}',
        ".hidden.png": encoded(picture(3)),
        "0004.v1.0.png": encoded(picture(4)),
        "0004.v1.0.json": b'{"prompt": "with dots"}',
        "0004.depth.npy": b"",
        "0005.png": encoded(picture(5)),
    }
    shard = write_shard(tmp_path / "s-0.tar", files)
    write_shard(tmp_path / "s-1.tar", {"0001.png": encoded(picture(1))})
    (tmp_path / "manifest.jsonl").write_text('{"key": "0005", "file": "s-0.tar", "prompt": "from the manifest"}')
    with pytest.warns(UserWarning, match=r"1 files in shards that are no pictures \(s-0.tar/0004.depth.npy\)"):
        found = list(Pictures(shard))
    assert [(each.key, each.fields.get("prompt")) for each in found] == [
        ("s-0.tar/0001.png", "a cat"),
        ("s-0.tar/x/0002.jpg", "a dog"),
        ("s-0.tar/0004.v1.0.png", "with dots"),
        ("s-0.tar/0005.png", "from the manifest"),
    ]
    assert found[0].fields["seed"] == 4
    whole = Pictures(tmp_path)  # a folder of shards
    assert [each.key for each in whole][-1] == "s-1.tar/0001.png"
    assert whole.count is None and len(list(whole)) == 5
    assert found[0].sha256 == list(whole)[-1].sha256


def test_what_lies_beside_the_pictures_is_named(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    write_shard(tmp_path / "s.tar", {"0001.png": encoded(picture(2))})
    with pytest.warns(UserWarning, match=r"1 shards \(.tar\) beside other files that are read \(s.tar\)"):
        assert [each.key for each in Pictures(tmp_path)] == ["a.png"]


def test_a_picture_that_is_none_says_why_when_it_is_decoded(tmp_path: Path):
    content = encoded(picture(1))
    for name, bad in {"cut.png": content[:-40], "text.jpg": b"hello", "empty.webp": b"", "new.avif": b"avif"}.items():
        (tmp_path / name).write_bytes(bad)
    found = list(Pictures(tmp_path))
    assert len(found) == 4
    for each in found:
        with pytest.raises(PictureError):
            each.image()


def test_places_that_are_wrong(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Pictures(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no pictures \(.png, .jpg, .jpeg, …\) and no .tar files"):
        Pictures(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    for line, said in {"{": "line 1 is not valid JSON", "[1]": "line 1 is not valid JSON .expected an object"}.items():
        (tmp_path / "manifest.jsonl").write_text(line)
        with pytest.raises(ValueError, match=said):
            list(Pictures(tmp_path))


def member_at(shard: bytes, number: int) -> int:
    """Where a member's header begins."""
    return [member.offset for member in tarfile.open(fileobj=io.BytesIO(shard))][number]


def flipped(shard: bytes, place: int) -> bytes:
    return shard[:place] + bytes([shard[place] ^ 4]) + shard[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda b: b[:700], ""),
        (lambda b: b"no tar" * 200, ""),
        (lambda b: b[:512] + b"?" * 600, ""),
        (lambda b: flipped(b, member_at(b, 0) + 3), ""),
        (lambda b: flipped(b, member_at(b, 1) + 3), "is no member, and not its end"),
        (lambda b: flipped(b, member_at(b, 2) + 130), "is no member, and not its end"),
        (lambda b: b[: member_at(b, 2)], "without its end mark: it was cut there"),
        (lambda b: b[: member_at(b, 1)] + bytes(len(b) - member_at(b, 1) - 1) + b"x", "is no member, and not its end"),
        (lambda b: bytes(len(b)), "it holds nothing"),
        (lambda b: b"", ""),
    ],
)
def test_a_broken_shard_is_an_error(damage, why: str, tmp_path: Path):
    """Never fewer pictures without a word."""
    shard = write_shard(tmp_path / "s.tar", {f"{i}.png": encoded(picture(i)) for i in range(3)})
    assert len(list(Pictures(shard))) == 3
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=rf"s\.tar is no whole tar file .*{why}.*copy it again"):
        list(Pictures(shard))


@pytest.mark.parametrize("shard_size", [None, 12])
def test_a_jobs_pictures_are_counted(shard_size: int | None, tmp_path: Path, recwarn):
    draw_all(small_job(shard_size), tmp_path)
    found = Pictures(tmp_path)
    assert len(list(found)) == 30 and not found.missing and not found.changed and not recwarn.list
    rows = rows_of(tmp_path)
    if shard_size:
        (tmp_path / "shards" / "000002.tar").unlink()
        shard, gone = tmp_path / "shards" / "000001.tar", [row for row in rows if "000002" in row["file"]]
        content = shard.read_bytes()
        place = member_at(content, 3) + 512 + 60
    else:
        gone = rows[:4]
        for row in gone:
            (tmp_path / row["file"]).unlink()
        shard = tmp_path / rows[5]["file"]
        content, place = shard.read_bytes(), -40
    shard.write_bytes(flipped(content, len(content) + place if place < 0 else place))
    with pytest.warns(UserWarning) as said:
        assert len(list(Pictures(tmp_path))) == 30 - len(gone)
    texts = " ".join(str(each.message) for each in said)
    assert f"{len(gone)} pictures of manifest.jsonl are not there" in texts
    assert "1 are not the pictures that manifest.jsonl means" in texts


def test_other_peoples_hashes_are_theirs(tmp_path: Path, recwarn):
    """As img2dataset writes those of the pictures that it made its own of."""
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "a.json").write_text(json.dumps({"sha256": "0" * 64, "status": "success", "key": "0001"}))
    found = Pictures(tmp_path)
    assert len(list(found)) == 1 and not found.changed and not recwarn.list


def test_what_is_left_out_is_not_missing(tmp_path: Path):
    draw_all(small_job(), tmp_path / "files")
    draw_all(small_job(12), tmp_path / "shards")
    found = Pictures(tmp_path)
    with pytest.warns(UserWarning, match=r"3 shards \(.tar\) beside other files"):
        assert len(list(found)) == 30
    assert not found.missing
