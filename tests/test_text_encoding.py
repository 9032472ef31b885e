"""How texts are encoded: in one call per encoder, ahead of their use, each by itself, and what compiles nothing."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from autolora_jax import AutoLoRAPipeline
from autolora_jax.lora import LoraReport
from autolora_jax.text import Prompts, Sizes, TextSettings, encoding, stage
from autolora_jax.text.stage import same_text
from autolora_jax.text.syntax import slices
from autolora_jax.text.tokens import Vocabulary, chunked
from autolora_jax.text.words import Piece, Words
from tests import reference_sd3
from tests.lora_reference import random_lora
from tests.parity import normal

SETTINGS = TextSettings((Sizes((8, 8), (0, 0), (8, 8)),) * 2)
REPORT = LoraReport("made here", "in memory", {}, {}, {}, 0, (), {})
PROMPTS = ("a cat", "the dog in the mist, a cat", "", "mist " * 9)
# "a cat" at every scale; floats that no rounding changes.
SCALES = np.array([[0.5], [1.0], [-0.25], [0.75]], np.float32)


@pytest.fixture(scope="module")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs of the text encoders."""
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    folder = tmp_path_factory.mktemp("loras")
    for seed in (3, 4):
        lora = random_lora(theirs, seed=seed, components=("text_encoder", "text_encoder_2"))
        lora.save(folder / f"{seed}.safetensors", "kohya_sgm")
    return folder


def load(folder: Path, devices: int = 2, **more: Any) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:devices], **more)


@pytest.fixture(scope="module")
def tuned(small_folder: Path, folder: Path) -> AutoLoRAPipeline:
    pipe = load(small_folder)
    pipe.load_lora(folder / "3.safetensors")
    return pipe


@pytest.fixture
def pipe(tuned: AutoLoRAPipeline) -> AutoLoRAPipeline:
    """Which remembers nothing."""
    tuned.text._forget(lambda _: True)
    return tuned


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What devices are asked for: rows of every encoder call, and "fetch"."""
    seen: list[tuple[str, int]] = []
    begin, fetch = encoding.begin, jax.device_get

    def begun(encoder: Any, mesh: Any, params: Any, delta: Any, words: Any, rows: Any, size: int) -> Any:
        seen.append((encoder.config.hidden_act, len(rows.ids)))
        return begin(encoder, mesh, params, delta, words, rows, size)

    monkeypatch.setattr(encoding, "begin", begun)
    monkeypatch.setattr(jax, "device_get", lambda tree: seen.append(("fetch", 0)) or fetch(tree))
    return seen


def texts(*prompts: str) -> list[Any]:
    return [same_text(prompt) for prompt in prompts]


def asked(prompts: tuple[str, ...], scales: np.ndarray, negative: str | None = "mist", **settings: Any) -> Prompts:
    """For base and tuned."""
    rows = np.broadcast_to(scales, (len(prompts), scales.shape[-1])).astype(np.float32)
    negatives = [None if negative is None else same_text(negative)] * len(prompts)
    return Prompts(texts(*prompts), negatives, SETTINGS._replace(**settings), {"base": 0 * rows, "lora": rows})


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_new_texts_of_a_batch_are_one_call_per_encoder(pipe, calls):
    pipe.text.begin(asked(PROMPTS, SCALES))
    # Four prompts; the negative one for the base model and at four scales.
    assert [rows for _, rows in calls] == [4 + 4 + 1 + 4] * 2
    calls.clear()
    pipe.text.begin(asked(PROMPTS, SCALES))
    told = pipe.text.conditioning(asked(PROMPTS, SCALES))
    assert [what for what, _ in calls] == ["fetch"]
    pipe.text.conditioning(asked(PROMPTS[:2], SCALES[:2]))
    assert len(calls) == 2 and calls[1] == ("fetch", 0)  # of nothing
    assert told["lora"]["encoder_hidden_states"].shape == (4, 2, 77, 80)


def test_what_a_lora_leaves_alone_is_encoded_once(small_folder, calls):
    bare = load(small_folder)
    bare.add_lora({}, REPORT)
    told = bare.text.conditioning(asked(PROMPTS, SCALES))
    assert [rows for what, rows in calls if what != "fetch"] == [4 + 1] * 2
    same(told["base"], told["lora"])


def test_more_than_a_program_takes_are_further_calls(pipe, calls):
    words = tuple(f"cat {i}" for i in range(2 * encoding.ROWS[-1] // 2 + 3))
    told = pipe.text.conditioning(asked(words, np.array([1.0])))
    rows = 2 * len(words) + 2
    assert [n for what, n in calls if what != "fetch"] == [80, rows - 80] * 2
    alone = load_alone(pipe, words[-1])
    same(alone["lora"]["encoder_hidden_states"][0], told["lora"]["encoder_hidden_states"][-1])


def load_alone(pipe: AutoLoRAPipeline, prompt: str) -> Any:
    pipe.text._forget(lambda _: True)
    return pipe.text.conditioning(asked((prompt,), np.array([1.0])))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_text_is_the_same_in_any_company(small_folder, folder, devices):
    pipe = load(small_folder, devices)
    pipe.load_lora(folder / "3.safetensors")
    together = pipe.text.conditioning(asked(PROMPTS, SCALES, clip_skip=1))
    for i, prompt in enumerate(PROMPTS):
        pipe.text._forget(lambda _: True)
        alone = pipe.text.conditioning(asked((prompt,), SCALES[i], clip_skip=1))
        same(alone, jax.tree.map(lambda a, i=i: a[i : i + 1], together))


def test_each_row_is_computed_by_itself_and_padding_is_not():
    """Whatever a compiler makes of many rows at once, it makes it of one."""
    shapes: list[tuple[int, ...]] = []

    def inverse(row: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        shapes.append(row["x"].shape)
        return 1 / row["x"], None

    x = np.array([[1.0], [2.0], [0.0], [0.0]], np.float32)
    found, _ = encoding.one_by_one(inverse, {"x": x}, jax.numpy.int32(2))
    np.testing.assert_array_equal(found, [[1.0], [0.5], [0.0], [0.0]])
    assert set(shapes) == {(1, 1)}


def test_scale_0_is_the_base_encoder(pipe, small_folder):
    beside, bare = (each.text.conditioning(asked(PROMPTS, SCALES)) for each in (pipe, load(small_folder)))
    same(beside["base"], bare["base"])


def test_weights_split_over_devices_encode_the_same(small_folder, folder):
    told = []
    for shards in (1, 2):
        pipe = load(small_folder, 4, weight_shards=shards)
        pipe.load_lora(folder / "3.safetensors")
        told.append(pipe.text.conditioning(asked(PROMPTS, SCALES, clip_skip=1)))
    same(*told)


# ---- compiling -------------------------------------------------------------------------------------------------------


def test_values_compile_nothing(pipe, folder, count_compilations):
    pipe.text.conditioning(asked(("a cat",), np.array([1.0])))
    with count_compilations() as compiled:
        for clip_skip in (None, 0, 1, 2):
            pipe.text.conditioning(asked(("the dog",), np.array([1.0]), clip_skip=clip_skip))
        for scale in (0.3, 0.0, -2.0):
            pipe.text.conditioning(asked(("mist",), np.array([scale])))
        pipe.text.conditioning(asked(("a cat the dog mist " * 5,), np.array([1.0]), negative=None))  # zeros
        pipe.text.conditioning(asked(PROMPTS[:1], np.array([1.0]), negative=""))
        pipe.conditioning("the cat", "the dog", base_text="lora")
        pipe.conditioning("the mist", "the mist", base_text="base")
        pipe.unload_lora()
        pipe.load_lora(folder / "4.safetensors")  # of the same shapes
        pipe.conditioning("the mist", "the mist")
        pipe.load_lora(folder / "3.safetensors", 0.5)
        pipe.unload_lora()
        pipe.load_lora(folder / "3.safetensors")
    assert compiled == []


def test_few_texts_after_many_compile_nothing(pipe, count_compilations):
    words = tuple(f"dog {i}" for i in range(2 * encoding.ROWS[0]))
    pipe.text.conditioning(asked(words, np.array([1.0])))
    with count_compilations() as compiled:
        pipe.text.conditioning(asked(("one more",), np.array([1.0])))
        pipe.text.conditioning(asked(tuple(f"{word} mist" for word in words), np.array([0.5])))
    assert compiled == []


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_full_memory_forgets_the_oldest(pipe, calls, monkeypatch):
    wanted = pipe.text.conditioning(asked(PROMPTS, SCALES))
    size = sum(a.nbytes for outputs in pipe.text._known.values() for a in outputs)
    pipe.text._forget(lambda _: True)
    monkeypatch.setattr(stage, "CACHED_BYTES", size // 2)
    same(pipe.text.conditioning(asked(PROMPTS, SCALES)), wanted)
    kept = sum(a.nbytes for outputs in pipe.text._known.values() for a in outputs)
    assert size // 4 < kept <= size // 2
    calls.clear()
    same(pipe.text.conditioning(asked(PROMPTS, SCALES)), wanted)
    assert 0 < sum(rows for _, rows in calls) < 2 * 13


def test_what_was_begun_with_another_lora_is_not_collected(pipe, folder):
    pipe.text.begin(asked(PROMPTS, SCALES))
    pipe.unload_lora()
    pipe.load_lora(folder / "4.safetensors")
    told = pipe.text.conditioning(asked(PROMPTS, SCALES))
    pipe.text._forget(lambda _: True)
    same(pipe.text.conditioning(asked(PROMPTS, SCALES)), told)
    pipe.unload_lora()
    pipe.load_lora(folder / "3.safetensors")


def test_a_call_that_fails_is_made_again(pipe, calls, monkeypatch):
    pipe.text.begin(asked(PROMPTS, SCALES))

    def fails(_: Any) -> Any:
        raise RuntimeError("lost")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="lost"):
        patch.setattr(jax, "device_get", fails)
        pipe.text.conditioning(asked(PROMPTS, SCALES))
    told = pipe.text.conditioning(asked(PROMPTS, SCALES))
    assert [rows for what, rows in calls if what != "fetch"] == [13] * 4
    assert np.isfinite(told["lora"]["encoder_hidden_states"]).all()


def test_a_text_that_is_none_is_said_before_anything_is_encoded(pipe, calls):
    for method in (pipe.text.read, pipe.text.begin, pipe.text.conditioning):
        with pytest.raises(TypeError):
            method(asked(("a cat", "\udcff"), np.array([1.0])))
    assert calls == []
    pipe.text.read(asked(("a cat",), np.array([1.0])))
    assert calls == []


# ---- tokenizers ------------------------------------------------------------------------------------------------------


WITHOUT_TORCH = """
import importlib.util, sys
from pathlib import Path

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)

import autolora_jax.evaluation.encoders
import autolora_jax.evaluation.judge
import autolora_jax.pipeline
from autolora_jax.config import CLIPTextConfig
from autolora_jax.text.tokens import open_tokenizer

assert "transformers" not in sys.modules
print(len(open_tokenizer(CLIPTextConfig, Path(sys.argv[1]) / "tokenizer")("a cat").input_ids))
"""


def test_transformers_comes_late_and_says_nothing(small_folder):
    """It takes as long to import as all the rest, and would say that there is no PyTorch."""
    told = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(small_folder)], capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, "4\n", "")


# ---- T5 from the host ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoLoRAPipeline]:
    folder = tmp_path_factory.mktemp("sd3")
    reference_sd3.tiny_sd3(folder, "sd3").save_pretrained(folder)
    pipe = load(folder, text_encoder_3="host")
    change = {"down": normal(5, 96, 2) / 6, "up": normal(6, 2, 32), "owner": np.zeros(2, np.int32)}
    q = {"encoder": {"block_1": {"layer_0": {"SelfAttention": {"q": change}}}}}
    pipe.add_lora({"text_encoder_3": q}, REPORT)
    yield pipe


def test_t5_passes_the_bus_once_for_all(sd3, monkeypatch, count_compilations):
    streams: list[int] = []
    encode = stage.encode_streamed

    def counted(*what: Any) -> Any:
        streams.append(len(what[4].ids))
        return encode(*what)

    monkeypatch.setattr(stage, "encode_streamed", counted)
    settings = dict(max_sequence_length=48)
    together = sd3.text.conditioning(asked(PROMPTS, SCALES, **settings))
    assert streams == [13]
    with count_compilations() as compiled:
        for i, prompt in enumerate(PROMPTS):
            sd3.text._forget(lambda _: True)
            alone = sd3.text.conditioning(asked((prompt,), SCALES[i], **settings))
            same(alone, jax.tree.map(lambda a, i=i: a[i : i + 1], together))
    assert compiled == [] and streams[1:] == [4] * 4
    assert np.abs(together["lora"]["encoder_hidden_states"] - together["base"]["encoder_hidden_states"]).max() > 1e-3


@pytest.mark.parametrize("text", ["", "a cat", "a cat and the dog " * 30, "mist " * 75, "mist " * 76])
def test_texts_are_begun_ended_and_cut_as_transformers_does(small_folder: Path, text: str):
    theirs = CLIPTokenizer.from_pretrained(small_folder / "tokenizer")
    expected = theirs(text, truncation=True, max_length=77, padding="max_length").input_ids
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        vocabulary = Vocabulary("text_encoder", theirs, len(theirs), Words())
        [(ours, _)] = chunked(vocabulary, [((Piece(text),), 1.0)], False, slices, 77, 1)
    assert list(ours) == expected
    assert bool(said) == (len(theirs(text).input_ids) > 77)
