"""PNGs say how they were made, to A1111's readers and to ours; grids are labelled."""

import errno
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from autolora_jax import CFG, AutoGuidance, AutoLoRA, NoGuidance, PersonalizationGuidance, grid, pictures
from autolora_jax.grid import comparison_grid
from autolora_jax.schedules import SOLVERS
from autolora_jax.settings.rules import Rule

# As A1111's modules/infotext_utils.py reads the last line.
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def settings(**changes: Any) -> dict[str, Any]:
    """What the pipeline says of one picture."""
    return {
        "prompt": "a cute corgi",
        "prompt_2": "a cute corgi",
        "prompt_3": "a cute corgi",
        "negative_prompt": "blurry",
        "seed": 3,
        "guidance": AutoLoRA(1.5, 5.0, 6.0, start=0.0, stop=0.8),
        "guidance_rescale": 0.0,
        "lora_scales": [float(np.float32(0.8)), -1.0],
        "noise": "torch",
        "clip_skip": None,
        "base_text": "base",
        "steps": 30,
        "scheduler": "dpmpp_2m_karras",
        "size": (832, 1216),
        "model": "sd_xl_base_1.0",
        "loras": ["pixel-art-xl", "other"],
        **changes,
    }


def saved(path: Path, image: Image.Image | None = None, **changes: Any) -> Path:
    pictures.save_png(path, image or Image.new("RGB", (8, 8)), settings(**changes))
    return path


def a1111(path: Path) -> tuple[list[str], dict[str, str]]:
    """(lines before the last, fields of the last) as A1111 reads them."""
    with Image.open(path) as image:
        *lines, last = image.info["parameters"].split("\n")
    return lines, {key: json.loads(v) if v.startswith('"') else v for key, v in A1111.findall(last)}


def test_parameters_are_what_a1111_reads(tmp_path: Path):
    lines, fields = a1111(saved(tmp_path / "a.png", lora_hashes=["0123456789ab", "ba9876543210"]))
    assert lines == ["a cute corgi <lora:pixel-art-xl:0.8> <lora:other:-1>", "Negative prompt: blurry"]
    assert fields == {
        "Steps": "30",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "6",
        "Seed": "3",
        "Size": "832x1216",
        "Model": "sd_xl_base_1.0",
        "Lora hashes": "pixel-art-xl: 0123456789ab, other: ba9876543210",
        "Guidance": "AutoLoRA",
        "gamma": "1.5",
        "w1": "5",
        "w2": "6",
        "start": "0",
        "stop": "0.8",
        "LoRA scales": "0.8 -1",
        "Noise": "torch",
        "Version": "autolora-jax 0.1.0",
    }


def test_whose_text_the_base_model_read_is_said(tmp_path: Path):
    _, fields = a1111(saved(tmp_path / "a.png", base_text="lora"))
    assert fields["Base text"] == "lora"


def test_every_scheduler_has_a_name_that_a1111_knows(tmp_path: Path):
    for solver in SOLVERS:
        _, fields = a1111(saved(tmp_path / f"{solver}.png", scheduler=solver))
        # TCD is a sampler of extensions alone; sd_samplers_kdiffusion.py and sd_samplers_timesteps.py have the others
        assert fields["Sampler"] in {"DDIM", "Euler", "Euler a", "DPM++ 2M", "DPM++ 2M SDE", "UniPC", "LCM", "TCD"}
        spacing = solver.rpartition("_")[2].capitalize()
        assert fields.get("Schedule type") == (spacing if spacing in {"Karras", "Exponential", "Beta"} else None)


@pytest.mark.parametrize(
    ("rule", "shown", "cfg_scale"),
    [
        (NoGuidance(), {"Guidance": "NoGuidance"}, "1"),
        (CFG(7.0), {"guidance w": "7"}, "7"),
        (AutoGuidance(1.8), {"guidance w": "1.8"}, "1"),
        (PersonalizationGuidance(4.0, 0.3), {"guidance w": "4", "omega": "0.3"}, "4"),
    ],
)
def test_every_rule_has_its_values(rule: Rule, shown: dict[str, str], cfg_scale: str, tmp_path: Path):
    _, fields = a1111(saved(tmp_path / "a.png", guidance=rule))
    assert shown.items() <= fields.items()
    assert fields["CFG scale"] == cfg_scale


def test_without_lora_and_negative_prompt_nothing_is_said_of_them(tmp_path: Path):
    path = saved(tmp_path / "a.png", loras=[], lora_scales=[], negative_prompt=None, scheduler="euler", clip_skip=0)
    lines, fields = a1111(path)
    assert lines == ["a cute corgi"]
    assert fields["Sampler"] == "Euler" and fields["Clip skip"] == "2"
    assert not {"Schedule type", "Lora hashes", "LoRA scales"} & fields.keys()


@pytest.mark.parametrize(
    "prompt", ["süß, γ 猫 😀", 'two\nlines: "a", b', "Steps: 1, Seed: 2", "broken \udcff terminal"]
)
def test_any_text_comes_back(prompt: str, tmp_path: Path):
    path = saved(tmp_path / "a.png", prompt=prompt, model='odd, "name": x')
    read = pictures.read_settings(path)
    assert read["prompt"] == prompt
    assert read["guidance"] == {"rule": "autolora", "gamma": 1.5, "w1": 5.0, "w2": 6.0, "start": 0.0, "stop": 0.8}
    assert {**read, "size": tuple(read["size"]), "guidance": settings()["guidance"]} == settings(
        prompt=prompt, model='odd, "name": x'
    )
    _, fields = a1111(path)
    assert fields["Seed"] == "3" and fields["Model"] == 'odd, "name": x'


def test_pixels_come_back(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    with Image.open(saved(tmp_path / "a.png", Image.fromarray(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_other_pictures_say_nothing(tmp_path: Path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(ValueError, match="says nothing about how it was made"):
            pictures.read_settings(tmp_path / name)


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_overwritten_unasked(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links here")))
    path = saved(tmp_path / "a.png", seed=1)
    with pytest.raises(FileExistsError) as e:
        saved(path, seed=2)
    assert e.value.filename == str(path)
    assert pictures.read_settings(path)["seed"] == 1
    pictures.save_png(path, Image.new("RGB", (8, 8)), settings(seed=2), overwrite=True)
    assert pictures.read_settings(path)["seed"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Image.Image, file: Any, *_: Any, **__: Any) -> None:
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left on device") as e:
        saved(tmp_path / "a.png")
    assert e.value.filename == str(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_lora_hash_is_of_the_data_alone(tmp_path: Path):
    data = b"\x01\x02" * 100
    hashes = []
    for header in (b"{}", b'{"__metadata__":{"a":"b"}}'):
        path = tmp_path / f"{len(header)}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        hashes.append(pictures.lora_hash(path))
    assert hashes == [hashlib.sha256(data).hexdigest()[:12]] * 2


def flat(*shades: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    return [Image.new("RGB", size, (shade, 0, 255 - shade)) for shade in shades]


def found(picture: Image.Image, shade: int) -> tuple[int, ...]:
    """Bounding box of one of the flat pictures."""
    y, x = np.nonzero((np.asarray(picture) == (shade, 0, 255 - shade)).all(-1))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_the_grid_places_pictures_by_column_and_row(tmp_path: Path):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, flat(30, 40), strict=True):
        image.save(file)
    picture = comparison_grid([("Base", flat(10, 20)), ("AutoLoRA", files)], ["seed 0", "seed 1"])
    boxes = {shade: found(picture, shade) for shade in (10, 20, 30, 40)}
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.values()} == {(3 * 96, 3 * 64)}  # small: enlarged
    assert boxes[10][0] == boxes[20][0] < boxes[30][0] == boxes[40][0]
    assert boxes[10][1] == boxes[30][1] < boxes[20][1] == boxes[40][1]
    pixels = np.asarray(picture)
    x0, y0 = boxes[10][:2]
    assert (pixels[:y0] < 100).any() and (pixels[y0:, : x0 - 1] < 100).any()  # ink above and beside
    assert (pixels[:, -4:] == 255).all() and (pixels[-4:] == 255).all()  # margins


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (1024, 768)])
def test_long_labels_stay_in_their_place(size: tuple[int, int]):
    label = "a mermaid on a throne of coral, " * 20 + "Donaudampfschifffahrtsgesellschaft" * 3 + " 猫"
    picture = comparison_grid([(label, flat(10, 20, size=size)), ("", flat(30, 40, size=size))], [label, ""])
    for shade in (10, 20, 30, 40):  # no letter lies on a picture
        x0, y0, x1, y1 = found(picture, shade)
        assert (x1 - x0) % size[0] == 0 and (y1 - y0) * size[0] == (x1 - x0) * size[1]
        assert (np.asarray(picture)[y0:y1, x0:x1] == (shade, 0, 255 - shade)).all()


def test_a_number_stays_with_its_name():
    font = ImageFont.load_default(12)
    for width in (70, 90, 110, 130):
        lines = grid._wrap("AutoLoRA, γ 1.5, LoRA scale 0.5, seed 7", font, width, 9)
        assert not any(re.match(r"-?\d", line) for line in lines) and " ".join(lines).endswith("seed 7")


def test_large_grids_are_shrunk():
    picture = comparison_grid([("a", flat(*[10] * 40, size=(512, 512)))], [str(i) for i in range(40)])
    assert 0.8 * grid.LARGEST < picture.height <= grid.LARGEST


def test_uneven_columns_are_refused():
    for columns, rows in ([("a", flat(1)), ("b", flat(1, 2))], ()), ([("a", [])], ()), ([("a", flat(1))], ("x", "y")):
        with pytest.raises(ValueError, match="give each as many"):
            comparison_grid(columns, rows)
    with pytest.raises(ValueError, match=r"\(8, 8\), the first is \(96, 64\)"):
        comparison_grid([("a", flat(1)), ("b", flat(1, size=(8, 8)))])


def test_greek_letters_and_signs_are_spelled_where_the_font_has_none():
    assert grid._drawable("γ = 1.5 − ω × é“x” 猫猫") == 'gamma = 1.5 - omega x e"x" ?'
