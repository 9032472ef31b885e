"""What a user of diffusers would write works, or is answered by what to write; and what a notebook shows."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import ExifTags, Image

from autolora_jax import CFG, AutoLoRAPipeline, ConfigError, Output
from autolora_jax.pictures import Picture, read_settings, told
from autolora_jax.settings import GenerateConfig, ModelConfig
from autolora_jax.settings.model import full_dtype


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def drawn(pipe: AutoLoRAPipeline) -> Output:
    return pipe(["a <cat>", "the dog"], seeds=[3, 2**40], num_inference_steps=1, height=64, width=64)


# What stands in diffusers' documentation, as it is written there -> the answer; None: it works.
LINES: dict[str, str | None] = {
    'pipe("a cat", num_inference_steps=1, height=64, width=64).images[0].save(path)': None,
    'pipe(["a cat", "the dog"], negative_prompt="mist", num_inference_steps=1, height=64, width=64).images[1]': None,
    'pipe("a cat", guidance_scale=7.5)': r"guidance=CFG\(7.5\)",
    'pipe("a cat", generator=torch.Generator("cpu").manual_seed(0))': 'seeds=…, with noise="torch"',
    'pipe("a cat", num_images_per_prompt=4)': r"seeds=range\(n\)",
    'pipe("a cat", cross_attention_kwargs={"scale": 0.7})': "lora_scale=0.8",
    'pipe("a cat", callback_on_step_end=print)': "on_progress=",
    'pipe("a cat", output_type="pt")': "there are pil, np, latent",
    "pipe(**pipe.encode_prompt('a cat')._asdict(), num_inference_steps=1, height=64, width=64).images[0]": None,
    'pipe.to("cuda")': "devices=",
    'pipe.load_lora_weights("loras", weight_name="style.safetensors", adapter_name="style")': r"load_lora\(file, scale",
    'pipe.set_adapters(["style"], adapter_weights=[0.8])': "no LoRA 'style' is loaded; there are none",
    "pipe.get_active_adapters()": None,
    "pipe.get_list_adapters()": "pipe.loras",
    "pipe.fuse_lora(lora_scale=0.7)": "autolora merge",
    "pipe.unload_lora_weights()": r"unload_lora\(\)",
    "pipe.enable_model_cpu_offload()": "weight_shards",
    "pipe.enable_vae_slicing()": "by themselves",
    "pipe.enable_xformers_memory_efficient_attention()": "by itself",
    "pipe.set_progress_bar_config(disable=True)": None,
    "EulerDiscreteScheduler.from_config(pipe.scheduler.config)": "scheduler= of a call",
    "torch.compile(pipe.unet)": "pipe.denoiser, which is compiled at the first call",
    "AutoLoRAPipeline.from_pretrained(folder, torch_dtype=torch.float16)": 'dtype="bfloat16"',
    "AutoLoRAPipeline.from_pretrained(folder, use_safetensors=True)": "nothing else is ever read",
    'AutoLoRAPipeline.from_single_file(folder, dtype="float32").name': None,
    # And what they may take from here at first.
    'pipe("a cat", guidance=7.5)': r"should be a rule: CFG\(7.5\), or AutoLoRA\(w1=7.5",
    'pipe("a cat", seed=1)': "seeds=3, or several",
    'pipe("a cat", num_inferense_steps=3)': "did you mean num_inference_steps",
    "pipe.anything": "no 'anything'$",
}


@pytest.mark.parametrize(("line", "answer"), LINES.items(), ids=list(LINES))
def test_lines_of_diffusers_work_or_are_answered(pipe, small_folder, tmp_path, line: str, answer: str | None):
    names = dict(pipe=pipe, torch=torch, EulerDiscreteScheduler=EulerDiscreteScheduler, path=tmp_path / "cat.png")
    names |= dict(AutoLoRAPipeline=AutoLoRAPipeline, folder=small_folder)
    if answer is None:
        eval(line, names)
        return
    with pytest.raises((TypeError, AttributeError, ValueError), match=answer):
        eval(line, names)


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
    assert repr(latents).endswith("pipe.decode makes pictures: .images float32 [1, 8, 8, 4], .settings")
    assert repr(drawn).startswith("Output of 4 pictures: .images")


def test_a_grid_has_a_column_a_prompt(drawn: Output):
    wide, tall = drawn.grid().size
    assert wide > 2 * 64 and tall > 2 * 64
    uneven = Output(drawn.images[:3], drawn.settings[:3])
    with pytest.raises(ValueError, match="same seeds in all columns"):
        uneven.grid()


def test_a_notebook_shows_pictures_with_captions(pipe, drawn: Output):
    page = drawn._repr_html_()
    assert page is not None and page.count("data:image/png;base64,") == 4
    assert "a &lt;cat&gt;" in page and "seed 3, CFG w 5<br>" not in page and "seed 3, CFG w 5<" in page
    assert page.count("width:192px") == 4 and 'alt="the dog"' in page
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
