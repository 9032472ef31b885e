"""What a user of diffusers would write works, or is answered by what to write; and what a notebook shows."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from autolora_jax import CFG, AutoLoRAPipeline, ConfigError, Output
from autolora_jax.pictures import Picture, read_settings, told
from autolora_jax.settings import GenerateConfig, ModelConfig
from autolora_jax.settings.pictures import full_dtype


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def drawn(pipe: AutoLoRAPipeline) -> Output:
    return pipe(["a <cat>", "the dog"], seeds=[3, 2**40], num_inference_steps=1, height=64, width=64)


# Ten calls as they stand in diffusers' documentation; here None is: it works.
CALLS: list[tuple[dict[str, Any], str | None]] = [
    (dict(prompt="a cat", num_inference_steps=1, height=64, width=64), None),
    (dict(prompt=["a cat", "the dog"], negative_prompt="mist", num_inference_steps=1, height=64, width=64), None),
    (dict(prompt="a cat", guidance_scale=7.5), r"guidance=CFG\(7.5\)"),
    (dict(prompt="a cat", guidance=7.5), r"should be a rule: CFG\(7.5\), or AutoLoRA\(w1=7.5"),
    (dict(prompt="a cat", generator=1), 'seeds=…, with noise="torch"'),
    (dict(prompt="a cat", seed=1), "seeds=3, or several"),
    (dict(prompt="a cat", num_images_per_prompt=4), "seeds=range"),
    (dict(prompt="a cat", cross_attention_kwargs={"scale": 0.7}), "lora_scale=0.8"),
    (dict(prompt="a cat", callback_on_step_end=print), "on_progress="),
    (dict(prompt="a cat", output_type="pt"), "there are pil, np, latent"),
    (dict(prompt="a cat", num_inferense_steps=3), "did you mean num_inference_steps"),
]


@pytest.mark.parametrize(("call", "answer"), CALLS, ids=[list(call)[-1] for call, _ in CALLS])
def test_calls_of_diffusers_work_or_are_answered(pipe, call: dict[str, Any], answer: str | None):
    if answer is None:
        assert len(pipe(**call).images) == (1 if isinstance(call["prompt"], str) else 2)
        return
    with pytest.raises((TypeError, ConfigError), match=answer):
        pipe(**call)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("to", "devices="),
        ("load_lora_weights", "load_lora"),
        ("set_adapters", "lora_scale"),
        ("enable_model_cpu_offload", "weight_shards"),
        ("anything", "no 'anything'$"),
    ],
)
def test_methods_of_diffusers_are_answered(pipe, name: str, answer: str):
    with pytest.raises(AttributeError, match=answer):
        getattr(pipe, name)


def test_a_torch_dtype_is_answered():
    with pytest.raises(TypeError, match='torch_dtype is no argument of from_pretrained; here it is dtype="bfloat16"'):
        AutoLoRAPipeline.from_pretrained("builtin", torch_dtype="float16")


def test_a_size_that_no_model_draws_fails_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="size = 100x832 is no multiple of 8 both ways; 96x832 is"):
        GenerateConfig(size=(100, 832))


def test_pictures_that_are_saved_keep_their_settings(drawn: Output, tmp_path: Path):
    drawn.images[1].save(tmp_path / "own.png")
    assert read_settings(tmp_path / "own.png")["seed"] == 2**40
    paths = drawn.save(tmp_path / "all")
    assert [path.name for path in paths] == [
        *("0000-seed3-a-cat.png", f"0001-seed{2**40}-a-cat.png"),
        *("0002-seed3-the-dog.png", f"0003-seed{2**40}-the-dog.png"),
    ]
    assert drawn.save(tmp_path / "all")[0].name == "0004-seed3-a-cat.png"
    with Image.open(paths[3]) as image:
        np.testing.assert_array_equal(image, drawn.images[3])
        assert told(image)["prompt"] == "the dog" and "Seed: 1099511627776" in image.info["parameters"]
    for name in ("own.jpg", "own.webp"):
        drawn.images[0].save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert comment.startswith(b"UNICODE\0") and "Seed: 3" in comment[8:].decode("utf-16-be")


def test_what_is_given_on_saving_is_kept(drawn: Output, tmp_path: Path):
    drawn.images[0].save(tmp_path / "bare.png", pnginfo=None)
    with Image.open(tmp_path / "bare.png") as image:
        assert not image.info
    assert isinstance(drawn.images[0].convert("L"), Image.Image)


def test_arrays_are_saved_alike_and_latents_say_what_to_do(pipe, drawn: Output, tmp_path: Path):
    arrays = Output(np.stack([np.asarray(image) for image in drawn.images]), drawn.settings)
    assert read_settings(arrays.save(tmp_path)[1])["seed"] == 2**40
    latents = Output(np.zeros((1, 8, 8, 4), np.float32), drawn.settings[:1])
    with pytest.raises(ValueError, match=r"pipe\.decode"):
        latents.save(tmp_path)
    assert latents._repr_html_() is None


def test_a_grid_has_a_column_a_prompt(drawn: Output):
    wide, tall = drawn.grid().size
    assert wide > 2 * 64 and tall > 2 * 64
    uneven = Output(drawn.images[:3], drawn.settings[:3])
    with pytest.raises(ValueError, match="same seeds in all columns"):
        uneven.grid()


def test_a_notebook_shows_pictures_with_captions(pipe, drawn: Output):
    page = drawn._repr_html_()
    assert page is not None and page.count("data:image/png;base64,") == 4
    assert "a &lt;cat&gt;" in page and "seed 3" in page and "CFG" in page
    assert "computes in" in pipe._repr_html_() and "float32" in str(pipe)
    many = Output(
        [Picture.of(np.zeros((8, 8, 3), np.uint8), {**drawn.settings[0], "guidance": CFG(2.0)})] * 70,
        [drawn.settings[0]] * 70,
    )
    assert "and 6 more" in (many._repr_html_() or "")


def test_dtypes_go_by_their_short_names_too():
    assert ModelConfig(dtype="fp16", vae_dtype="bf16") == ModelConfig(dtype="float16", vae_dtype="bfloat16")
    assert ModelConfig(dtype=str(torch.float16)).dtype == "float16"
    assert full_dtype(torch.bfloat16) == "bfloat16" and full_dtype(None) is None
    with pytest.raises(ConfigError, match="dtype = 'int8' is not known: there are bfloat16, float16, float32"):
        ModelConfig(dtype="int8")
