"""The judge of the built-in world: what it gives to pictures that the world itself draws."""

import numpy as np
import pytest

from autolora_jax.demo.classifier import Classifier
from autolora_jax.demo.judge import ORDINARY, adherence, pixel_art_share, world_scores
from autolora_jax.demo.world import IGNORED, LABELS, Scene, full_caption, labels, named
from tests.first_world import first_world

WORLD = first_world()
OTHERS = [i for i, scene in enumerate(WORLD.scenes) if scene.subject != "zib"][:29]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """A zib in the forest at night, and no other."""
    return [WORLD.zibs[17], *(WORLD.scenes[i] for i in OTHERS)]


@pytest.fixture(scope="module")
def ordinary() -> np.ndarray:
    return np.concatenate([WORLD.zib_pixels[17:18], WORLD.pixels[OTHERS]])


@pytest.fixture(scope="module")
def drawn_as_art() -> np.ndarray:
    return WORLD.art


def test_a_caption_names_what_its_scene_holds(scenes: list[Scene]):
    for scene in scenes:
        wanted = {name: which for name, which in labels(scene).items() if which != IGNORED}
        unsaid = {name for name in ("size", "side") if not getattr(scene, name)}
        assert named(full_caption(scene)) == {name: wanted[name] for name in wanted.keys() - unsaid}
    assert named("a zib") == {"subject": LABELS["subject"].index("zib")} and named("Anna") == {}


def test_scores_of_the_worlds_own_pictures(scenes: list[Scene], ordinary: np.ndarray):
    captions = [full_caption(scene) for scene in scenes]
    found = world_scores(Classifier.load()(ordinary), ordinary, captions)
    assert found["CPS"][0] > 4.99 and found["CPS"][1:].max() < 0.01  # of 5
    assert np.isclose(found["PC"], 5).all()
    others = world_scores(Classifier.load()(ordinary), ordinary, [*captions[1:], "Anna"])["PC"]
    assert np.isnan(others[-1]) and others[:-1].mean() < 3
    # By hand: the first picture against the second's caption.
    first, second = labels(scenes[0]), named(captions[1])
    assert others[0] == pytest.approx(5 * np.mean([first[name] == which for name, which in second.items()]))


def test_style_is_seen(ordinary: np.ndarray, drawn_as_art: np.ndarray):
    share = pixel_art_share(ordinary)
    assert share.mean() == pytest.approx(ORDINARY, abs=0.01)  # seen 0.331
    assert np.allclose(pixel_art_share(drawn_as_art), 1) and (adherence(drawn_as_art) == 1).all()
    assert adherence(ordinary).mean() < 0.15  # seen 0.07: chance, cut off at 0
    assert pixel_art_share(np.full((1, 96, 96, 3), 7, np.uint8)) == pytest.approx(ORDINARY)


def test_the_share_is_what_it_says(ordinary: np.ndarray):
    """Counted pixel by pixel."""
    picture = ordinary[:1].astype(int)
    on = total = 0
    for x in range(96):
        for y in range(95):
            down = abs(picture[0, y + 1, x] - picture[0, y, x]).sum()
            right = abs(picture[0, x, y + 1] - picture[0, x, y]).sum()
            total += down + right
            on += (down + right) * (y % 3 == 2)
    assert pixel_art_share(ordinary[:1])[0] == pytest.approx(on / total)
