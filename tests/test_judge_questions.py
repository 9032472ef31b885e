"""What judges are asked, what is taken for an answer, and how pictures are sent."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora_jax.evaluation.judge import QUESTIONS, Preparation
from autolora_jax.evaluation.judge.protocol import Unusable, read_answer

GIVEN = {"character": "Anna", "prompt": 'a "cat"\non a mat', "style": "pixel art"}


@pytest.fixture(autouse=True)
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(GIVEN, "reference", str(tmp_path / "cat.png"))
    Image.new("RGB", (16, 16)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def asked(name: str, **more: str):
    question = QUESTIONS[name]
    return question.about(**{key: GIVEN[key] for key in question.missing}, **more)


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name != "vqa"])
def test_a_question_shows_the_form_of_its_answer(name: str):
    found = asked(name)
    example = found.text[found.text.rindex("{") :]
    answer = read_answer(example, found.schema)
    assert set(QUESTIONS[name].of(answer).values()) == {0.0}
    assert found.schema["required"] == [*found.schema["properties"]] and found.schema["additionalProperties"] is False


def test_questions_say_what_the_paper_says():
    """The anchors of appendix A as the project's facts of the paper list them."""
    cps = asked("cps", description="red braids").text
    assert "the character Anna (red braids) in this picture" in cps and "list of keywords" in cps
    for anchor in ("0: Anna is absent", "1: there is a vague resemblance", "hair", "dress", "2:", "no clear match"):
        assert anchor in cps
    for anchor in ("3:", "noticeable differences", "4: it is very likely", "minor differences", "5:", "unmistakably"):
        assert anchor in cps
    both = asked("pc-sa").text
    for anchor in ("essence", "objects", "scenes", "0: not at all", "5: exactly", r'"a \"cat\"\non a mat"'):
        assert anchor in both
    for anchor in ("unclear pixels, aliasing, too many colours", "clear pixels, a limited palette, little aliasing"):
        assert anchor in both
    assert "Tell true pixel art from a picture that is merely of low quality" in both
    assert [*asked("pc-sa").schema["properties"]] == ["prompt_correspondence", "style_adherence"]
    assert [*asked("cps").schema["properties"]] == ["score", "reason"]


def test_any_style_will_do():
    text = QUESTIONS["sa"].about(style="ukiyo-e", poor="soft shading").text
    assert "1: very poorly (soft shading)." in text and "3: fairly well." in text and "pixel" not in text


def test_a_digest_is_of_all_that_is_asked():
    digests = [asked(name).digest for name in QUESTIONS]
    digests += [asked("cps", description="x").digest, QUESTIONS["cps"].about(character="Elsa").digest]
    assert len({*digests}) == len(QUESTIONS) + 2
    assert asked("cps").digest == asked("cps").digest


def test_a_picture_that_is_shown_is_part_of_what_is_asked(reference: Path):
    before = asked("sf")
    assert before.shows == (reference,) and asked("cps").shows == ()
    assert "the cat" in asked("sf", subject="the cat").text and str(reference) not in before.text
    assert before.schema["properties"]["subject_fidelity"]["enum"] == [0, 1, 2, 3, 4]
    digest = before.digest
    Image.new("RGB", (16, 16), (1, 2, 3)).save(reference)
    os.utime(reference, ns=(1, 1))
    assert asked("sf").digest != digest


def test_vqascore_is_asked_in_its_papers_words():
    found = asked("vqa")
    assert found.text == 'Does this figure show "a "cat"\non a mat"? Please answer yes or no.'
    assert found.of({"yes": 0.75, "no": 0.2}) == {"VQAScore": 0.75}


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="question cps does not take style; it takes character, description"):
        QUESTIONS["cps"].about(style="pixel art")
    with pytest.raises(ValueError, match="question pc-sa needs prompt, style"):
        _ = QUESTIONS["pc-sa"].text
    assert QUESTIONS["pc-sa"].about(style="a").missing == ("prompt",)


@pytest.mark.parametrize(
    "text",
    [
        '{"score": 4, "reason": ["red braids", "freckles"]}',
        '  {"reason": [], "score": 4.0}\n',
        '```json\n{"score": 4, "reason": ["ü"]}\n```',
        '```\n{"score": 4, "reason": []}\n```',
    ],
)
def test_answers_that_are_taken(text: str):
    assert QUESTIONS["cps"].of(read_answer(text, asked("cps").schema)) == {"CPS": 4.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("I can't identify people.", "not a JSON object alone"),
        ('Sure! {"score": 4, "reason": []}', "not a JSON object alone"),
        ('{"score": 4, "reason": []} {"score": 5}', "not a JSON object alone"),
        ('{"score": 4, "reason": [', "not a JSON object alone"),
        ("[" * 100_000, "not a JSON object alone"),
        ('[{"score": 4, "reason": []}]', "should be of type object"),
        ("4", "should be of type object"),
        ('{"score": 6, "reason": []}', r'"score" should be one of \[0, 1, 2, 3, 4, 5\], not 6'),
        ('{"score": -1, "reason": []}', "should be one of"),
        ('{"score": 3.5, "reason": []}', '"score" should be of type integer, not 3.5'),
        ('{"score": "4", "reason": []}', '"score" should be of type integer, not "4"'),
        ('{"score": true, "reason": []}', "should be of type integer, not true"),
        ('{"score": null, "reason": []}', "should be of type integer, not null"),
        ('{"score": 1e999, "reason": []}', "1e999 is too large a number"),
        ('{"score": NaN, "reason": []}', "NaN is no JSON"),
        ('{"score": 1, "score": 5, "reason": []}', "a key occurred twice"),
        ('{"score": 4}', 'the key "reason" was missing'),
        ('{"score": 4, "reason": "braids"}', '"reason" should be of type array'),
        ('{"score": 4, "reason": [1]}', 'an entry of "reason" should be of type string, not 1'),
        ('{"score": 4, "reason": [], "prompt": 1}', "other keys: prompt"),
    ],
)
def test_answers_that_are_not(text: str, why: str):
    with pytest.raises(Unusable, match=why):
        read_answer(text, asked("cps").schema)


def sent(preparation: Preparation, image: Image.Image) -> Image.Image:
    head, _, content = preparation.data_uri(image).partition(",")
    assert head == f"data:image/{preparation.format};base64"
    found = Image.open(io.BytesIO(base64.b64decode(content)))
    assert found.format == preparation.format.upper() and set(found.info) <= {
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
    }
    return found


def test_pictures_are_sent_as_they_are_where_they_fit():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.info["parameters"] = "the prompt, which is nobody's business"
    np.testing.assert_array_equal(np.asarray(sent(Preparation(max_side=30), image)), pixels)


@pytest.mark.parametrize("format", ["png", "jpeg"])
@pytest.mark.parametrize(("size", "shrunk"), [((200, 100), (50, 25)), ((100, 200), (25, 50)), ((1000, 1), (50, 1))])
def test_larger_ones_are_shrunk(format: str, size: tuple[int, int], shrunk: tuple[int, int]):
    assert sent(Preparation(format, 50), Image.new("RGB", size, "red")).size == shrunk


def test_preparations_say_what_they_are():
    assert str(Preparation()) == "png, at most 1024 pixels a side"
    assert str(Preparation()) != str(Preparation("jpeg")) != str(Preparation("jpeg", 512))
    with pytest.raises(ValueError, match=r"png or jpeg .* not as gif of 1024"):
        Preparation("gif")


def test_schemas_are_plain_json():
    for name in QUESTIONS:
        assert json.loads(json.dumps(asked(name).schema)) == asked(name).schema
