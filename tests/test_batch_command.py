"""`autolora batch`: what it says, what it draws, exit codes. Signals are in test_batch_end_to_end."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from autolora_jax.batch import read_manifest
from tests.batch_jobs import tree
from tests.programs import autolora

LORA = "small:0.5.safetensors"

FILE = """
from autolora_jax import AutoLoRA
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import Lora, ModelConfig

def get_config():
    settings = Settings(
        model=ModelConfig({model!r}, "float32"),
        loras=(Lora({lora!r}),),
        guidance=AutoLoRA(w1=2.0, w2=3.0),
        num_inference_steps=2,
        size=(32, 32),
    )
    grid = {{"guidance.gamma": [1.3, 1.7], "lora_scale": [0.4, 0.9]}}
    return Job(prompts=("a cat", "süß, the 猫"), seeds=(0, 2**40), settings=settings, grid=grid, batch_size=1)
"""


@pytest.fixture(scope="module", autouse=True)
def compilation_cache() -> Iterator[None]:
    """As it was before."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def file(small_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(FILE.format(model=str(small_folder), lora=str(small_folder / LORA)), encoding="utf-8")
    return path


def test_the_command_draws_and_goes_on(file: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = autolora("batch", file, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"16 pictures drawn into {out}\n"
    assert "0 of 16 pictures are there, 16 to draw in 2 batches" in result.stderr
    assert len(read_manifest(out)) == 16
    again = autolora("batch", file, "--out", out, "--seeds", "0,5")
    assert again.stdout == f"8 pictures drawn into {out}\n"
    assert "8 of 16 pictures are there, 8 to draw in 1 batches" in again.stderr
    assert len(read_manifest(out)) == 24


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(file: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = autolora("batch", file, "--out", out, "--dry-run", "--seeds", "0-9", "--distributed")  # it joins nobody
    assert result.exit_code == 0, result.output
    lines = {line[2:17].strip(): line[18:] for line in result.stdout.splitlines()[1:]}
    assert lines["pictures"] == "80" and lines["finished"] == "0"
    assert lines["to draw"] == "80 in 10 batches of 8 (0 rows of padding)"
    assert lines["evaluations"] == f"{80 * 2 * 4} of the denoiser"
    assert lines["programs"].startswith("1 ")
    assert float(lines["arithmetic"].split()[0]) > 1e9
    assert not out.exists()


def test_a_calibrated_dry_run_says_how_long_it_takes(file: Path, tmp_path: Path):
    result = autolora("batch", file, "--out", tmp_path / "out", "--dry-run", "--calibrate")
    assert result.exit_code == 0, result.output
    assert "time            about " in result.stdout and "TFLOP/s" in result.stdout
    assert not (tmp_path / "out").exists()


def test_nothing_but_failures_is_an_error(file: Path, tmp_path: Path):
    file.write_text(file.read_text().replace('("a cat", "süß, the 猫")', '("\\udcff",)'))
    result = autolora("batch", file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "Error: none of 8 pictures could be drawn. The first: " in result.stderr


def test_pictures_that_fail_are_no_exit_code_0(file: Path, tmp_path: Path):
    file.write_text(file.read_text().replace('("a cat", "süß, the 猫")', '("a cat", "\\udcff")'))
    for drawn in (8, 0):
        result = autolora("batch", file, "--out", tmp_path / "out")
        assert result.exit_code == 3 and f"{drawn} pictures drawn" in result.stdout, result.output
        assert "8 pictures are recorded without a file; --retry draws them again" in result.stderr


def test_what_is_damaged_is_found_and_drawn_again(file: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert autolora("batch", file, "--out", out).exit_code == 0
    files = tree(out)
    whole = autolora("batch", file, "--out", out, "--verify")
    assert whole.exit_code == 0 and "16 pictures checked" in whole.stdout and "nothing wrong" in whole.stdout
    rows = read_manifest(out)
    gone, flip = (out / rows[i]["file"] for i in (3, 9))
    gone.unlink()
    flip.write_bytes(flip.read_bytes()[:-30] + b"?" + flip.read_bytes()[-29:])
    said = autolora("batch", "--out", out, "--verify")
    assert said.exit_code == 3 and "2 wrong" in said.stdout, said.output
    assert f"{rows[3]['file']}: is not there" in said.stderr
    assert f"{rows[9]['file']}: is not the picture that was recorded" in said.stderr
    mended = autolora("batch", file, "--out", out, "--verify", "--repair")
    assert mended.exit_code == 0 and "2 pictures drawn again" in mended.stdout, mended.output
    assert tree(out) == files  # on the same devices: to the byte
    fewer = autolora("batch", file, "--out", out, "--verify", "--seeds", "0,5")
    assert fewer.exit_code == 3 and "8 pictures of the job have no row" in fewer.stderr, fewer.output
    for flags in (["--repair"], ["--verify", "--distributed"], ["--verify", "--dry-run"]):
        assert autolora("batch", file, "--out", out, *flags).exit_code == 2
    assert autolora("batch", "--out", out, "--verify", "--repair").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "settings.sampler.stps=3"], "did you mean settings.num_inference_steps"),
        (["--format", "gif"], "png, webp, jpeg, latent"),
        (["--seeds", "x"], "seeds such as 0-15"),
        (["--prompt-file", "p.yaml"], "file of prompts"),
    ],
)
def test_what_cannot_be_meant_is_said(file: Path, tmp_path: Path, arguments: list[str], words: str):
    result = autolora("batch", file, "--out", tmp_path / "out", *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_is_a_python_file(file: Path, tmp_path: Path):
    other = tmp_path / "job.txt"
    other.write_text("{}")
    assert "should be a Python file" in autolora("batch", other, "--out", tmp_path / "out").stderr
    file.write_text("from autolora_jax import CFG\ndef get_config():\n    return CFG()\n")
    assert "should return a Job, not a CFG" in autolora("batch", file, "--out", tmp_path / "out").stderr


FLAGS = ["--steps", 1, "--size", "32x32", "--dtype", "float32", "--batch-size", 1, "--compilation-cache", "off"]


def test_flags_alone_are_a_job_that_goes_on(small_folder: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a cat\nthe dog\n")
    out, lora = tmp_path / "out", f"{small_folder / LORA}"
    asked = ["--model", small_folder, "--lora", lora, "--prompt-file", tmp_path / "prompts.txt", "-p", "mist", *FLAGS]
    asked += ["--seeds", "0-1", "--negative-prompt", "rain", "--guidance", "autolora", "--gamma", 1.7, "--out", out]
    result = autolora("batch", *asked)
    assert result.exit_code == 0, result.output
    rows = read_manifest(out)
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        (p, s) for p in ("mist", "a cat", "the dog") for s in (0, 1)
    ]
    assert {(row["negative_prompt"], row["gamma"], row["lora"], row["steps"]) for row in rows} == {
        ("rain", 1.7, "small:0.5", 1)
    }
    again = autolora("batch", *asked)
    assert again.exit_code == 0 and "0 pictures drawn" in again.output, again.output
    more = autolora("batch", out / "job.json", "--seeds", "0-2", "--out", out, "--compilation-cache", "off")
    assert more.exit_code == 0 and "3 pictures drawn" in more.output, more.output


def test_flags_change_a_job_but_not_against_its_grid(file: Path, tmp_path: Path):
    told = autolora("batch", file, "--steps", 7, "--out", tmp_path / "out", "--dry-run", "--compilation-cache", "off")
    assert told.exit_code == 0 and "448 of the denoiser" in told.output, told.output  # 16 pictures x 7 steps x 4
    for flag in (["--lora-scale", 0.3], ["--gamma", 2], ["--set", "settings.lora_scale=0.3"]):
        result = autolora("batch", file, *flag, "--out", tmp_path / "out")
        assert result.exit_code == 2 and "is an axis of the job's grid" in result.output, result.output
    nothing = autolora("batch", "--out", tmp_path / "out")
    assert nothing.exit_code == 2 and "draw what?" in nothing.output
