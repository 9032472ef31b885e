"""Prompts as A1111 and ComfyUI read them: weights, breaks, chunks, and what they do to the encoders' states."""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from autolora_jax import AutoLoRAPipeline
from autolora_jax.config import ConfigError
from autolora_jax.text import Prompts
from autolora_jax.text.stage import ANY_SIZE, same_text
from autolora_jax.text.syntax import (
    SYNTAXES,
    Token,
    a1111_chunks,
    a1111_parts,
    comfy_chunks,
    comfy_parts,
    foreign,
    slices,
)

TOLERANCE = 1e-5  # of the maximum


# ---- marks -----------------------------------------------------------------------------------------------------------


# The first eight are the examples in parse_prompt_attention's docstring.
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *(("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)),
                *((", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)),
            ],
        ),
        ("", [("", 1.0)]),
        ("a) b] c", [("a) b] c", 1.0)]),
        ("a BREAK b", [("a", 1.0), (None, 1.0), ("b", 1.0)]),
        ("(a BREAK b:1.2)", [("a", 1.2), (None, 1.0), ("b", 1.2)]),
        ("a:1.2) at 10:30", [("a:1.2) at 10:30", 1.0)]),
        (r"c:\\d (\(e\):1.5)", [("c:\\d ", 1.0), ("(e)", 1.5)]),
    ],
)
def test_a1111_brackets_are_weights(text: str, parts: list[tuple[str | None, float]]):
    found = a1111_parts(text)
    assert [part.text for part in found] == [words for words, _ in parts]
    assert [part.weight for part in found if part.text is not None] == pytest.approx(
        [weight for words, weight in parts if words is not None]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat <lora:zib:0.8>", "no negative one"),
        ("a [cat:dog:0.5]", "changes over the steps"),
        ("a [cat|dog]", "changes over the steps"),
        ("a cat AND a dog", "several prompts in one"),
        ("a (cat:1.2.3)", "'1.2.3', which is no number"),
    ],
)
def test_what_is_not_read_of_a1111s_is_an_error(text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        a1111_parts(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red:1.4) cat", [("a ", 1.0), ("red", 1.4), (" cat", 1.0)]),
        ("((a:0.5) b:2.0)", [("a", 0.5), (" b", 2.0)]),  # a number is the weight, whatever is around it
        ("((a) b)", [("a", 1.21), (" b", 1.1)]),
        (r"\(a\) [b]", [("(a) [b]", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(unclosed", [("(unclosed", 1.0)]),
        ("(" * 3000 + "a" + ")" * 3000, None),
    ],
)
def test_comfy_brackets_are_weights(text: str, parts: list[tuple[str, float]] | None):
    found = comfy_parts(text)
    if parts is not None:
        assert [part.text for part in found] == [words for words, _ in parts]
        assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def tokens(*ids: int) -> list[list[Token]]:
    return [[Token(number, 1.0)] for number in ids]


def ids(chunks: list[list[Token]]) -> list[list[int]]:
    return [[token.id for token in chunk] for chunk in chunks]


COMMA = 99


def test_chunks_end_where_each_program_ends_them():
    many = tokens(*range(7))
    assert ids(slices(many, 3)) == [[0, 1, 2], [3, 4, 5], [6]] and slices([], 3) == [[]]
    assert ids(a1111_chunks(many, 3, None)) == [[0, 1, 2], [3, 4, 5], [6]]
    # what follows a comma moves on with what fills the chunk; a comma that fills it does not
    assert ids(a1111_chunks(tokens(0, COMMA, 2, 3), 3, COMMA)) == [[0, COMMA], [2, 3]]
    assert ids(a1111_chunks(tokens(0, 1, COMMA, 3), 3, COMMA)) == [[0, 1, COMMA], [3]]
    far = tokens(COMMA, *range(1, 31))
    assert ids(a1111_chunks(far, 30, COMMA)) == [[COMMA, *range(1, 30)], [30]]
    assert ids(a1111_chunks([*tokens(0), None, *tokens(1)], 3, COMMA)) == [[0], [1]]
    assert ids(a1111_chunks([*tokens(0), None], 3, COMMA)) == [[0]]
    assert ids(a1111_chunks([None, *tokens(0)], 3, COMMA)) == [[], [0]]
    vectors = [Token(7, 1.0)] * 2  # of an embedding
    assert ids(a1111_chunks([*tokens(0, 1), vectors], 3, COMMA)) == [[0, 1], [7, 7]]
    words = [[Token(0, 1.0), Token(1, 1.0)], [Token(2, 1.0), Token(3, 1.0)]]
    assert ids(comfy_chunks(words, 3)) == [[0, 1], [2, 3]]
    long = [[Token(i, 1.0) for i in range(8)]]
    assert ids(comfy_chunks([*tokens(9), *long], 3)) == [[9, 0, 1], [2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a (red:1.4) cat <lora:zib:0.8>", "'<lora:zib:0.8>' loads no lora and '(red:1.4)' is no weight"),
        ("((sharp)) cat", "'((' is no weight"),
        ("a cat BREAK a dog", "'BREAK' is no weight and no break"),
        ("a cat (a small one), [sic]", None),
        ("at 10:30", None),
    ],
)
def test_marks_of_other_programs_are_noticed(text: str, said: str | None):
    found = foreign(text)
    assert found is None if said is None else said in found


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def theirs(small_folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(small_folder)


def told(pipe: AutoLoRAPipeline, prompt: str, **settings: Any) -> dict[str, np.ndarray]:
    asked = Prompts(
        [same_text(prompt)], [same_text("")], ANY_SIZE._replace(**settings), {"base": np.zeros((1, 0), np.float32)}
    )
    return {name: array[0, 1] for name, array in pipe.text.conditioning(asked)["base"].items()}


@torch.no_grad()
def encoded(theirs: StableDiffusionXLPipeline, chunks: list[list[str]]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """(states of each chunk by both encoders, the second's pooled vector of the first), by transformers."""
    states, pooled = [], None
    for chunk in chunks:
        row = []
        for tokenizer, encoder in (
            (theirs.tokenizer, theirs.text_encoder),
            (theirs.tokenizer_2, theirs.text_encoder_2),
        ):
            inside = [i for text in chunk for i in tokenizer(text, add_special_tokens=False).input_ids]
            begin, end = tokenizer("").input_ids
            padded = [begin, *inside, end] + [tokenizer.pad_token_id] * (75 - len(inside))
            out = encoder(torch.tensor([padded]), output_hidden_states=True)
            row.append(out.hidden_states[-2][0].numpy())
        states.append(row)
        pooled = out.text_embeds[0].numpy() if pooled is None else pooled
    return states, pooled


def weights(theirs: StableDiffusionXLPipeline, *parts: tuple[str, float]) -> np.ndarray:
    row = np.ones(77, np.float32)
    at = 1
    for text, weight in parts:
        n = len(theirs.tokenizer(text, add_special_tokens=False).input_ids)
        row[at : at + n] = weight
        at += n
    return row[:, None]


def close(ours: dict[str, np.ndarray], states: list[list[np.ndarray]], pooled: np.ndarray) -> None:
    expected = np.concatenate([np.concatenate(row, axis=-1) for row in states])
    assert ours["encoder_hidden_states"].shape == expected.shape
    for got, want in ((ours["encoder_hidden_states"], expected), (ours["text_embeds"], pooled)):
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()  # seen 1.1e-6


def test_a1111_weights_restore_the_mean(pipe, theirs):
    """sd_emphasis.EmphasisOriginal, in numpy: each encoder's states by themselves."""
    parts = ("the ", 1.0), ("cat", 1.5), (" a dog", 1.0)
    [row], pooled = encoded(theirs, [[text for text, _ in parts]])
    weighed = [state * weights(theirs, *parts) for state in row]
    expected = [new * (old.mean() / new.mean()) for new, old in zip(weighed, row, strict=True)]
    close(told(pipe, "the (cat:1.5) a dog", syntax="a1111"), [expected], pooled)


def test_comfy_weights_are_distances_from_nothing(pipe, theirs):
    """ClipTokenWeightEncoder.encode_token_weights, in numpy."""
    parts = ("the ", 1.0), ("cat", 1.4), (" a dog", 1.0)
    (row, nothing), pooled = encoded(theirs, [[text for text, _ in parts], []])
    expected = [(state - empty) * weights(theirs, *parts) + empty for state, empty in zip(row, nothing, strict=True)]
    close(told(pipe, "the (cat:1.4) a dog", syntax="comfy"), [expected], pooled)


def test_chunks_are_encoded_each_by_itself(pipe, theirs):
    states, pooled = encoded(theirs, [["the cat"], ["a dog"], []])
    close(told(pipe, "the cat BREAK a dog", syntax="a1111", chunks=3), states, pooled)
    long = "cat " * 80
    states, pooled = encoded(theirs, [["cat " * 75], ["cat " * 5]])
    for syntax in SYNTAXES:
        close(told(pipe, long, syntax=syntax, chunks=2), states, pooled)
    with pytest.warns(UserWarning, match=r"longer than 75 tokens; not read: .*prompt_chunks=2 reads all"):
        told(pipe, "cat " * 81, syntax="plain")


def test_a_short_prompt_without_marks_is_the_same_in_every_syntax(pipe):
    plain, *others = (told(pipe, "the cat, a dog", syntax=syntax) for syntax in SYNTAXES)
    for other in others:
        for name, array in plain.items():
            np.testing.assert_array_equal(array, other[name])


def test_a_picture_of_a_long_weighted_prompt_compiles_once_for_its_chunks(pipe, count_compilations):
    call = dict(num_inference_steps=2, output_type="latent", prompt_syntax="a1111", prompt_chunks=2)
    first = pipe("the (cat:1.3), " * 20, **call).images
    with count_compilations() as compiled:
        other = pipe("(a dog) BREAK the dog", seeds=3, **call).images
        plain = pipe("the cat, " * 20, **call).images
    assert compiled == [] and len(other) == 1
    assert np.isfinite(first).all() and np.abs(first - plain).max() > 1e-3


def test_pipelines_say_what_they_do_not_read(pipe):
    call = dict(num_inference_steps=1, output_type="latent")
    with pytest.warns(UserWarning, match=r"read letter by letter: .*'<lora:zib:0.8>' loads no lora.*--lora FILE:SCALE"):
        pipe("a cat <lora:zib:0.8>", **call)
    with pytest.raises(ConfigError, match=r"lora_dir='loras'.*--lora FILE:SCALE"):
        pipe("a cat <lora:zib:0.8>", prompt_syntax="a1111", **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = pipe("a (cat:1.2)", prompt_syntax="comfy", **call)
    assert drawn.settings[0]["prompt_syntax"] == "comfy"
