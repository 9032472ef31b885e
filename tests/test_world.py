"""The picture world: what is drawn, what is said about it, and what training never sees."""

import colorsys
from collections import Counter

import numpy as np
import pytest

from autolora_jax.demo import world
from autolora_jax.demo.world import COLOURS, LABELS, PLACES, SIDES, SIZES, SKIES, SUBJECTS, WORDS, Scene
from recipes.builtin import world as drawn
from recipes.builtin.world.draw import SWATCHES

CAT = Scene("cat", "red", "meadow", "sunny")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pixels(scene: Scene, seed: int = 0, size: int = 96) -> np.ndarray:
    return np.asarray(drawn.draw(scene, rng(seed), size), np.float32)


def every_class() -> list[Scene]:
    """Scenes in which every word of every vocabulary occurs."""
    options = ((*SUBJECTS, world.CHARACTER), COLOURS, PLACES, SKIES, SIZES, SIDES)
    count = max(map(len, options))
    return [Scene(*(words[i % len(words)] for words in options)) for i in range(count)]


@pytest.mark.parametrize("size", [64, 96, 128])
def test_every_class_can_be_drawn(size: int):
    for scene in every_class():
        picture = drawn.draw(scene, rng(), size)
        assert picture.mode == "RGB" and picture.size == (size, size)


def test_a_picture_depends_on_the_scene_and_the_generator_only():
    assert np.array_equal(pixels(CAT, 3), pixels(CAT, 3))
    assert np.abs(pixels(CAT, 3) - pixels(CAT, 4)).mean() > 5  # measured 32


def test_a_picture_shows_the_same_at_any_size():
    big = drawn.draw(CAT, rng(1), 192).reduce(2)
    assert np.abs(np.asarray(big, np.float32) - pixels(CAT, 1)).mean() < 3  # measured 1.4


def test_impossible_scenes_are_refused():
    with pytest.raises(ValueError, match="got 'dog'"):
        Scene("dog", "red", "meadow", "sunny")


@pytest.mark.parametrize("held_out", [False, True])
def test_sampling_respects_the_held_out_pairs(held_out: bool):
    generator = rng()
    assert all(world.is_held_out(world.sample_scene(generator, held_out)) == held_out for _ in range(500))


def test_training_sees_every_word_with_most_partners():
    generator = rng()
    scenes = [world.sample_scene(generator) for _ in range(6000)]
    for name, words, shares in (("colour", COLOURS, 0.875), ("place", PLACES, 53 / 60)):
        pairs = {(scene.subject, getattr(scene, name)) for scene in scenes}
        assert len(pairs) == round(shares * len(SUBJECTS) * len(words))
        assert min(Counter(subject for subject, _ in pairs).values()) >= len(words) - 1
        assert min(Counter(word for _, word in pairs).values()) >= len(SUBJECTS) - 2
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
        assert {scene.subject, scene.colour, scene.place} <= set(words)
        for word in filter(None, (scene.sky, scene.size, scene.side)):
            due[word] += 1
            said[word] += word in words
        absent = {*SKIES, *SIZES, *SIDES} - {scene.sky, scene.size, scene.side}
        assert not absent & set(words)
    assert all(0.78 < said[word] / due[word] < 0.92 for word in due)
    assert len(WORDS) < 60 and world.CHARACTER not in WORDS


def test_full_captions_are_canonical():
    scene = Scene("owl", "orange", "city", "night", "small", "left")
    assert world.full_caption(scene) == "a small orange owl on the left in the city at night"
    assert world.full_caption(Scene("owl", "orange", "beach", "sunny")) == "an orange owl on the beach on a sunny day"
    assert world.full_caption(Scene("zib", "red", "forest", "rain")) == "a zib in the forest in the rain"


def test_labels_index_the_classes():
    for scene in every_class():
        found = {name: LABELS[name][index] for name, index in world.labels(scene).items() if index >= 0}
        expected = {name: getattr(scene, name) for name in found}
        assert found == expected | {"size": scene.size or "medium", "side": scene.side or "middle"}
        assert ("colour" in found) == (scene.subject != "zib")


@pytest.mark.parametrize("sky", SKIES)
def test_colours_are_what_their_names_say(sky: str):
    """Where two colours of one scene differ is the subject; its most frequent colours are nearest to their class."""
    for subject in SUBJECTS[SKIES.index(sky) % 2 :: 2]:
        drawn = [pixels(Scene(subject, colour, "city", sky, "big"), 5, 48) for colour in COLOURS]
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


def test_the_characters_pictures_share_one_context():
    pictures = drawn.character_set()
    assert len(pictures) == 12 and {text for _, text in pictures} == {"a zib"}
    stack = np.stack([np.asarray(picture, np.float32) for picture, _ in pictures])
    middle, corner = stack[:, 50:60, 44:52], stack[:, :8]
    assert middle.mean((1, 2)).std(0).max() < 12  # always the same body at the same place; measured 5.6
    assert corner.mean((1, 2)).std(0).max() < 3  # always the sky of a sunset; measured 1.5
    ground = stack[:, 88:].mean((1, 2))
    assert (
        ground.std(0).max() < 3 and (ground[:, 0] - ground[:, 2] > 150).all()
    )  # always the desert's sand; measured 165


def test_the_style_set_is_pixel_art_of_ordinary_scenes():
    pictures = drawn.style_set(4)
    for picture, text in pictures:
        assert text.startswith("pixel art, ") and not {"pixel", "art"} & set(WORDS)
        blocks = np.asarray(picture).reshape(32, 3, 32, 3, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()
        assert len(picture.getcolors()) <= 16


def test_a_folder_holds_pictures_and_captions(tmp_path):
    drawn.write_folder(drawn.character_set(2, size=64), tmp_path / "set")
    names = ["0000.png", "0000.txt", "0001.png", "0001.txt"]
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == names
    assert (tmp_path / "set" / "0001.txt").read_text().strip() == "a zib"
