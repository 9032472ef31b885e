"""Embeddings from files: the command line and jobs draw of them what a call draws of their texts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from autolora_jax import AutoLoRAPipeline, ConfigError, read_embeds, write_embeds
from autolora_jax.batch import Job, Prompt, Settings, draw_job, read_manifest
from autolora_jax.batch.prompts import read_prompts
from autolora_jax.pictures import read_settings
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.text.embeds import Embeds
from tests.batch_jobs import plan_of
from tests.parity import error
from tests.programs import autolora

DEVICES = jax.devices()[:1]
LORA = "small:0.5.safetensors"
TEXTS = ["a cat, the dog", "the mist"]
SHAPES = {"prompt_embeds": (2, 3, 4), "pooled_prompt_embeds": (2, 5)}


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=DEVICES)
    pipe.load_lora(small_folder / LORA)
    return pipe


@pytest.fixture
def folder(pipe: AutoLoRAPipeline, tmp_path: Path) -> Path:
    """both.safetensors of TEXTS with their negative prompt, one.safetensors of the second without, for each model."""
    scales = {"base": 0.0, "lora": None}
    told = {kind: pipe.encode_prompt(TEXTS, "the dog", lora_scale=scale) for kind, scale in scales.items()}
    write_embeds(tmp_path / "both.safetensors", told)
    each = {kind: pipe.encode_prompt("the mist", lora_scale=scale)._asdict() for kind, scale in scales.items()}
    tensors = {
        f"{name}.{kind}": torch.from_numpy(np.array(array))
        for kind, told in each.items()
        for name, array in told.items()
        if not name.startswith("negative")
    }
    save_file(tensors, tmp_path / "one.safetensors")
    return tmp_path


def small(folder: Path, **changes: Any) -> Settings:
    model = ModelConfig(source=str(folder), dtype="float32")
    loras = (Lora(str(folder / LORA)),)
    usual = {"model": model, "loras": loras, "num_inference_steps": 2}
    return dataclasses.replace(Settings(), **{**usual, **changes})


def test_a_file_holds_what_was_written(folder: Path, pipe: AutoLoRAPipeline, tmp_path: Path):
    each, expected = read_embeds(folder / "both.safetensors"), pipe.encode_prompt(TEXTS, "the dog")
    assert each.keys() == set(Embeds._fields)
    assert all(np.array_equal(each[name]["lora"], array) for name, array in expected._asdict().items())
    write_embeds(tmp_path / "all.safetensors", expected)
    told = read_embeds(tmp_path / "all.safetensors")
    assert all(np.array_equal(told[name], array) for name, array in expected._asdict().items())
    # As torch's users keep them.
    halves = {name: torch.from_numpy(array).to(torch.bfloat16) for name, array in told.items()}
    save_file(halves, tmp_path / "half.safetensors")
    half = read_embeds(tmp_path / "half.safetensors")
    assert error(half["prompt_embeds"], halves["prompt_embeds"].float().numpy()) == 0
    assert half["prompt_embeds"].dtype == np.float32


def test_the_command_line_draws_what_texts_draw(folder: Path, small_folder: Path, pipe: AutoLoRAPipeline):
    common = ["generate", small_folder, "--lora", small_folder / LORA, "--seeds", "0,1", "--dtype", "float32"]
    common += ["--steps", 2, "--size", "32x32"]
    given = autolora(*common, "--embeds", folder / "both.safetensors", "--compare", "--out", folder / "given")
    assert given.exit_code == 0, given.output
    texts = [word for text in TEXTS for word in ("--prompt", text)]
    read = autolora(*common, *texts, "--negative-prompt", "the dog", "--compare", "--out", folder / "texts")
    assert read.exit_code == 0, read.output
    files = [
        sorted((folder / name).glob("0*.png"), key=lambda file: (file.stem.rpartition("-")[2], file.name))
        for name in ("given", "texts")
    ]
    assert [len(each) for each in files] == [12, 12] and (folder / "given" / "grid.png").exists()
    for mine, theirs in zip(*files, strict=True):
        pixels = [np.asarray(Image.open(file)).astype(int) for file in (mine, theirs)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
    told = read_settings(files[0][0])
    assert told["prompt"] is None and files[0][0].name == f"0000-seed0-embeds-{told['prompt_embeds']}-autolora.png"
    again = autolora("generate", "--config", folder / "given" / "config.json", "--out", folder / "again")
    assert again.exit_code == 0, again.output
    assert all(file.read_bytes() == (folder / "again" / file.name).read_bytes() for file in files[0])


def test_a_job_draws_what_texts_draw(folder: Path, small_folder: Path, pipe: AutoLoRAPipeline):
    rows = [
        {"embeds": "both.safetensors", "id": "b"},
        {"prompt": TEXTS[0], "negative_prompt": "the dog"},
        {"prompt": "mist, says the caption", "embeds": "one.safetensors", "seeds": "1"},
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = small(small_folder, size=(32, 32))
    job = Job(prompt_file=str(folder / "prompts.jsonl"), seeds=range(2), settings=settings, batch_size=2)
    summary = draw_job(job, folder / "out", devices=DEVICES)
    assert (summary.ok, summary.failed) == (2 * 2 + 2 + 1, 0)
    found = read_manifest(folder / "out")
    given = [row for row in found if row["id"] == "b"]
    assert [row["prompt_embeds"] for row in given[::2]] == [given[i]["prompt_embeds"] for i in (1, 3)]
    assert len({row["prompt_embeds"] for row in found}) == 3 and not any(row["prompt"] for row in given)
    assert {row["negative_prompt"] for row in given} == {None}
    call: dict[str, Any] = dict(size=(32, 32), num_inference_steps=2, output_type="np")
    texts = pipe(TEXTS, "the dog", seeds=range(2), **call).images
    texts = np.concatenate([texts, texts[:2], pipe("the mist", seeds=1, **call).images])
    for row, expected in zip(found, texts, strict=True):
        pixels = np.asarray(Image.open(folder / "out" / row["file"])).astype(int)
        assert np.abs(pixels - expected).max() <= 1
    assert found[-1]["prompt"] == "mist, says the caption"
    assert read_settings(folder / "out" / found[-1]["file"])["prompt_embeds"] == found[-1]["prompt_embeds"]
    assert draw_job(job, folder / "out", devices=DEVICES).pictures == 0


def test_a_key_knows_what_is_told_and_not_its_file_or_caption(folder: Path):
    def keys(*prompts: Prompt) -> list[str]:
        plan = plan_of(Job(prompts, settings=Settings(num_inference_steps=2)))
        return [plan.row(i).key for i in range(len(plan))]

    both, copy = folder / "both.safetensors", folder / "copy.safetensors"
    copy.write_bytes(both.read_bytes())
    first, second = keys(Prompt("a cat", embeds=str(both)))
    assert first != second and keys(Prompt("", embeds=str(copy))) == [first, second]
    assert not {first, second} & {*keys(Prompt("a cat"), Prompt(""))}
    other = read_embeds(both)
    other["negative_prompt_embeds"]["base"][:, 0, 0] += 1
    write_embeds(copy, {kind: Embeds(*(other[name][kind] for name in Embeds._fields)) for kind in ("base", "lora")})
    assert not {first, second} & {*keys(Prompt("", embeds=str(copy)))}


def test_a_file_that_changed_meanwhile_fails_alone(folder: Path, small_folder: Path):
    def replace(work: Any) -> None:
        (folder / "one.safetensors").write_bytes((folder / "both.safetensors").read_bytes())

    prompts = [Prompt("a cat"), Prompt("", embeds=str(folder / "one.safetensors"))]
    job = Job(prompts, settings=small(small_folder, size=(32, 32)), batch_size=2)
    summary = draw_job(job, folder / "out", devices=DEVICES, on_work=replace)
    assert (summary.ok, summary.failed) == (1, 1)
    [failed] = [row for row in read_manifest(folder / "out") if row["status"] == "failed"]
    assert "one.safetensors are not what they were when the job was planned" in failed["reason"]


def write(path: Path, **shapes: tuple[int, ...]) -> Path:
    save_file({name.replace("__", "."): torch.ones(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (dict(prompt_embeds=(2, 3, 4)), "prompt_embeds is given, pooled_prompt_embeds is not"),
        (dict(text_embeds=(2, 3, 4)), "holds 'text_embeds'; expected prompt_embeds, "),
        (
            dict(negative_prompt_embeds=(1, 3, 4), negative_pooled_prompt_embeds=(1, 5)),
            "it has no prompt_embeds and no pooled_prompt_embeds",
        ),
        (
            {**SHAPES, "negative_prompt_embeds": (3, 3, 4), "negative_pooled_prompt_embeds": (3, 5)},
            "negative_prompt_embeds is of 3 prompts for 2",
        ),
        (
            {**SHAPES, "prompt_embeds__lora": (2, 3, 4)},
            "prompt_embeds for all weights, and prompt_embeds.lora for one",
        ),
        ({**SHAPES, "prompt_embeds": (2, 12)}, r"prompt_embeds has shape \(2, 12\); expected \[prompts, tokens, width"),
        (dict(prompt_embeds__own=(2, 3, 4), pooled_prompt_embeds=(2, 5)), r"\['own'\], which are no weights"),
    ],
)
def test_what_is_no_file_of_embeddings_is_refused(shapes: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=rf"told\.safetensors.*{words}"):
        read_embeds(write(tmp_path / "told.safetensors", **shapes))


def test_bytes_of_anything_else_are_refused(tmp_path: Path):
    path = tmp_path / "told.safetensors"
    for content in (b"", b"\x80\x04cposix\nsystem\n", b"\xff" * 100, (8).to_bytes(8, "little") + b'{"a":{}}'):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"can't be read as a \.safetensors file of embeddings"):
            read_embeds(path)


def test_rows_and_flags_that_can_not_be_meant_are_refused(folder: Path, small_folder: Path):
    refused = [
        ({}, "there is no column `prompt`"),
        ({"prompt_embeds": "both.safetensors", "prompt": "a"}, "column 'prompt_embeds' is not known; write 'embeds'"),
        ({"embeds": 5}, "embeds = 5 should be a text|there is no column"),
    ]
    for row, words in refused:
        (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ConfigError, match=words):
            read_prompts(str(folder / "rows.jsonl"))
    embeds = Prompt("", embeds=str(folder / "both.safetensors"))
    for prompt, changes, words in (
        (embeds, {"clip_skip": 1}, "clip_skip = 1 is of texts"),
        (Prompt("", embeds=str(folder / "none.safetensors")), {}, r"embeds .*none.safetensors can't be read: No such"),
    ):
        with pytest.raises(ConfigError, match=words):
            draw_job(Job([prompt], settings=small(small_folder, **changes)), folder / "out", devices=DEVICES)
    flags = ["generate", "--embeds", folder / "both.safetensors", "--out", folder / "out"]
    for more, words in ((["--prompt", "a"], "--prompt and --embeds are both"), ([], "this model's are [prompts, ")):
        result = autolora(*flags, *more)
        assert result.exit_code != 0 and words in " ".join(result.stderr.split())
    result = autolora(*flags, "--embeds", folder / "one.safetensors")
    assert result.exit_code != 0 and "drawn together hold the same arrays" in " ".join(result.stderr.split())
