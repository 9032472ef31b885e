"""Readers of foreign bytes: whatever these are, they are read, or there is one error that says what and where.

Nothing recurses, waits or allocates without bound, and no other errors than our own are raised.
"""

import json
import os
import random
import shutil
import signal
import tarfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from autolora_jax import ConfigError, WeightsError, foreign, read_embeds, write_embeds
from autolora_jax.batch import read_manifest
from autolora_jax.batch.prompts import read_prompts
from autolora_jax.batch.run import run
from autolora_jax.config import CLIPTextConfig
from autolora_jax.evaluation.judge import protocol
from autolora_jax.evaluation.judge.questions import QUESTIONS
from autolora_jax.evaluation.judge.verdicts import Key, Verdict, VerdictCache, Version
from autolora_jax.evaluation.pictures import Pictures
from autolora_jax.experiments.results import Results
from autolora_jax.given import read
from autolora_jax.pictures import read_settings, save_png
from autolora_jax.settings.changes import load_preset, record
from autolora_jax.settings.jobs import Job
from autolora_jax.settings.pictures import GenerateConfig
from autolora_jax.settings.rules import CFG
from autolora_jax.text.embeds import Embeds
from autolora_jax.training.dataset import read_folder
from autolora_jax.weights import open_checkpoint
from autolora_jax.weights.lora.embeddings import read_embedding
from autolora_jax.weights.tokenizer_files import check_tokenizer
from tests.batch_jobs import draw, draw_all, open_fake, small_job
from tests.damage import DEEP, damaged
from tests.made_up_results import table_1

SECONDS = 20  # for one file, on any machine: the longest takes 0.3
MEBIBYTES = 200  # the largest needs 20; looked at by the slow tests, because that takes its time
OURS = (ValueError, OSError)  # ConfigError, WeightsError, PictureError, DatasetError, Unusable are of these


class Reader(NamedTuple):
    """make: writes something good, and says where. read: reads it; raises OURS."""

    make: Callable[[Path, Path], Path]  # (an empty folder, tiny_folder) -> file or folder
    read: Callable[[Path], Any]


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    told = {"prompt": "a cat", "negative_prompt": "", "seed": seed, "guidance": CFG(5.0), "size": (16, 16)}
    told |= {"steps": 3, "scheduler": "euler", "timestep_spacing": "leading", "loras": [], "lora_scales": []}
    save_png(path, Image.fromarray(pixels), {**told, "clip_skip": None, "model": "m"})
    return path


def prompts(folder: Path, _: Path) -> Path:
    rows = [{"prompt": "a cat", "seeds": "0-3", "id": "c"}, {"prompt": "a dog", "negative_prompt": "mist"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "prompts.jsonl"


def table(folder: Path, _: Path) -> Path:
    (folder / "prompts.csv").write_text('prompt,seeds\n"a cat, sleeping",0-3\na dog,5\n')
    return folder / "prompts.csv"


def job(folder: Path, _: Path) -> Path:
    told = {"prompts": ["a cat", {"text": "a dog", "seeds": "1-3"}], "grid": {"lora_scale": [0.4, 0.8]}}
    told |= {"settings": {"num_inference_steps": 7, "guidance": {"rule": "cfg", "w": 3}}}
    (folder / "job.yaml").write_text(json.dumps(told, indent=1))
    return folder / "job.yaml"


def preset(folder: Path, _: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(record(GenerateConfig(prompts=("a cat",))), indent=1))
    return folder / "config.json"


def embeds(folder: Path, _: Path) -> Path:
    states, pooled = np.ones((2, 3, 4), np.float32), np.ones((2, 5), np.float32)
    write_embeds(folder / "told.safetensors", Embeds(states, states, pooled, pooled))
    return folder / "told.safetensors"


def word(folder: Path, _: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"clip_l": np.ones((2, 8), np.float32)}, folder / "word.safetensors")
    return folder / "word.safetensors"


ENCODERS = {"text_encoder": CLIPTextConfig(hidden_size=8)}


def pictures(folder: Path, _: Path) -> Path:
    rows = []
    for i in range(3):
        file = picture(folder / f"{i}.png", i)
        rows.append({"file_name": file.name, "text": "a cat", "key": str(i), "file": file.name, "id": "x"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    (folder / "manifest.jsonl").write_text(text)
    (folder / "0.json").write_text('{"prompt": "a dog"}')
    return folder


def shard(folder: Path, _: Path) -> Path:
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for i in range(3):
            content = picture(folder / "x.png", i).read_bytes()
            for name, data in ((f"{i}.png", content), (f"{i}.json", b'{"prompt": "a cat"}'), (f"{i}.txt", b"a cat")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
            (folder / "x.png").unlink()
    return folder / "000000.tar"


def verdicts(folder: Path, _: Path) -> Path:
    with VerdictCache(folder / "verdicts.sqlite") as cache:
        cache.add(KEY, Verdict("scored", Version("m", "", "", "", ""), {"score": 4}, {"CPS": 4.0}))
    return folder / "verdicts.sqlite"


KEY = Key("a", "b", "c", "d")


def find(path: Path) -> Any:
    with VerdictCache(path) as cache:
        return cache.find(KEY, "")


def results(folder: Path, _: Path) -> Path:
    table_1().write(folder / "results.json")
    return folder / "results.json"


def model(folder: Path, tiny_folder: Path) -> Path:
    """A model whose weights are links: they are damaged in test_bad_files."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            os.symlink(source, target)
        else:
            shutil.copyfile(source, target)

    return Path(shutil.copytree(tiny_folder, folder / "model", copy_function=copy))


def tokenizers(path: Path) -> Any:
    for name in ("tokenizer", "tokenizer_2"):
        check_tokenizer(sorted(file for file in (path / name).iterdir()) if (path / name).is_dir() else [])


def place(folder: Path, _: Path) -> Path:
    """A job of which a half is drawn; its pictures are links: they are damaged in test_batch_verify."""
    work = open_fake(small_job(), folder / "drawn")
    run(work, draw, iter(work.todo[:4]))
    (folder / "place").mkdir()
    for path in sorted((folder / "drawn").rglob("*")):
        copy = folder / "place" / path.relative_to(folder / "drawn")
        if path.is_dir():
            copy.mkdir()
        elif path.suffix == ".png":
            copy.symlink_to(path)
        else:
            shutil.copyfile(path, copy)
    return folder / "place"


def resumed(path: Path) -> Any:
    read_manifest(path)
    return draw_all(small_job(), path)


READERS: dict[str, Reader] = {
    "prompts": Reader(prompts, lambda path: read_prompts(str(path))),
    "table of prompts": Reader(table, lambda path: read_prompts(str(path))),
    "job": Reader(job, lambda path: load_preset(path, Job)),
    "config": Reader(preset, lambda path: load_preset(path, GenerateConfig)),
    "embeds": Reader(embeds, read_embeds),
    "word": Reader(word, lambda path: read_embedding(path, ENCODERS)),
    "picture": Reader(lambda folder, _: picture(folder / "a.png"), lambda path: read(path, "image")),
    "settings": Reader(lambda folder, _: picture(folder / "a.png"), read_settings),
    "pictures": Reader(pictures, lambda path: [*Pictures(path)]),
    "training": Reader(pictures, read_folder),
    "shard": Reader(shard, lambda path: [*Pictures(path)]),
    "verdicts": Reader(verdicts, find),
    "results": Reader(results, Results.read),
    "place": Reader(place, resumed),
    "model": Reader(model, open_checkpoint),
    "tokenizers": Reader(model, tokenizers),
}


@contextmanager
def bounded(memory: bool = False) -> Iterator[None]:
    """Within seconds, and within memory."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not read within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    if memory:
        tracemalloc.start()
    try:
        yield
        assert not memory or tracemalloc.get_traced_memory()[1] < MEBIBYTES << 20
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(reader: Reader, path: Path, what: str, memory: bool = False) -> bool:
    """Whether it is read."""
    with bounded(memory), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(path)
        except OURS as e:
            said = str(e)
            assert not isinstance(e, TimeoutError), f"{what}: {e}"
            assert type(e) not in (UnicodeDecodeError, UnicodeEncodeError, json.JSONDecodeError), f"{what}: {e!r}"
            assert said and (len(said) < 20_000 or "Type-check" in said) and path.name in said, f"{what}: {said[:300]}"
            return False
        except Exception as e:
            raise AssertionError(f"{what}: {type(e).__name__}: {e}") from e
    return True


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name: str, tmp_path: Path, tiny_folder: Path):
    assert attempt(READERS[name], READERS[name].make(tmp_path, tiny_folder), name)


def fuzz(name: str, tmp_path: Path, tiny_folder: Path, seeds: range, memory: bool = False) -> None:
    (tmp_path / "good").mkdir()
    good, refused = READERS[name].make(tmp_path / "good", tiny_folder), 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = folder / good.name
        what = damaged(random.Random(f"{name} {seed}"), good, path)
        refused += not attempt(READERS[name], path, f"seed {seed}: {what}", memory)
    assert refused > len(seeds) / 50  # or nothing was damaged that is read


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path, tiny_folder: Path):
    fuzz(name, tmp_path, tiny_folder, range(8))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damaged_files(name: str, tmp_path: Path, tiny_folder: Path):
    fuzz(name, tmp_path, tiny_folder, range(8, int(os.environ.get("FUZZ", "1000"))), memory=True)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", sorted(READERS.keys() - {"pictures", "training", "model", "tokenizers", "place"}))
def test_what_is_no_file_is_refused(name: str, kind: str, tmp_path: Path, tiny_folder: Path):
    good = READERS[name].make(tmp_path, tiny_folder)
    path = tmp_path / kind / good.name
    path.parent.mkdir()
    NO_FILES[kind](path)
    if (name, kind) != ("verdicts", "nothing"):  # which is a new cache
        assert not attempt(READERS[name], path, f"{kind} in place of {name}")


@pytest.mark.parametrize("file", ["\0", "x" * 5_000, "a/" * 3_000 + "b"])
def test_names_that_no_file_has_are_refused(file: str, tmp_path: Path):
    for name, read_it in (
        ("image", lambda path: read(path, "image")),
        ("embeds", read_embeds),
        ("prompts", lambda path: read_prompts(f"{path}.jsonl")),
        ("word", lambda path: read_embedding(path, ENCODERS)),
        ("model", open_checkpoint),
    ):
        with bounded(), pytest.raises(OURS):
            read_it(str(tmp_path / file)), name


UNBOUNDED = [DEEP.decode(), '{"a":' * 200_000, "[" * 101 + "]" * 101, "NaN", '{"b": Infinity}', "1e999", "1" * 5_000]


@pytest.mark.parametrize("text", UNBOUNDED)
def test_json_is_bounded(text: str):
    with bounded(), pytest.raises(ValueError, match=r"levels deep|no JSON|too large|integer string conversion"):
        foreign.parse_json(text)
    with bounded(), pytest.raises(protocol.Unusable):
        protocol.read_answer(
            text, QUESTIONS["presence"].schema if "presence" in QUESTIONS else next(iter(QUESTIONS.values())).schema
        )


def test_json_in_bounds_is_read():
    for value in ([], {"a": [[1, 2.5, None], {"b": "x" * 10_000}]}, [[]] * 1_000, json.loads("[" * 99 + "]" * 99)):
        assert foreign.parse_json(json.dumps(value)) == value == foreign.parse_json(json.dumps(value).encode("utf-8"))


def test_yaml_means_no_more_than_it_says(tmp_path: Path):
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))
    for text in (f"a0: &a0 [x, x]\n{levels}\n", "prompts: &a [*a]\n", "prompts: " + "[" * 150 + "]" * 150 + "\n"):
        (tmp_path / "job.yaml").write_text(text)
        with bounded(), pytest.raises(ConfigError, match=r"job\.yaml is not valid YAML \((it means more|it is nested)"):
            load_preset(tmp_path / "job.yaml", Job)


DATES = ["Fri, 31 Dec 9999999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"]


@pytest.mark.parametrize("after", [*DATES, "nan", "1e400", "-5", "", "\0", "x" * 9_999, "9" * 9_999])
def test_whatever_a_server_asks_to_wait_is_no_traceback(after: str):
    fault = protocol.status_fault(429, "", "busy", after)
    assert isinstance(fault, protocol.Fault) and (fault.after is None or fault.after >= 0)


def test_errors_are_of_the_classes_that_callers_catch():
    assert issubclass(ConfigError, OURS) and issubclass(WeightsError, OURS)
