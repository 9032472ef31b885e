"""What a job is: prompts from files, grids of settings, and words for what can't be meant."""

import json
from pathlib import Path

import pytest

from autolora_jax import CFG, AutoLoRA, ConfigError
from autolora_jax.batch import Job, OutputConfig, Prompt, Settings
from autolora_jax.batch.prompts import read_prompts
from autolora_jax.settings import Lora, ModelConfig, changes

ROWS = [Prompt("a cat"), Prompt('a "dog", süß', "", (3, 4, 5, 9), "d1")]


def test_a_grid_is_a_product_and_several_stand_one_after_the_other():
    rules = [CFG(5.0), AutoLoRA(1.5)]
    grid = {"guidance": rules, "lora_scale": [0.4, 0.8], "num_inference_steps": [20]}
    found = Job(grid=grid).all_settings()
    assert [(s.guidance, s.lora_scale, s.num_inference_steps) for s in found] == [
        (rule, scale, 20) for rule in rules for scale in (0.4, 0.8)
    ]
    cases = [{"guidance": [rules[0]], "size": [(64, 32)]}, {"guidance": [rules[1]], "size": ["32x64"]}]
    found = Job(grid=cases).all_settings()
    assert [(s.guidance, s.size) for s in found] == [(rules[0], (64, 32)), (rules[1], (32, 64))]
    assert Job().all_settings() == [Settings()]


def test_values_are_read_as_flags_are_or_are_what_the_field_holds():
    a, b = Lora("a", 0.5), Lora("b")
    values = [a, "a:0.5", ["a:0.5"], (a,), [a, "b"], ()]
    found = Job(grid={"loras": values}).all_settings()
    assert [s.loras for s in found] == [(a,), (a,), (a,), (a,), (a, b), ()]
    found = Job(grid={"model": [ModelConfig("m")], "num_inference_steps": [9], "guidance.w": [2, "3"]}).all_settings()
    assert {(s.model.source, s.num_inference_steps) for s in found} == {("m", 9)}
    assert [s.guidance for s in found] == [CFG(2.0), CFG(3.0)]


def test_scales_are_each_loras_own_unless_one_is_given():
    loras = (Lora("a", 0.5), Lora("b"))
    assert Settings(loras=loras).scales() == (0.5, 1.0)
    assert Settings(loras=loras, lora_scale=0.3).scales() == (0.3, 0.3)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (lambda: Job(prompts="a cat"), "several"),
        (lambda: Job(seeds="5-1"), "seeds such as 0-15"),
        (lambda: Job(seeds=(2**64,)), "from 0 to 2^64"),
        (lambda: Job(seeds=()), "one or more"),
        (lambda: Job(grid={"lora_scale": 0.5}), "list of one or more values"),
        (lambda: Job(grid={"lora_scale": []}), "list of one or more values"),
        (lambda: Job(batch_size=0), "at least 1"),
        (lambda: Job(output=OutputConfig("gif")), "png, webp, jpeg, latent"),
        (lambda: Job(output=OutputConfig(quality=0)), "between 1 and 100"),
        (lambda: Job(output=OutputConfig(shard_size=0)), "at least 1"),
        (lambda: Job(settings=Settings(guidance=CFG((1.0, 2.0)))), "axis of the job's grid"),
        (lambda: Job(grid={"sampler.stps": [1]}).all_settings(), "did you mean num_inference_steps"),
        (lambda: Job(grid={"guidance": ["cgf"]}).all_settings(), "one of autolora, cfg"),
        (lambda: changes.override(Job(), {"prompts": "a"}), "change it in the program"),
    ],
)
def test_what_cannot_be_meant_is_refused(job, words: str):
    with pytest.raises(ConfigError, match=words.replace("^", r"\^")):
        job()


def test_settings_change_by_their_names():
    job = changes.override(Job(), {"seeds": "0-2,7", "settings.num_inference_steps": "9", "output.format": "webp"})
    assert (job.seeds, job.settings.num_inference_steps, job.output.format) == ((0, 1, 2, 7), 9, "webp")
    assert Job(seeds="0-2,7").seeds == job.seeds
    assert Job(seeds=range(3)).seeds == (0, 1, 2)


# ---- files of prompts ------------------------------------------------------------------------------------------------


def write_text(path: Path) -> None:
    path.write_text('\ufeffa cat\r\n\n  a "dog", süß \n', encoding="utf-8")


def write_jsonl(path: Path) -> None:
    second = {"prompt": ROWS[1].text, "negative_prompt": "", "seeds": "3-5,9", "id": "d1", "topic": "dogs"}
    path.write_text(json.dumps({"prompt": "a cat", "seeds": None}) + "\n\n" + json.dumps(second), encoding="utf-8")


def write_csv(path: Path) -> None:
    path.write_text('prompt,seeds,id\na cat,,\n"a ""dog"", süß","3-5,9",d1\n', encoding="utf-8")


def write_parquet(path: Path) -> None:
    import pandas

    rows = {"prompt": [r.text for r in ROWS], "seeds": [None, [3, 4, 5, 9]], "id": [None, "d1"]}
    pandas.DataFrame(rows).to_parquet(path)


# Name -> how it is written, and what it can say of the second prompt.
FILES = {
    "p.txt": (write_text, Prompt(ROWS[1].text)),
    "p.jsonl": (write_jsonl, ROWS[1]),
    "p.csv": (write_csv, ROWS[1]._replace(negative=None)),
    "p.parquet": (write_parquet, ROWS[1]._replace(negative=None)),
}


@pytest.mark.parametrize("name", FILES)
def test_prompts_come_from_files(name: str, tmp_path: Path):
    write, second = FILES[name]
    write(tmp_path / name)
    assert read_prompts(str(tmp_path / name)) == [ROWS[0], second]


def test_prompts_come_from_a_bucket(tmp_path: Path):
    import fsspec

    write_jsonl(tmp_path / "p.jsonl")
    fsspec.filesystem("memory").pipe_file("/prompts/p.jsonl", (tmp_path / "p.jsonl").read_bytes())
    assert read_prompts("memory://prompts/p.jsonl") == ROWS
    with pytest.raises(FileNotFoundError):
        read_prompts("memory://prompts/q.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.yaml", b"- a cat", "txt, .jsonl, .csv, .parquet"),
        ("p.csv", b"prompt;seeds\na cat;1\n", "no column `prompt` but 'prompt;seeds'; it is separated by semicolons"),
        ("p.csv", b"a red cat, in the snow\na robot\n", "no column `prompt` but 'a red cat', ' in the snow'"),
        ("p.csv", b"prompt,seeds\na cat, in snow,1\n", "line 2 has 1 fields more than the 2 columns"),
        ("p.jsonl", b'{"text": "a cat"}', "row 1: there is no column `prompt`; the columns are 'text'"),
        ("p.txt", b"\n", "holds no prompt"),
        ("p.txt", "süß".encode("latin-1"), "not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"', "Expecting"),
        ("p.jsonl", b'["a"]', "JSON object"),
        ("p.jsonl", b'{"prompt": 3}', "row 1: prompt = 3"),
        ("p.jsonl", b'{"prompt": "a"}\n{"negative_prompt": "b"}', "row 2: there is no column `prompt`"),
        ("p.jsonl", b'{"prompt": "a", "seeds": "x"}', "row 1: seeds"),
        ("p.jsonl", b'{"prompt": "a", "negative_promt": "b"}', "did you mean 'negative_prompt'"),
    ],
)
def test_files_that_are_none_of_prompts_are_refused(name: str, content: bytes, words: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_prompts(str(tmp_path / name))
