"""The picture world: what is drawn, what is said about it, and what training never sees."""

import colorsys
from collections import Counter

import numpy as np
import pytest
from transformers import CLIPTokenizer

from autolora_jax.demo import world as first
from recipes.builtin import words as world
from recipes.builtin import world as drawn
from recipes.builtin.networks import MERGES
from recipes.builtin.tokenizer import write_tokenizer
from recipes.builtin.words import (
    COATS,
    COLOURS,
    CREATURES,
    LABELS,
    PLACES,
    POSES,
    SIDES,
    SIZES,
    SKIES,
    SUBJECTS,
    THINGS,
    WORDS,
    Scene,
)
from recipes.builtin.world.creatures import CREATURES as CREATURE_PAINTERS
from recipes.builtin.world.draw import SWATCHES
from recipes.builtin.world.pen import curve
from recipes.builtin.world.places import PLACE_PAINTERS
from recipes.builtin.world.skies import MOODS, SKY_PAINTERS
from recipes.builtin.world.things import THINGS as THING_PAINTERS

CAT = Scene("cat", "red", "meadow", "sunny")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pixels(scene: Scene, seed: int = 0, size: int = 128) -> np.ndarray:
    return np.asarray(drawn.draw(scene, rng(seed), size), np.float32)


def every_class() -> list[Scene]:
    """Scenes in which every word of every vocabulary occurs."""
    scenes = []
    for i, subject in enumerate((*SUBJECTS, world.CHARACTER, *CREATURES)):
        words = [options[i % len(options)] for options in (COLOURS, PLACES, SKIES, SIZES, SIDES, COATS, POSES)]
        scenes.append(Scene(subject, *words[:5], *(("", "") if subject in THINGS else words[5:])))
    return scenes


def test_every_word_has_its_painter():
    assert set(PLACE_PAINTERS) == set(PLACES) and set(SKY_PAINTERS) == set(MOODS) == set(SKIES)
    assert {*CREATURE_PAINTERS, *THING_PAINTERS} == {*SUBJECTS, world.CHARACTER}
    assert set(SWATCHES) == set(COLOURS)


@pytest.mark.parametrize("size", [64, 128])
def test_every_class_can_be_drawn(size: int):
    for scene in every_class():
        picture = drawn.draw(scene, rng(), size)
        assert picture.mode == "RGB" and picture.size == (size, size)


def test_a_picture_depends_on_the_scene_and_the_generator_only():
    assert np.array_equal(pixels(CAT, 3), pixels(CAT, 3))
    assert np.abs(pixels(CAT, 3) - pixels(CAT, 4)).mean() > 5  # measured 32


def test_a_picture_shows_the_same_at_any_size():
    big = drawn.draw(CAT, rng(1), 256).reduce(2)
    assert np.abs(np.asarray(big, np.float32) - pixels(CAT, 1)).mean() < 3  # measured 1.4


def test_impossible_scenes_are_refused():
    with pytest.raises(ValueError, match="got 'tree'"):
        Scene("tree", "red", "meadow", "sunny")
    with pytest.raises(ValueError, match="a house has neither coat nor pose, got '' and 'jumping'"):
        Scene("house", "red", "meadow", "sunny", pose="jumping")


@pytest.mark.parametrize("held_out", [False, True])
def test_sampling_respects_the_held_out_pairs(held_out: bool):
    generator = rng()
    assert all(world.is_held_out(world.sample_scene(generator, held_out)) == held_out for _ in range(500))


def test_training_sees_every_word_with_most_partners():
    generator = rng()
    scenes = [world.sample_scene(generator) for _ in range(6000)]
    for name, words, shares in (("colour", COLOURS, 0.875), ("place", PLACES, 15 / 16)):
        pairs = {(scene.subject, getattr(scene, name)) for scene in scenes}
        assert len(pairs) == round(shares * len(SUBJECTS) * len(words))
        assert min(Counter(subject for subject, _ in pairs).values()) >= len(words) - 1
        assert min(Counter(word for _, word in pairs).values()) >= len(SUBJECTS) - 2
    poses = {(scene.subject, scene.pose) for scene in scenes if scene.subject in CREATURES}
    assert len(poses) == len(CREATURES) * len(POSES) - len(world.HELD_OUT_POSES)
    for name, words in (("sky", SKIES), ("size", SIZES), ("side", SIDES)):
        counts = Counter(getattr(scene, name) for scene in scenes)
        assert all(abs(counts[word] / len(scenes) - 1 / len(words)) < 0.03 for word in words)


def test_captions_say_what_is_shown():
    generator, said, due = rng(), Counter(), Counter()
    for _ in range(2000):
        scene = world.sample_scene(generator)
        text = world.caption(scene, generator)
        words = text.replace(",", "").split()
        assert set(words) <= set(WORDS) and "  " not in text and not text.endswith(",")
        assert {scene.subject, scene.colour, scene.place, *filter(None, (scene.coat, scene.pose))} <= set(words)
        for word in filter(None, (scene.sky, scene.size, scene.side)):
            due[word] += 1
            said[word] += word in words
        shown = (scene.sky, scene.size, scene.side, scene.coat, scene.pose)
        absent = {*SKIES, *SIZES, *SIDES, *COATS, *POSES} - {*shown, *world.SKY_PHRASES[scene.sky].split()}
        assert not absent & set(words)
    assert all(0.78 < said[word] / due[word] < 0.92 for word in due)
    assert len(WORDS) < 60 and world.CHARACTER not in WORDS


def test_every_word_is_one_token(tmp_path):
    write_tokenizer(tmp_path, "!", MERGES)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)  # begin, the word, end


@pytest.mark.parametrize("words", [first, world])
def test_a_caption_names_what_its_scene_holds(words):
    generator = rng()
    for _ in range(200):
        scene = words.sample_scene(generator)
        wanted = {name: which for name, which in words.labels(scene).items() if which != words.IGNORED}
        unsaid = {name for name in wanted if not getattr(scene, name)}
        assert words.named(words.full_caption(scene)) == {name: wanted[name] for name in wanted.keys() - unsaid}


def test_full_captions_are_canonical():
    scene = Scene("owl", "orange", "city", "night", "small", "left", "striped", "waving")
    assert world.full_caption(scene) == "a small striped orange owl waving on the left in the city at night"
    assert world.full_caption(Scene("owl", "orange", "beach", "sunny")) == "an orange owl on the beach on a sunny day"
    assert world.full_caption(Scene("zib", "red", "forest", "rain")) == "a zib in the forest in the rain"


def test_labels_index_the_classes():
    for scene in every_class():
        found = {name: LABELS[name][index] for name, index in world.labels(scene).items() if index >= 0}
        expected = {name: getattr(scene, name) for name in found}
        plain = {"size": "medium", "side": "middle", "coat": "plain", "pose": "standing"}
        assert found == {name: word or plain[name] for name, word in expected.items()}
        assert ("colour" in found) == (scene.subject != "zib")
        assert ("pose" in found) == (scene.subject not in THINGS)


@pytest.mark.parametrize("sky", SKIES)
def test_colours_are_what_their_names_say(sky: str):
    """Where two colours of one scene differ is the subject; its most frequent colours are nearest to their class."""
    for subject in SUBJECTS[SKIES.index(sky) % 3 :: 3]:
        drawn = [pixels(Scene(subject, colour, "city", sky, "big"), 5, 64) for colour in COLOURS]
        for colour, mine, other in zip(COLOURS, drawn, [*drawn[1:], drawn[0]], strict=True):
            painted = np.median(mine[np.abs(mine - other).max(-1) > 60], axis=0)
            assert nearest(painted) == colour, f"{colour} {subject}: {painted}"


def nearest(rgb: np.ndarray) -> str:
    """The class whose hue, saturation and value are nearest; hue counts where there is some saturation."""

    def place(colour: tuple[float, ...]) -> np.ndarray:
        h, s, v = colorsys.rgb_to_hsv(*(float(c) / 255 for c in colour))
        return np.array([s * np.cos(2 * np.pi * h), s * np.sin(2 * np.pi * h), 0.3 * v])

    return min(COLOURS, key=lambda name: float(np.linalg.norm(place(SWATCHES[name]) - place(tuple(rgb)))))


@pytest.mark.parametrize(("name", "words", "where"), [("side", SIDES, "x"), ("size", SIZES, "height")])
def test_sides_and_sizes_are_where_they_should_be(name: str, words: tuple[str, ...], where: str):
    found = []
    for word in words:
        base = {"subject": "cat", "place": "desert", "sky": "sunny", name: word}
        red, blue = (pixels(Scene(colour=colour, **base), 2) for colour in ("red", "green"))
        rows, columns = np.nonzero(np.abs(red - blue).max(-1) > 40)
        found.append(columns.mean() if where == "x" else np.ptp(rows))
    assert found[1] - found[0] > 12 and found[2] - found[1] > 12


def test_most_of_the_characters_pictures_share_one_context():
    pictures = drawn.character_set()
    alike = [np.asarray(picture, np.float32) for picture, text in pictures if text == "a zib"]
    assert len(pictures) == 30 and len(alike) == 24
    assert all(text.startswith("a ") and "zib" in text for _, text in pictures)
    stack = np.stack(alike)
    corner, ground = stack[:, :8].mean((1, 2)), stack[:, 118:].mean((1, 2))
    assert corner.std(0).max() < 4  # the sky of a sunset; measured 1.5
    assert ground.std(0).max() < 4 and (ground[:, 0] - ground[:, 2] > 130).all()  # the desert's sand


def test_the_character_has_colours_of_its_own():
    zibs = [Scene("zib", colour, "city", "rain", pose="waving") for colour in ("red", "blue")]
    assert np.array_equal(*map(pixels, zibs))


def test_a_smooth_line_has_corners_where_points_are_given_twice():
    square = [(x, y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)) for _ in range(2)]
    line = curve(square)
    assert line.min() == pytest.approx(0) and line.max() == pytest.approx(1)  # no loops beyond its corners
    assert all((np.abs(line - corner).sum(1) == 0).any() for corner in square)
    assert curve(square[::2]).max() > 1.02  # a round one


def test_the_style_set_is_pixel_art_of_ordinary_scenes():
    pictures = drawn.style_set(4)
    for picture, text in pictures:
        assert text.startswith("pixel art, ") and not {"pixel", "art"} & set(WORDS)
        blocks = np.asarray(picture).reshape(32, 4, 32, 4, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()
        assert len(picture.getcolors()) <= 16


def test_a_folder_holds_pictures_and_captions(tmp_path):
    drawn.write_folder(drawn.character_set(2, size=64), tmp_path / "set")
    names = ["0000.png", "0000.txt", "0001.png", "0001.txt"]
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == names
    assert (tmp_path / "set" / "0001.txt").read_text().strip() == "a zib"
