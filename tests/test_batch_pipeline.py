"""Jobs drawn by the pipeline: the pictures are its own, on any number of devices, and bad prompts spoil no others."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from autolora_jax import AutoLoRA, AutoLoRAPipeline
from autolora_jax.batch import Artist, Job, Settings, draw_job, open_work, read_manifest, run
from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.recipe import resolve
from autolora_jax.batch.sources import Sources
from autolora_jax.engine import Engine
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.text import encoding

LORA = "small:0.5.safetensors"
STEPS, SIDE = 2, 32
GREY_LEVELS = 1  # that a picture may change with its company; seen: 0
PROMPTS, SEEDS, SCALES, GAMMAS = ("a cat", "süß, the 猫"), (0, 2**40), (0.4, 0.9), (1.3, 1.7)
BAD = "\udcff"  # half of a character, as broken files have them


@pytest.fixture(scope="module", autouse=True)
def compilation_cache() -> Iterator[None]:
    """As it was before."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def job(small_folder: Path) -> Job:
    """16 pictures: prompts × γ × scales × seeds."""
    settings = Settings(
        model=ModelConfig(str(small_folder), "float32"),
        loras=(Lora(str(small_folder / LORA)),),
        guidance=AutoLoRA(w1=2.0, w2=3.0),
        num_inference_steps=STEPS,
        size=(SIDE, SIDE),
    )
    grid = {"guidance.gamma": list(GAMMAS), "lora_scale": list(SCALES)}
    return Job(prompts=PROMPTS, seeds=SEEDS, settings=settings, grid=grid, batch_size=3)


def pictures(out: Path) -> dict[str, np.ndarray]:
    """Key -> pixels."""
    rows = read_manifest(out)
    return {row["key"]: np.asarray(Image.open(out / row["file"])) for row in rows if row["file"]}


@pytest.fixture(scope="module")
def alone(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one device drew the job."""
    out = tmp_path_factory.mktemp("alone")
    summary = draw_job(job, out, devices=jax.devices()[:1])
    assert (summary.ok, summary.more, summary.problem) == (16, False, None)
    return out


def test_pictures_are_the_pipelines(job: Job, alone: Path, small_folder: Path):
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(small_folder / LORA)
    rows = [(gamma, scale) for _ in PROMPTS for gamma in GAMMAS for scale in SCALES for _ in SEEDS]
    drawn = pictures(alone)
    plan = make_plan(job, Sources())
    for i in (0, 3, 9, 14):
        row, (gamma, scale) = plan.row(i), rows[i]
        expected = pipe(
            row.prompt,
            seeds=[row.seed, 5, 6],  # as many rows as the job's batches: the program is there
            guidance=AutoLoRA(gamma, 2.0, 3.0),
            lora_scale=scale,
            num_inference_steps=STEPS,
            height=SIDE,
            width=SIDE,
            output_type="np",
            batch_size=3,
        ).images[0]
        assert np.abs(np.int16(drawn[row.key]) - expected).max() <= GREY_LEVELS


def test_strengths_over_the_steps_and_block_weights_are_the_pipelines(job: Job, small_folder: Path, tmp_path: Path):
    file = str(small_folder / LORA)
    loras = [Lora(file, (0.0, 1.5)), Lora(file, 0.9, blocks="mid=0,down=0.25"), Lora(file, 0.9)]
    settings = dataclasses.replace(job.settings, guidance=AutoLoRA(1.5, 2.0, 3.0))
    own = dataclasses.replace(job, prompts=PROMPTS[:1], seeds=(3,), settings=settings, grid={"loras": loras})
    draw_job(own, tmp_path, devices=jax.devices()[:1])
    drawn, plan = pictures(tmp_path), make_plan(own, Sources())
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    call = {"guidance": settings.guidance, "num_inference_steps": STEPS, "height": SIDE, "width": SIDE}
    for i, lora in enumerate(loras):
        pipe.unload_lora()
        pipe.load_lora(file, lora.scale, blocks=lora.block_weights)
        out = pipe(PROMPTS[0], seeds=[3, 5, 6], batch_size=3, **call)  # as many rows as the job's batches
        assert np.abs(np.int16(drawn[plan.row(i).key]) - np.asarray(out.images[0])).max() <= GREY_LEVELS
        told = out.settings[0]
        assert told["lora_strengths"] == (["0.0,1.5"] if i == 0 else None)
        assert told["lora_blocks"] == (["unet.mid_block=0,unet.down_blocks=0.25"] if i == 1 else None)
    assert len({picture.tobytes() for picture in drawn.values()}) == 3
    assert [row["lora_scale"] for row in read_manifest(tmp_path)] == [0.75, 0.9, 0.9]


def test_eight_devices_draw_the_same_set(job: Job, alone: Path, tmp_path: Path):
    draw_job(dataclasses.replace(job, batch_size=1), tmp_path)
    one, eight = pictures(alone), pictures(tmp_path)
    assert one.keys() == eight.keys()
    for key, picture in one.items():
        assert np.abs(np.int16(picture) - eight[key]).max() <= GREY_LEVELS
    rows = {row["key"]: row for row in read_manifest(alone)}
    for row in read_manifest(tmp_path):
        assert {**row, "sha256": None} == {**rows[row["key"]], "sha256": None}


def test_every_prompt_is_encoded_once_and_values_compile_nothing(
    job: Job, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_compilations
):
    encoded: list[int] = []
    begin = encoding.begin

    def counted(*what: Any) -> Any:
        encoded.append(len(what[5].ids))
        return begin(*what)

    monkeypatch.setattr(encoding, "begin", counted)
    other = dataclasses.replace(job, grid={"guidance.gamma": [1.1, 1.2, 1.4], "lora_scale": [0.2, 0.3]})
    work = open_work(other, tmp_path, jax.devices()[:1])
    assert len(work.batches) > 4
    artist = Artist(jax.devices()[:1])
    run(work, artist, work.todo[:1])
    with count_compilations() as compiled:
        run(work, artist, work.todo[1:])
    assert compiled == []
    # Two prompts and the empty one, each by the base model's two text encoders and by the LoRA's at both scales.
    assert sum(encoded) == 2 * 9


def test_texts_are_encoded_a_batch_ahead(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In one call an encoder, before the devices are set to work on the pictures of the batch before."""
    seen: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(encoding, "begin", noted("encode", encoding.begin))
    monkeypatch.setattr(Engine, "start", noted("draw", Engine.start))
    prompts = tuple(f"a cat {i}" for i in range(4))
    work = open_work(dataclasses.replace(job, prompts=(*prompts[:2], BAD, *prompts[2:]), grid={}), tmp_path)
    work = dataclasses.replace(work, batches=work.plan.batches(np.arange(len(work.plan)), 2))
    run(work, Artist(jax.devices()[:1]))
    both = ["encode", "encode"]
    # Two seeds each: a batch a prompt, the third of which can't be read.
    assert seen == [*both, *both, "draw", "draw", *both, *both, "draw", "draw"]


def test_a_poisoned_prompt_and_a_nan_spoil_no_others(job: Job, alone: Path, tmp_path: Path):
    grid = {"guidance.gamma": [GAMMAS[0]], "lora_scale": [*SCALES, 1e30]}
    bad = dataclasses.replace(job, prompts=(PROMPTS[0], BAD), seeds=SEEDS[:1], grid=grid)
    work = open_work(bad, tmp_path, jax.devices()[:1])
    assert all(len({row.recipe.scales for row in work.plan.rows(batch)}) > 1 for batch in work.batches)
    summary = run(work, Artist(jax.devices()[:1]))
    assert (summary.ok, summary.failed, summary.not_finite) == (2, 3, 1)
    assert summary.problem and work.finish()
    drawn, before = pictures(tmp_path), pictures(alone)
    assert len(drawn) == 2
    assert all(np.abs(np.int16(drawn[key]) - before[key]).max() <= GREY_LEVELS for key in drawn)
    for row in read_manifest(tmp_path):
        wanted = "failed" if row["prompt"] == BAD else "not_finite" if row["lora_scales"] == [1e30] else "ok"
        assert row["status"] == wanted


def test_models_and_loras_are_known_by_what_they_hold(job: Job, small_folder: Path, tmp_path: Path):
    def identity(**changes: object) -> str:
        return resolve(dataclasses.replace(job.settings, **changes), Sources()).identity

    copy = tmp_path / "copy"
    copy.symlink_to(small_folder)
    lora = tmp_path / "renamed.safetensors"
    lora.write_bytes((small_folder / LORA).read_bytes())
    same = identity(model=ModelConfig(str(copy), "float32"), loras=(Lora(str(lora)),))
    assert same == identity()
    lora.write_bytes(lora.read_bytes()[:-1] + b"\1")
    assert identity(loras=(Lora(str(lora)),)) != identity()
    assert identity(model=ModelConfig("builtin", "float32")) != identity()
