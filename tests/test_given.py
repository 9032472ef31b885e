"""Pictures that a call is given: which pixels and cells come of them, and what is refused."""

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from autolora_jax import AutoLoRAPipeline, ConfigError, image_files
from autolora_jax.canvas import Canvas
from autolora_jax.config import SchedulerConfig
from autolora_jax.given import Originals, read
from autolora_jax.pictures import parameters
from autolora_jax.request import Request
from autolora_jax.settings import CFG, Call, DrawingConfig
from tests.reference_picture import masks, pictures

[IMAGE], [MASK] = pictures(1, 50, 41), masks(1, 50, 41)
SDXL = Canvas(8, 1, 128, 4, 5.0, SchedulerConfig())
SD3 = Canvas(8, 2, 128, 16, 7.0, SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction"))


def request(canvas: Canvas = SDXL, **call: Any) -> Request:
    return Request.of(Call("a", guidance=CFG(), **call), canvas, [])


# ---- what comes of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 40), (96, 64), (50, 41)])  # the last is their own
def test_pixels_and_cells_are_diffusers(size: tuple[int, int]):
    """Bit for bit, resized up, down and not at all."""
    originals = Originals.of(IMAGE, MASK, 1, 1)
    assert originals is not None
    width, height = size
    asked = {"width": width, "height": height}
    processor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False)
    theirs = processor.preprocess(IMAGE, **asked).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(originals.pixels(np.array([0]), size), np.round(theirs * 255))
    processor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    if width % 8 == 0:
        cells = torch.nn.functional.interpolate(processor.preprocess(MASK, **asked), size=(height // 8, width // 8))
        ours = originals.mask(np.array([0]), size, 8)
        assert ours is not None and 0 < ours.mean() < 1
        np.testing.assert_array_equal(ours, cells.permute(0, 2, 3, 1).numpy())


def test_a_picture_is_the_same_from_anywhere(tmp_path: Path):
    array = np.asarray(IMAGE)
    IMAGE.save(tmp_path / "a.png")
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), IMAGE, array, array / 255, (array / 255).astype(np.float16)]
    given = [read(source, "image") for source in sources]
    assert all(one.picture.tobytes() == IMAGE.tobytes() for one in given[:-1])
    assert np.abs(np.asarray(given[-1].picture).astype(int) - array).max() <= 1
    assert [one.name for one in given] == ["a.png", "a.png", None, None, None, None]
    assert given[0].sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert given[2].sha256 == given[3].sha256 == given[4].sha256 != given[0].sha256
    grey = np.asarray(MASK)
    assert {read(mask, "mask").sha256 for mask in (MASK, grey, grey[..., None], grey / 255)} == {read(MASK, "").sha256}
    assert np.asarray(read(grey > 127, "mask").picture).max() == 255
    see_through = Image.new("RGBA", (16, 16), (9, 9, 9, 0))
    assert read(see_through, "mask").picture.getpixel((0, 0)) == (255, 255, 255)


def test_one_for_all_one_a_prompt_or_one_a_picture():
    several = pictures(6, 24, 16)

    def drawn(given: Any) -> list[int]:
        originals = Originals.of(given, None, 3, 2)
        assert originals is not None
        return [[one.tobytes() for one in several].index(each.picture.tobytes()) for each in originals.images]

    assert drawn(several[4]) == drawn([several[4]]) == [4] * 6
    assert drawn(several[:3]) == [0, 0, 1, 1, 2, 2]
    assert drawn(several) == drawn(np.stack([np.asarray(one) for one in several])) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match=r"image has 2 pictures; give one, 3 \(one a prompt\) or 6 \(one a picture\)"):
        Originals.of(several[:2], None, 3, 2)


def test_the_picture_decides_the_size_unless_one_is_given():
    assert request(image=IMAGE).call.size == (48, 40)
    assert request(SD3, image=IMAGE).call.size == (48, 32)
    assert request(image=IMAGE, width=64).call.size == (64, 40)
    assert request(image=IMAGE, size=(64, 32)).call.size == (64, 32)
    assert request(SD3, image=Image.new("RGB", (9, 300))).call.size == (16, 288)
    assert request().call.size == (1024, 1024)
    two = [IMAGE, Image.new("RGB", (64, 64))]
    with pytest.raises(ConfigError, match="pictures of several sizes; give one size"):
        request(image=two, seeds=(0, 1))
    assert request(image=two, seeds=(0, 1), size=(32, 32)).call.size == (32, 32)


def test_strength_is_diffusers_where_none_is_given():
    for canvas, plain, masked in ((SDXL, 0.3, 0.9999), (SD3, 0.6, 0.6)):
        assert request(canvas, image=IMAGE).call.strength == plain
        assert request(canvas, image=IMAGE, mask_image=MASK).call.strength == masked
        assert request(canvas, image=IMAGE, mask_image=MASK, strength=0.5).call.strength == 0.5
        assert request(canvas).call.strength is None
    assert (
        request(image=IMAGE, strength=0.3).plan.table.shape[1]
        == SDXL.steps(DrawingConfig(strength=0.3, num_inference_steps=30))
        == 9
    )


def test_what_it_was_made_from_is_told(tmp_path: Path):
    IMAGE.save(tmp_path / "a, b.png")
    asked = request(image=str(tmp_path / "a, b.png"), mask_image=MASK, strength=0.55, scheduler="euler")
    [told] = asked.settings()
    assert (told["image"], told["mask"], told["strength"]) == ("a, b.png", None, 0.55)
    line = parameters({**told, "model": "m", "loras": [], "lora_scales": []})
    digest = hashlib.sha256((tmp_path / "a, b.png").read_bytes()).hexdigest()
    assert "Denoising strength: 0.55, " in line
    assert f'Image: "a, b.png", Image hash: {digest[:12]}, Mask hash: ' in line
    [plain] = request(scheduler="euler").settings()
    assert not {"image", "image_sha256", "mask", "mask_sha256"} & plain.keys() and plain["strength"] is None


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no file": ({"image": "none.png"}, "image none.png can't be read: No such file"),
    "a folder": ({"image": "."}, "image . can't be read: it is a folder and no file"),
    "no picture": ({"image": b"text"}, "image bad.png is no picture in any of the formats PNG, JPEG"),
    "a cut picture": ({"image": b"cut"}, "image bad.png can't be decoded"),
    "no array of a picture": (
        {"image": np.zeros((3, 16, 16))},
        r"image should be a path, .* not ndarray of shape \(3, 16",
    ),
    "no picture at all": ({"image": 5}, "image should be a path, a PIL image or an array .* not int"),
    "levels as floats": ({"image": np.full((16, 16, 3), 200.0)}, "image holds 200.0 to 200.0; floats should be from 0"),
    "not a number": ({"image": np.full((16, 16, 3), np.nan)}, "image holds nan to nan; floats should be from 0 to 1"),
    "numbers": ({"image": np.zeros((16, 16, 3), np.int64)}, "image holds int64; uint8, or floats from 0 to 1"),
    "a small one": ({"image": Image.new("RGB", (4, 50))}, "image is 50 × 4 pixels; at least 8 × 8"),
    "floating point": ({"image": Image.new("F", (50, 50))}, "image holds floating point, whose white is unknown"),
    "another mask": ({"mask_image": Image.new("L", (41, 50))}, "mask_image is 41x50 pixels, the picture 50x41; they"),
    "a mask alone": ({"image": None, "mask_image": MASK}, "mask_image says which part .*: give image=, too"),
    "strength alone": ({"image": None, "strength": 0.5}, "strength = 0.5 is how much a given picture .*: give image="),
    "much strength": ({"strength": 1.5}, "strength = 1.5 should be between 0 and 1"),
    "no strength": ({"strength": 0.0}, "strength = 0.0 leaves none of 30 steps; at least 0.0334 is needed"),
    "little strength": ({"strength": 0.03}, "strength = 0.03 leaves none of 30 steps"),
    "none": ({"image": []}, r"image has 0 pictures; give one, 1"),
    "too many": ({"image": [IMAGE] * 3}, r"image has 3 pictures; give one, 1 \(one a picture\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes, words = REFUSED[name]
    if isinstance(image := changes.get("image"), bytes):
        file = BytesIO()
        IMAGE.save(file, "PNG")
        (tmp_path / "bad.png").write_bytes(image if image == b"text" else file.getvalue()[:-200])
        changes = {"image": "bad.png"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        request(**{"image": IMAGE, **changes})


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("1", (3000, 3000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(image_files, "LARGEST", 1000 * 1000)
    with warnings.catch_warnings(), pytest.raises(ConfigError, match=r"bomb.png is 3000 × 3000 pixels, more than"):
        warnings.simplefilter("error")
        request(image=tmp_path / "bomb.png")


def test_what_diffusers_has_beside_it_is_answered():
    for name, words in (("padding_mask_crop", "crop image="), ("denoising_start", "strength=")):
        with pytest.raises(TypeError, match=words):
            AutoLoRAPipeline.__call__(None, "a", **{name: 1})
