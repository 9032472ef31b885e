"""Embeddings in prompts against diffusers' own load_textual_inversion, and the laws of when they act."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.numpy import save_file

from autolora_jax import AutoLoRAPipeline
from autolora_jax.lora import LoraReport
from autolora_jax.text import Word
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.lora.embeddings import read_embeddings, split_embeddings
from tests import reference_sd3
from tests.parity import error, normal

TOLERANCE = 5e-6  # seen: 8.6e-7
# As many vectors as the encoders please; the tiny CLIPs are 32 and 48 wide, T5 is 96.
ZIB = {"clip_l": normal(1, 3, 32), "clip_g": normal(2, 2, 48)}
WOLLE = {"clip_l": normal(3, 1, 32), "clip_g": normal(4, 1, 48)}
NAMES = {"clip_l": "", "clip_g": "_2", "t5": "_3"}  # ends of diffusers' names for the encoders
REPORT = LoraReport("none.safetensors", "", {}, {}, {}, 0, (), {})


def teach(pipe: Any, word: str, vectors: dict[str, np.ndarray]) -> None:
    """diffusers' own way, an encoder at a time."""
    for part, rows in vectors.items():
        encoder, tokenizer = (getattr(pipe, name + NAMES[part]) for name in ("text_encoder", "tokenizer"))
        pipe.load_textual_inversion(torch.from_numpy(rows), token=word, text_encoder=encoder, tokenizer=tokenizer)
        if part != "t5":  # without this, transformers pools at the last added token: sd-scripts' pool_workaround
            getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id


def saved(path: Path, vectors: dict[str, np.ndarray]) -> Path:
    save_file(vectors, path)
    return path


def load(folder: Path, **settings: Any) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:1], **settings)


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> StableDiffusionXLPipeline:
    """diffusers' pipeline that knows two words."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    teach(pipe, "zib", ZIB)
    teach(pipe, "wolle", WOLLE)
    return pipe


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AutoLoRAPipeline:
    """Ours, with the same words from files."""
    folder = tmp_path_factory.mktemp("words")
    pipe = load(tiny_folder)
    assert pipe.load_textual_inversion(saved(folder / "zib.safetensors", ZIB)) == "zib"
    assert pipe.load_textual_inversion(saved(folder / "other.safetensors", WOLLE), token="wolle") == "wolle"
    return pipe


@pytest.fixture
def bare(tiny_folder: Path) -> AutoLoRAPipeline:
    return load(tiny_folder)


def encoded(pipe: StableDiffusionXLPipeline, prompt: str, negative: str, **settings: Any) -> dict[str, np.ndarray]:
    """What diffusers makes of (negative, positive)."""
    with torch.no_grad():
        hidden, no_hidden, pooled, no_pooled = pipe.encode_prompt(prompt, negative_prompt=negative, **settings)
    both = {"encoder_hidden_states": (no_hidden, hidden), "text_embeds": (no_pooled, pooled)}
    return {name: torch.cat(pair).numpy() for name, pair in both.items()}


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    return max(error(ours[name][0], theirs[name]) for name in theirs)


# ---- against diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_skip", [None, 1])
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a cat, zib! the dog", "mist"), ("zib", ""), ("wolle zib wolle", "zib, the cat"), ("a cat", "wolle")],
)
def test_prompts_match_diffusers(pipe, theirs, prompt: str, negative: str, clip_skip: int | None):
    ours = pipe.conditioning(prompt, negative, clip_skip=clip_skip)
    assert difference(ours["base"], encoded(theirs, prompt, negative, clip_skip=clip_skip)) < TOLERANCE
    for name, array in ours["base"].items():  # a word without a LoRA is for every branch
        np.testing.assert_array_equal(ours["lora"][name], array)


def test_a_word_says_something(pipe, tiny_pipeline):
    """Or agreement would prove nothing."""
    assert difference(pipe.conditioning("a zib", "zib")["base"], encoded(tiny_pipeline, "a zib", "zib")) > 0.1
    assert difference(pipe.conditioning("a cat", "")["base"], encoded(tiny_pipeline, "a cat", "")) < TOLERANCE


def test_what_does_not_fit_is_said_by_name(pipe, theirs):
    prompt = "a cat, " * 24 + "zib, wolle the dog"  # 72 tokens, then a word of three in CLIP-L's eyes, two in bigG's
    with pytest.warns(UserWarning, match="longer than 75 tokens; not read") as seen:
        ours = pipe.conditioning(prompt, "")["base"]
    assert [str(w.message).partition("not read: ")[2] for w in seen] == [
        "', wolle the dog'; prompt_chunks=2 reads all",
        "'wolle the dog'; prompt_chunks=2 reads all",
    ]
    assert difference(ours, encoded(theirs, prompt, "")) < TOLERANCE
    with pytest.warns(UserWarning, match="not read: 'zib wolle the'") as seen:
        pipe.conditioning("the " * 74 + "zib wolle the", "")  # a word's first vector is read
    assert len(seen) == 2


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusion3Pipeline, Path]:
    """(diffusers' SD3 that knows zib, folder with the model and zib.safetensors)."""
    folder = tmp_path_factory.mktemp("sd3")
    base = reference_sd3.tiny_sd3(folder)
    base.save_pretrained(folder)

    class Pipeline(StableDiffusion3Pipeline, TextualInversionLoaderMixin):
        """diffusers has the loader for all pipelines, but not in this one."""

    pipe = Pipeline(**base.components)
    vectors = {**ZIB, "t5": normal(5, 4, reference_sd3.WIDTH)}
    teach(pipe, "zib", vectors)
    saved(folder / "zib.safetensors", vectors)
    return pipe, folder


@pytest.mark.parametrize("place", ["device", "host"])
def test_sd3s_prompts_match_diffusers(sd3, place: str):
    theirs, folder = sd3
    ours = load(folder, text_encoder_3=place)
    ours.load_textual_inversion(folder / "zib.safetensors")
    call = dict(max_sequence_length=24, clip_skip=1)
    told = ours.conditioning("a cat zib, the dog", "zib", **call)["base"]
    tokenizers = (theirs.tokenizer, theirs.tokenizer_2, theirs.tokenizer_3)
    positive, negative = (
        [theirs.maybe_convert_prompt(text, tokenizer) for tokenizer in tokenizers]
        for text in ("a cat zib, the dog", "zib")
    )
    with torch.no_grad():
        hidden, no_hidden, pooled, no_pooled = theirs.encode_prompt(
            *positive, negative_prompt=negative[0], negative_prompt_2=negative[1], negative_prompt_3=negative[2], **call
        )
    assert error(told["encoder_hidden_states"][0], torch.cat([no_hidden, hidden])) < TOLERANCE
    assert error(told["pooled_projections"][0], torch.cat([no_pooled, pooled])) < TOLERANCE


def test_t5_without_vectors_reads_nothing_in_the_words_place(sd3, tmp_path: Path):
    pipe = load(sd3[1])
    pipe.load_textual_inversion(saved(tmp_path / "zib.safetensors", ZIB))
    with_word, without = (
        pipe.conditioning(text, "", max_sequence_length=24)["base"]["encoder_hidden_states"][0, 1]
        for text in ("a cat zib the dog", "a cat the dog")
    )
    np.testing.assert_array_equal(with_word[77:], without[77:])
    assert error(with_word[:77], without[:77]) > 0.1


# ---- words that a LoRA brings ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AutoLoRAPipeline:
    """A LoRA without layers that brings the word zib, and another LoRA."""
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file({f"bundle_emb.zib.{part}": rows for part, rows in ZIB.items()}, path)
    pipe = load(tiny_folder)
    with open_tensors(path) as file:
        words, _ = split_embeddings({key: info.shape for key, info in file.tensors.items()})
        vectors = read_embeddings(file, words, {name: e.config for name, e in pipe.text.encoders.items()})
    pipe.text.set_words([Word(name, found, str(path), 0) for name, found in vectors.items()])
    pipe.add_lora({}, REPORT, 0.5)
    pipe.add_lora({}, REPORT, 0.5)
    return pipe


def test_a_loras_words_are_for_the_lora_branches(with_lora, theirs, tiny_pipeline):
    ours = with_lora.conditioning("a zib", "zib")
    assert difference(ours["lora"], encoded(theirs, "a zib", "zib")) < TOLERANCE
    assert difference(ours["base"], encoded(tiny_pipeline, "a zib", "zib")) < TOLERANCE  # three letters


def test_a_loras_words_follow_its_scale(with_lora, theirs, tiny_pipeline):
    known, unknown = (encoded(pipe, "a zib", "zib") for pipe in (theirs, tiny_pipeline))
    for scales, expected in (([0.0, 1.0], unknown), ([-0.2, 0.0], known), ([0.0, 0.0], unknown)):
        told = with_lora.conditioning("a zib", "zib", lora_scale=[scales])["lora"]
        assert difference(told, expected) < TOLERANCE


def test_base_text_lora_gives_them_to_the_base_branches_too(with_lora, theirs):
    ours = with_lora.conditioning("a zib", "zib", base_text="lora")
    assert difference(ours["base"], encoded(theirs, "a zib", "zib")) < TOLERANCE


# ---- loading and unloading -------------------------------------------------------------------------------------------


def test_another_embedding_compiles_nothing(bare, tmp_path: Path, count_compilations):
    bare.load_textual_inversion(saved(tmp_path / "zib.safetensors", ZIB))
    bare.conditioning("a zib", "mist")
    with count_compilations() as compiled:
        bare.load_textual_inversion(saved(tmp_path / "wolle.safetensors", WOLLE))  # beside it
        bare.conditioning("a zib, wolle", "the dog")
        bare.unload_textual_inversion("zib")
        bare.load_textual_inversion(saved(tmp_path / "Ende.safetensors", {n: 2 * x for n, x in ZIB.items()}))
        bare.conditioning("a cat ende wolle", "ende")
    assert not compiled


def test_what_was_encoded_with_another_embedding_is_forgotten(bare, theirs, tmp_path: Path):
    bare.load_textual_inversion(saved(tmp_path / "one.safetensors", WOLLE), token="zib")
    wrong = bare.conditioning("a zib", "the cat")["base"]
    bare.unload_textual_inversion()
    bare.load_textual_inversion(saved(tmp_path / "zib.safetensors", ZIB))
    right = bare.conditioning("a zib", "the cat")["base"]
    expected = encoded(theirs, "a zib", "the cat")
    assert difference(right, expected) < TOLERANCE < difference(wrong, expected)


def test_words_are_unloaded_with_what_they_came_with(bare, tmp_path: Path):
    def names() -> list[str]:
        return [word.name for word in bare.text.words]

    for name in ("one", "two"):
        bare.load_textual_inversion(saved(tmp_path / f"{name}.safetensors", WOLLE))
    bare.text.set_words([*bare.text.words, Word("zib", {}, "lora.safetensors", 0)])
    bare.add_lora({}, REPORT)
    assert names() == ["one", "two", "zib"]
    bare.unload_textual_inversion("one")
    with pytest.raises(ValueError, match=r"no embedding 'zib' is loaded; there are \['two'\]"):
        bare.unload_textual_inversion("zib")
    bare.unload_lora()
    assert names() == ["two"]
    bare.unload_textual_inversion()
    assert names() == []


def test_a_word_has_one_meaning(bare, tmp_path: Path):
    one = saved(tmp_path / "one.safetensors", WOLLE)
    bare.load_textual_inversion(one, token="Zib")
    with pytest.raises(WeightsError, match=r"one\.safetensors: its word 'zib' stands for an embedding of .*already"):
        bare.load_textual_inversion(one, token="zib")
    assert bare.load_textual_inversion(one, token=" ") == "one"


def test_an_embedding_for_another_model_is_refused(bare, tmp_path: Path):
    path = saved(tmp_path / "zib.safetensors", {**ZIB, "clip_l": normal(0, 2, 768)})
    with pytest.raises(WeightsError, match="clip_l is 768 wide, the vectors of text_encoder are 32"):
        bare.load_textual_inversion(path)
    assert not list(bare.text.words)
