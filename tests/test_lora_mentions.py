"""<lora:name:0.8> in prompts: read as A1111 reads it, found in a folder, and the same as a LoRA that is loaded."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, ConfigError
from autolora_jax.batch import Job, Settings, draw_job, read_manifest
from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.pictures import parameters, read_settings
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.text.mentions import mentions, read_mentions
from tests.lora_reference import random_lora
from tests.programs import autolora

CALL = dict(prompt_syntax="a1111", num_inference_steps=2, height=64, width=64, output_type="latent", seeds=[1])


@pytest.fixture(scope="module")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs, one a folder deeper and with another name in its header."""
    folder = tmp_path_factory.mktemp("loras")
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    random_lora(theirs, seed=3, strength=0.5).save(folder / "ink.safetensors", "kohya_sgm")
    (folder / "deep").mkdir()
    deep = random_lora(theirs, seed=4, strength=0.5).save(folder / "deep" / "run-07.safetensors", "kohya_sgm")
    with safe_open(deep, "numpy") as file:
        header = file.metadata() or {}
    save_file(load_file(deep), deep, {**header, "ss_output_name": "soft wash"})
    return folder


@pytest.fixture
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


def latents(pipe: AutoLoRAPipeline, prompt: Any, **more: Any) -> np.ndarray:
    return pipe(prompt, **{**CALL, **more}).images


@pytest.mark.parametrize(
    ("text", "left", "found"),
    [
        ("a cat <lora:zib:0.8>", "a cat", [("zib", 0.8)]),
        ("<lora:zib>a cat, <lyco:b c:-1>dog", "a cat, dog", [("zib", 1.0), ("b c", -1.0)]),
        ("a <lora:zib:0.5:0.5>", "a", [("zib", 0.5)]),
        ("a <lora:zib:te=0.5:unet=0.5>", "a", [("zib", 0.5)]),
        ("a <lora:zib:te=0.5>", "a", [("zib", 0.5)]),
        ("a <b> cat", "a <b> cat", []),
    ],
)
def test_names_are_read_as_a1111_does(text: str, left: str, found: list[tuple[str, float]]):
    assert mentions(text) == (left, tuple(found))
    assert mentions(text, "plain") == mentions(text, "comfy") == (text, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a <lora:zib:0.8:0.5>", "text encoders at 0.8 and the denoiser at 0.5; .*<lora:zib:0.5>"),
        ("a <lora:zib:unet=0.5>", "text encoders at 1 and the denoiser at 0.5"),
        ("a <lora:zib:much>", "should be a number, as in <lora:zib:0.8>"),
        ("a <lora:zib:nan>", "a finite number"),
        ("a <lora:zib:1:1:4>", "dyn is not read here"),
        ("a <lora:zib:1:lbw=X>", "lbw is not read here"),
        ("a <lora:zib:1:1:1:1>", "is not read here"),
    ],
)
def test_names_with_more_than_a_strength_are_refused(text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        mentions(text)


def test_files_are_found_by_their_names(folder: Path, tmp_path: Path):
    texts = ["a <lora:ink:0.5> <lora:soft wash>", "b <lora:run-07:2> <lora:run-07:-0.5>", "c"]
    named = read_mentions(texts, "a1111", str(folder))
    ink, wash = folder / "ink.safetensors", folder / "deep" / "run-07.safetensors"
    assert named == (["a", "b", "c"], [ink, wash], [{ink: 0.5, wash: 1.0}, {wash: 1.5}, {}])
    with pytest.raises(ConfigError, match=r"names the LoRA 'inc', which is no one file of .*; there are .*run-07"):
        read_mentions(["a <lora:inc>"], "a1111", str(folder))
    with pytest.raises(ConfigError, match="names the LoRA 'ink': say which folder it is in, lora_dir='loras'"):
        read_mentions(["a <lora:ink>"], "a1111", None)
    with pytest.raises(ConfigError, match=r"holds no \.safetensors file"):
        read_mentions(["a <lora:ink>"], "a1111", str(tmp_path))
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ink.safetensors").write_bytes(ink.read_bytes())
    with pytest.raises(ConfigError, match=r"no one file of .*; there are .*x/ink.safetensors, .*rename one"):
        read_mentions(["a <lora:ink>"], "a1111", str(tmp_path))


def test_a_prompt_that_names_them_is_one_with_them_loaded(pipe, folder: Path, small_folder: Path):
    where = dict(lora_dir=str(folder))
    named = latents(pipe, ["a cat <lora:ink:0.7>", "a cat", "a cat <lora:soft wash:0.4><lora:ink:-0.5>"], **where)
    own = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    own.load_lora(folder / "ink.safetensors")
    own.load_lora(folder / "deep" / "run-07.safetensors")
    scales = [[0.7, 0.0], [0.0, 0.0], [-0.5, 0.4]]
    np.testing.assert_array_equal(named, latents(own, ["a cat"] * 3, lora_scale=scales, seeds=[1, 1, 1], paired=True))
    assert len({row.tobytes() for row in named}) == 3
    # They are of the prompts that name them: the next call knows nothing of them.
    bare = pipe("a cat", **CALL)
    assert bare.settings[0]["loras"] == [] and pipe.reports == []
    np.testing.assert_allclose(bare.images[0], latents(pipe, "a cat", guidance=CFG(5.0))[0])
    # A LoRA that was loaded stays, before and behind.
    pipe.load_lora(folder / "ink.safetensors", 0.3)
    both = pipe("a cat <lora:soft wash:0.4>", **CALL, **where)
    np.testing.assert_array_equal(both.images, latents(own, "a cat", lora_scale=[[0.3, 0.4]]))
    told = both.settings[0]
    assert (told["prompt"], told["loras"], told["lora_scales"]) == (
        "a cat",
        ["ink", "run-07"],
        pytest.approx([0.3, 0.4]),
    )
    assert parameters(told).startswith("a cat <lora:ink:0.3> <lora:run-07:0.4>\n")
    pipe.load_lora(folder / "deep" / "run-07.safetensors", 0.4)
    assert [report.name for report in pipe.reports] == ["ink", "run-07"]
    np.testing.assert_array_equal(latents(pipe, "a cat"), both.images)


def test_a_call_says_what_it_says_of_all_loras(pipe, folder: Path):
    where = dict(lora_dir=str(folder))
    out = pipe(["a <lora:ink>", "a <lora:soft wash:0.2>", "a"], lora_scale=0.6, **CALL, **where)
    assert [(row["loras"], row["lora_scales"]) for row in out.settings] == [
        (["ink"], pytest.approx([0.6])),
        (["run-07"], pytest.approx([0.6])),
        ([], []),
    ]
    with pytest.raises(ValueError, match=r"lora_scale has shape \(2,\) beside LoRAs that prompts name"):
        pipe("a <lora:ink>", lora_scale=[0.5, 0.6], **CALL, **where)
    with pytest.raises(ConfigError, match="no negative one"):
        pipe("a", "b <lora:ink>", **CALL, **where)
    with pytest.raises(ConfigError, match="no hypernetwork is read"):
        pipe("a <hypernet:ink>", **CALL, **where)
    told = pipe.encode_prompt("a <lora:ink>", prompt_syntax="a1111", **where)
    assert np.abs(told.prompt_embeds - pipe.encode_prompt("a").prompt_embeds).max() > 1e-3


def test_a_job_gives_each_prompt_its_own(folder: Path, small_folder: Path, tmp_path: Path):
    prompts = ["a cat <lora:ink:0.7>", "a dog", "a cat <lora:soft wash:0.4>", "the dog <lora:ink:0.7>"]
    settings = Settings(
        model=ModelConfig(str(small_folder), dtype="float32"),
        lora_dir=str(folder),
        prompt_syntax="a1111",
        num_inference_steps=2,
        size=(64, 64),
    )
    job = Job(prompts, seeds=(1, 2), settings=settings, batch_size=2)
    assert draw_job(job, tmp_path, devices=jax.devices()[:1]).ok == 8
    rows = read_manifest(tmp_path)
    assert [row["prompt"] for row in rows[::2]] == ["a cat", "a dog", "a cat", "the dog"]
    assert [(row["loras"], row["lora_scales"], row["guidance"]) for row in rows[::2]] == [
        (["ink"], [0.7], "autolora"),
        ([], [], "cfg"),
        (["run-07"], [0.4], "autolora"),
        (["ink"], [0.7], "autolora"),
    ]
    told = read_settings(tmp_path / rows[0]["file"])
    assert (told["prompt"], told["loras"], len(told["lora_hashes"])) == ("a cat", ["ink"], 1)
    # Each set of files is loaded once, and a picture's key is that of the same LoRA in the settings.
    plan = make_plan(job, Sources())
    batches = plan.batches(np.arange(len(plan)), 2)
    assert [sorted({row.prompt for row in plan.rows(batch)}) for batch in batches] == [
        ["a cat"], ["the dog"], ["a dog"], ["a cat"]
    ]  # fmt: skip
    given = Settings(**{**vars(settings), "loras": (Lora(str(folder / "ink.safetensors"), 0.7),), "lora_dir": None})
    alone = make_plan(Job(["a cat"], seeds=(1, 2), settings=given), Sources())
    assert [alone.row(i).key for i in range(2)] == [row["key"] for row in rows[:2]]
    with pytest.raises(ConfigError, match=r"the prompt 'a dog': .*compares a tuned model with its base"):
        make_plan(Job(prompts, settings=Settings(**{**vars(settings), "guidance": AutoLoRA()})), Sources())
    # Where the syntax differs, so does what is encoded.
    mixed = make_plan(Job(prompts[:1], settings=settings, grid={"prompt_syntax": ["a1111", "comfy"]}), Sources())
    assert [mixed.row(i).prompt for i in range(2)] == ["a cat", prompts[0]]
    assert [len(mixed.row(i).recipe.load.loras) for i in range(2)] == [1, 0]


def test_the_command_draws_them(folder: Path, small_folder: Path, tmp_path: Path):
    flags = ["--dtype", "float32", "--steps", "1", "--size", "64x64"]
    flags += ["--prompt-syntax", "a1111", "--lora-dir", str(folder)]
    prompts = ["--prompt", "a cat <lora:ink:0.7>", "--prompt", "a dog"]
    out = tmp_path / "out"
    done = autolora("generate", small_folder, *flags, *prompts, "--out", out, "--compare")
    assert done.exit_code == 0, done.output
    told = [read_settings(path) for path in sorted(out.glob("0*.png"))]
    ink = ("a cat", ["ink"], pytest.approx([0.7]))
    assert [(t["prompt"], t["loras"], t["lora_scales"]) for t in told] == [
        *(ink, ("a cat", [], []), ink),  # AutoLoRA, base, LoRA
        *[("a dog", [], [])] * 3,
    ]
    none = autolora("generate", small_folder, *flags, "--prompt", "a dog", "--out", out, "--compare")
    assert none.exit_code and "no prompt names one" in none.output
    assert told[0]["guidance"]["rule"] == "autolora" and len(told[0]["lora_hashes"][0]) == 12
