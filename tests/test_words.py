"""How words that stand for vectors are found in prompts, and what they become."""

import numpy as np
import pytest

from autolora_jax.text.words import LEAST_ROWS, Piece, Word, Words
from autolora_jax.weights.errors import WeightsError
from tests.parity import normal


def word(name: str, n: int = 1, lora: int | None = None, **widths: int) -> Word:
    vectors = {encoder: normal(i, n, width) for i, (encoder, width) in enumerate((widths or {"one": 8}).items())}
    return Word(name, vectors, f"{name}.safetensors", lora)


def spelled(words: Words, text: str, *scales: float) -> list[str]:
    """The pieces, words in brackets."""
    return [f"[{piece.text}]" if piece.is_word else piece.text for piece in words.split(text, scales)]


WORDS = Words([word("zib"), word("style"), word("style v1.0"), word("<s0><s1>"), word("Wolle", lora=1)])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a zib, in snow", ["a", "[zib]", ", in snow"]),
        ("ZIB", ["[zib]"]),
        ("zib zib", ["[zib]", "[zib]"]),
        ("zibs, a_zib, zib2, zibé", ["zibs, a_zib, zib2, zibé"]),  # parts of other words
        ("a zib-like thing's", ["a", "[zib]", "-like thing's"]),
        ("style v1.0, style", ["[style v1.0]", ",", "[style]"]),  # the longest
        ("a<s0><s1>!", ["a", "[<s0><s1>]", "!"]),  # no letters at its ends
        ("<s0> alone", ["<s0> alone"]),
        ("embedding:zib, Embedding:STYLE", ["[zib]", ",", "[style]"]),
        ("reembedding:zib", ["reembedding:", "[zib]"]),
        ("embedding:other", ["embedding:other"]),
        ("  no word ", ["  no word "]),  # as it came
        ("", [""]),
    ],
)
def test_whole_words_are_found(text: str, pieces: list[str]):
    assert spelled(WORDS, text) == pieces


def test_the_words_of_a_lora_act_where_it_has_a_scale():
    for scales, pieces in (((1.0, 0.5), ["a", "[Wolle]"]), ((1.0, -0.5), ["a", "[Wolle]"]), ((1.0, 0.0), ["a wolle"])):
        assert spelled(WORDS, "a wolle", *scales) == pieces
    assert spelled(WORDS, "a wolle") == ["a wolle"]  # a call that knows no LoRAs


def test_case_folding_is_that_of_the_search():
    """i with and without a dot, s and long s, k and the sign of kelvin: equal to a search without upper case."""
    words = Words([word("Kissı")])
    for text in ("kiSSı", "\u212aissı", "ki\u017fsı"):
        assert words.split(text, ()) == (Piece("Kissı", is_word=True),)


def test_every_encoder_has_a_table_of_its_own():
    words = Words([word("a", 3, one=8, two=4), word("b", 2, one=8), word("c", 1, two=4, one=8)])
    tables = words.tables
    assert {encoder: table.shape for encoder, table in tables.items()} == {"one": (64, 8), "two": (64, 4)}
    assert [list(words.rows("one", name)) for name in "abc"] == [[0, 1, 2], [3, 4], [5]]
    assert [list(words.rows("two", name)) for name in "abc"] == [[0, 1, 2], [], [3]]
    assert [words.name("two", row) for row in (-1, 2, 3, 4)] == [None, "a", "c", None]
    np.testing.assert_array_equal(tables["two"][3], next(w for w in words if w.name == "c").vectors["two"][0])
    assert not tables["one"][6:].any()


@pytest.mark.parametrize(("n", "rows"), [(1, LEAST_ROWS), (64, 64), (65, 128), (129, 256)])
def test_tables_grow_in_powers_of_two(n: int, rows: int):
    assert len(Words([word("a", n)]).tables["one"]) == rows


def test_two_words_of_one_name_are_refused():
    with pytest.raises(WeightsError, match=r"ZIB\.safetensors: its word 'ZIB' stands for .* of zib\.safetensors"):
        Words([word("zib"), word("ZIB", lora=0)])


def test_no_words_cost_nothing():
    assert Words().tables == {} and spelled(Words(), "a zib", 1.0) == ["a zib"]
