"""The program from its command line: pictures on disk, messages, exit codes."""

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, PersonalizationGuidance, pictures
from autolora_jax.cli import generate as drawing
from autolora_jax.pipeline import Output
from autolora_jax.weights.families import SDXL
from tests.programs import autolora

LORA = "small:0.5.safetensors"
SMALL = ["--steps", "2", "--size", "64x32", "--dtype", "float32"]


def settings(**changes: Any) -> dict[str, Any]:
    """What a pipeline says of a picture."""
    numbers = {"steps": 1, "size": (8, 8), "guidance": CFG(), "guidance_rescale": 0.0, "clip_skip": None}
    texts = {"prompt": "a", "negative_prompt": "", "scheduler": "euler", "model": "fake", "noise": "jax"}
    texts["base_text"] = "base"
    return {**numbers, **texts, "loras": [], "lora_scales": [], **changes}


# ---- generate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder that `generate --compare` filled: 5 seeds × 2 prompts, more than the 8 devices draw at once."""
    out = tmp_path_factory.mktemp("compared")
    prompts = ["--prompt", "a cat", "--prompt", "süß, the 猫", "--seeds", "0-3,2147483648"]
    guidance = ["--gamma", "1.7", "--w1", "2", "--compare"]
    lora = ["--lora", f"{small_folder / LORA}:0.7"]
    result = autolora("generate", small_folder, *lora, *prompts, *guidance, *SMALL, "--batch-size", 1, "--out", out)
    return out, result


def test_compare_saves_every_picture_and_a_grid(compared: tuple[Path, Result]):
    out, result = compared
    assert result.exit_code == 0, result.output
    assert result.stdout == f"30 pictures in {out}\n"
    names = sorted(file.name for file in out.iterdir())
    assert len(names) == 32
    assert {"0000-seed0-a-cat-base.png", "0004-seed2147483648-a-cat-lora.png", "config.json", "grid.png"} <= set(names)
    assert "0009-seed2147483648-süß-the-猫-autolora.png" in names
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 3 * 64 and grid.height > 10 * 32


def test_pictures_say_what_they_are(compared: tuple[Path, Result]):
    out, _ = compared
    read = {name: pictures.read_settings(out / f"0001-seed1-a-cat-{name}.png") for name in ("base", "lora", "autolora")}
    assert {name: s["lora_scales"] for name, s in read.items()} == {
        "base": [0.0],
        "lora": [pytest.approx(0.7)],
        "autolora": [pytest.approx(0.7)],
    }
    assert [read["base"]["guidance"][k] for k in ("rule", "w")] == ["cfg", 2.0]
    assert [read["lora"]["guidance"][k] for k in ("rule", "w")] == ["cfg", 5.0]
    assert [read["autolora"]["guidance"][k] for k in ("rule", "gamma", "w1", "w2")] == ["autolora", 1.7, 2.0, 5.0]
    for settings in read.values():
        assert settings["seed"] == 1 and settings["prompt"] == "a cat" and settings["size"] == [64, 32]
    with Image.open(out / "0009-seed2147483648-süß-the-猫-autolora.png") as image:
        first, last = image.info["parameters"].split("\n")
        assert first == "süß, the 猫 <lora:small:0.5:0.7>"
        assert "Steps: 2, Sampler: Euler, CFG scale: 5, Seed: 2147483648, Size: 64x32" in last


def test_pictures_are_the_pipelines(compared: tuple[Path, Result], small_folder: Path):
    out, _ = compared
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32")
    pipe.load_lora(small_folder / LORA, 0.7)
    rule = AutoLoRA(1.7, 2.0, 5.0)
    # As many rows a device as the run had: nothing new to compile.
    call = dict(num_inference_steps=2, width=64, height=32, guidance=rule, batch_size=1, on_progress=lambda _: None)
    expected = pipe(["the dog", "süß, the 猫"], seeds=[0, 1, 2, 2**31], output_type="np", **call).images[-2]
    with Image.open(out / "0007-seed2-süß-the-猫-autolora.png") as image:
        assert np.abs(np.int16(expected) - np.asarray(image)).max() <= 1


def test_the_same_run_again_goes_beside_the_first(compared: tuple[Path, Result], tmp_path: Path):
    first, _ = compared
    out = tmp_path / "again"
    shutil.copytree(first, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    one = ["--config", out / "config.json", "--no-compare", "--out", out, "--batch-size", 1]
    result = autolora("generate", *one)
    assert result.stdout == f"10 pictures in {out}\n"
    after = {file.name: file.read_bytes() for file in out.iterdir()}
    assert before.items() <= after.items()
    new = sorted(after.keys() - before.keys())
    assert new[0] == "0010-seed0-a-cat.png" and new[-1] == "config-0010.json" and len(new) == 11
    assert json.loads(after[new[-1]]) != json.loads(before["config.json"])
    with Image.open(out / "0010-seed0-a-cat.png") as a, Image.open(out / "0000-seed0-a-cat-autolora.png") as b:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


class FakePipeline(AutoLoRAPipeline):
    """Draws dark pictures in batches of two."""

    calls: typing.ClassVar[list[dict[str, Any]]] = []
    loaded: typing.ClassVar[dict[str, Any]] = {}
    embeddings: typing.ClassVar[list[str]] = []
    family = SDXL
    reports: typing.ClassVar[list[Any]] = []  # of LoRAs: there are none

    def __init__(self) -> None:
        pass

    @classmethod
    def from_pretrained(cls, source: str, *, on_progress: Any, **settings: Any) -> "FakePipeline":
        cls.loaded = {"source": source, **settings}
        return cls()

    def load_textual_inversion(self, source: str) -> None:
        self.embeddings.append(source)

    def __call__(self, prompt: list[str], negative_prompt: str | None, **call: Any) -> None:  # type: ignore[override]
        self.calls.append({"prompts": prompt, "negative_prompt": negative_prompt, **call})
        pairs = [{"prompt": text, "seed": seed} for text in prompt for seed in call["seeds"]]
        rows = [settings(steps=call["num_inference_steps"], **pair) for pair in pairs]
        for batch in (rows[i : i + 2] for i in range(0, len(rows), 2)):
            call["on_images"](Output([Image.new("RGB", (8, 8)) for _ in batch], batch))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakePipeline]:
    monkeypatch.setattr(drawing, "AutoLoRAPipeline", FakePipeline)
    FakePipeline.calls.clear()
    return FakePipeline


def test_every_flag_reaches_the_pipeline(fake: type[FakePipeline], tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeff one \n\n# two\r\n", encoding="utf-8")
    for name in ("image", "mask"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    result = autolora(
        *("generate", "model", "-p", "zero", "--prompt-file", prompts, "-n", "none", "--seeds", "7,1-2"),
        *("--guidance", "personalization", "--w", "3", "--omega", ".25", "--start", ".1", "--stop", ".9"),
        *("--slg-layers", "7,8,9", "--slg-scale", "3", "--slg-start", ".02", "--slg-stop", ".3"),
        *("--guidance-rescale", ".5", "--steps", "11", "--size", "832x1216", "--scheduler", "ddim"),
        *("--timestep-spacing", "trailing", "--noise", "torch", "--batch-size", "3", "--clip-skip", "1"),
        *("--max-sequence-length", "77", "--dtype", "float32", "--variant", "fp16", "--tokenizer", "tok"),
        *(
            "--text-encoders-from",
            "clips",
            "--t5",
            "none",
            "--weight-shards",
            "4",
            "--vae-dtype",
            "bfloat16",
            "--base-text",
            "lora",
        ),
        *("--vae", "other", "--prediction-type", "v_prediction", "--no-rescale-betas-zero-snr"),
        *("--embedding", "zib.safetensors", "--embedding", "own:er/wolle"),
        *("--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--strength", ".4"),
        *("--set", "sampler.steps=99", "--set", "seeds = 4", "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert fake.loaded == dict(
        source="model",
        dtype="float32",
        variant="fp16",
        tokenizer="tok",
        revision=None,
        cache_dir=None,
        text_encoders="clips",
        text_encoder_3=None,
        weight_shards=4,
        tuned_weights="auto",
        vae="other",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=False,
        vae_dtype="bfloat16",
        int8=None,
    )
    assert fake.embeddings == ["zib.safetensors", "own:er/wolle"]
    (call,) = fake.calls
    assert [call.pop(name)[0].name for name in ("image", "mask_image")] == ["image.png", "mask.png"]
    assert {key: value for key, value in call.items() if not key.startswith("on_")} == dict(
        strength=0.4,
        prompts=["zero", "one", "# two"],
        negative_prompt=None,
        seeds=(7, 1, 2),
        guidance=PersonalizationGuidance(3.0, 0.25, start=0.1, stop=0.9),
        guidance_rescale=0.5,
        skip_guidance_layers="7-9",
        skip_layer_guidance_scale=3.0,
        skip_layer_guidance_start=0.02,
        skip_layer_guidance_stop=0.3,
        num_inference_steps=11,
        size=(832, 1216),
        scheduler="ddim",
        timestep_spacing="trailing",
        eta=None,
        noise="torch",
        batch_size=3,
        clip_skip=1,
        base_text="lora",
        max_sequence_length=77,
        prompt_syntax="plain",
        prompt_chunks=1,
        lora_scale=None,
        lora_dir=None,
    )
    assert [file.name for file in sorted((tmp_path / "out").glob("0*"))][:4] == [
        "0000-seed7-zero.png",
        "0001-seed1-zero.png",
        "0002-seed2-zero.png",
        "0003-seed7-one.png",
    ]


def test_flags_win_over_set_and_set_over_the_preset(fake: type[FakePipeline], tmp_path: Path):
    preset = tmp_path / "preset.py"
    preset.write_text(
        "from autolora_jax import CFG\n"
        "from autolora_jax.settings import *\n"
        "def get_config():\n"
        "    return GenerateConfig(model=ModelConfig('model'), prompts=('a',), seeds=(1, 2), guidance=CFG(3.0),\n"
        "                          num_inference_steps=5)\n"
    )
    changes = ["--set", "guidance.w=4", "--set", "sampler.steps=6", "--steps", "7", "--out", tmp_path / "out"]
    assert autolora("generate", "--config", preset, *changes).exit_code == 0
    (call,) = fake.calls
    assert (call["seeds"], call["guidance"], call["num_inference_steps"]) == ((1, 2), CFG(4.0), 7)


def test_overwrite_numbers_from_zero(fake: type[FakePipeline], tmp_path: Path):
    run = ["generate", "model", "--prompt", "a", "--out", tmp_path]
    for more, names in (
        (["--steps", 3], ["0000-seed0-a.png", "config.json"]),
        (["--steps", 4, "--overwrite"], ["0000-seed0-a.png", "config.json"]),
        (["--steps", 5], ["0000-seed0-a.png", "0001-seed0-a.png", "config-0001.json", "config.json"]),
    ):
        assert autolora(*run, *more).exit_code == 0
        assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert [pictures.read_settings(file)["steps"] for file in sorted(tmp_path.glob("*.png"))] == [4, 5]


def test_a_strangers_config_is_left_alone(fake: type[FakePipeline], tmp_path: Path):
    (tmp_path / "config.json").write_text("mine")
    assert autolora("generate", "model", "--prompt", "a", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "config.json").read_text() == "mine"
    assert (tmp_path / "config-0000.json").exists()


def test_two_runs_in_one_folder_do_not_replace_each_other(tmp_path: Path):
    one, two = (drawing.PictureFolder(tmp_path, overwrite=False) for _ in range(2))
    for i in range(3):
        one.save(i, "a", Image.new("RGB", (8, 8)), settings(seed=1))
        two.save(i, "a", Image.new("RGB", (8, 8)), settings(seed=2))
    assert len(set(one.saved + two.saved)) == 6
    assert all(pictures.read_settings(file)["seed"] == 1 for file in one.saved)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/0002.png"), "No space left on device: out/0002.png", 1),
        (KeyboardInterrupt(), "Stopped. 2 of 4", 130),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes"), "Use a smaller --batch-size", 1),
    ],
)
def test_a_run_that_breaks_off_says_what_is_saved(
    fake: type[FakePipeline],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    message: str,
    code: int,
):
    saves: list[Path] = []

    def save(path: Path, *arguments: Any) -> None:
        saves.append(path)
        if len(saves) == 3:
            raise error
        pictures.save_png(path, *arguments)

    monkeypatch.setattr("autolora_jax.output.save_png", save)
    result = autolora("generate", "model", "--prompt", "a", "--seeds", "0-3", "--out", tmp_path)
    assert result.exit_code == code
    last = result.stderr.splitlines()[-1]
    assert message in last and f"2 of 4 pictures are saved in {tmp_path}" in last
    assert result.stdout == ""


def test_without_a_model_the_builtin_one_draws_and_says_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = autolora("generate", "--steps", 2, "--size", "32x32", "--seeds", "0-1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "12 pictures in" in result.stdout and (tmp_path / "out" / "grid.png").is_file()
    assert f"Look at {tmp_path / 'out' / 'grid.png'}: a zib, which only the LoRA knows" in result.stderr
    tries = re.findall(r"^    autolora (\w+)(.*)$", result.stderr, re.MULTILINE)
    assert len(tries) == 3
    for name, rest in tries:
        monkeypatch.setattr(import_module(f"autolora_jax.cli.{name}"), "run", lambda asked: None)
        assert autolora(name, *shlex.split(rest)).exit_code == 0


# ---- what can go wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model"], "Give a --prompt, a --prompt-file, or --embeds"),
        (["model", "--prompt", "a", "--compare"], "add --lora FILE"),
        (["model", "--prompt", "a", "--gamma", "2"], "guidance.gamma is not a setting of CFG"),
        (["model", "--prompt", "a", "--set", "step=2"], "did you mean num_inference_steps?"),
        (["model", "--prompt", "a", "--set", "steps"], "should be NAME=VALUE"),
        (["model", "--prompt", "a", "--size", "1024"], "WIDTHxHEIGHT"),
        (["model", "--prompt", "a", "--config", "none.py"], "none.py is not a file"),
        (["model", "--prompt-file", "none.txt"], "No such file or directory: none.txt"),
        (["model", "--prompt", "a", "--steps", "x"], "Invalid value for '--steps'"),
        (["model", "--prompt", "a", "--stepz", "1"], "No such option"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], message: str):
    result = autolora("generate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_prompt_files_must_be_text(tmp_path: Path):
    for content, message in ((b"\xff\xfe", "is not UTF-8 text"), (b"\n \n", "holds no prompt")):
        (tmp_path / "p.txt").write_bytes(content)
        result = autolora("generate", "model", "--prompt-file", tmp_path / "p.txt")
        assert result.exit_code == 2 and message in result.stderr


def test_failures_are_one_line_and_a_traceback_only_for_debug(small_folder: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"not a safetensors file")
    run = ["generate", small_folder, "--prompt", "a", "--out", tmp_path / "out"]
    for changes, message in (
        (["--out", file / "below"], "Not a directory"),
        (["--lora", file], "it is not a safetensors file"),
        (["--lora", tmp_path / "none.safetensors"], "does not exist"),
    ):
        result = autolora(*run, *changes)
        assert result.exit_code == 1
        assert message in result.stderr and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
        assert result.stdout == ""
    assert autolora("generate", tmp_path / "none", "--prompt", "a", "--out", tmp_path / "out").exit_code == 1
    debug = autolora(*run, "--lora", file, "--debug")
    assert debug.exit_code == 1 and type(debug.exception).__name__ == "WeightsError"


# ---- help, info, convert ---------------------------------------------------------------------------------------------


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from autolora_jax.cli import app; app(['generate', '--help'], standalone_mode=False)\n"
        "slow = {'jax', 'numpy', 'transformers', 'torch', 'PIL'} & sys.modules.keys(); assert not slow, slow"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--guidance-rescale" in result.stdout and "Examples" in result.stdout


def test_info(small_folder: Path, compared: tuple[Path, Result], tmp_path: Path):
    assert "SDXL, diffusers folder" in autolora("info", small_folder).stdout
    described = json.loads(autolora("info", small_folder, "--json").stdout)
    assert described["loads"] and described["components"]["unet"]["dtypes"].keys() == {"F32"}
    lora = json.loads(autolora("info", small_folder / LORA, "--json").stdout)
    assert lora["loads"] and lora["lora"]["modules"]["unet"] > 0
    picture = compared[0] / "0000-seed0-a-cat-base.png"
    assert json.loads(autolora("info", picture).stdout) == pictures.read_settings(picture)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    bad = autolora("info", tmp_path / "bad.safetensors")
    assert bad.exit_code == 1 and "not a safetensors file" in bad.stdout


def test_convert(small_folder: Path, tmp_path: Path):
    result = autolora("convert", small_folder, tmp_path / "converted", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'converted'}\n"
    assert "converted folder" in autolora("info", tmp_path / "converted").stdout
    again = autolora("convert", small_folder, tmp_path / "converted")
    assert again.exit_code == 1 and str(tmp_path / "converted") in again.stderr


def test_version():
    assert autolora("--version").stdout == "autolora-jax 0.1.0\n"
