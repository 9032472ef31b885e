"""The classifier that measures pictures: as good as it says, through damage too, judging what captions say alone."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from autolora_jax.demo.classifier import BATCH, SIZE, WEIGHTS, Classifier, Judgement, agreement
from autolora_jax.demo.world import CHARACTER, IGNORED, LABELS, Scene, full_caption, labels
from recipes.builtin import classifier as recipe
from recipes.builtin import eye, words
from recipes.builtin.classifier import BLUR, NOISE, ClassifierLoss
from recipes.builtin.damage import blurred, damaged, noised, to_bytes
from recipes.builtin.world import draw
from tests.first_world import World, first_world

MARGIN = 0.04  # of sixty pictures: two standard deviations of an accuracy of 0.98


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load()


@pytest.fixture(scope="module")
def fresh() -> World:
    """Pictures that neither training nor the stated figures have seen."""
    return first_world()


@pytest.fixture(scope="module")
def stated() -> dict:
    return json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))["accuracy"]


def test_it_ships_small():
    assert WEIGHTS.stat().st_size < 1e6


DAMAGE = {
    "clean": lambda x: x,
    "blurred": lambda x: blurred(x, np.full(len(x), BLUR)),
    "noised": lambda x: noised(x, np.full(len(x), NOISE), np.random.default_rng(0)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_it_is_as_good_as_stated(kind: str, classifier: Classifier, fresh: World, stated: dict):
    judgement = classifier(to_bytes(DAMAGE[kind](fresh.pixels.astype(np.float32))))
    wanted = [labels(scene) for scene in fresh.scenes]
    for name in LABELS:
        known = [i for i, row in enumerate(wanted) if row[name] != IGNORED]
        right = np.mean([judgement.classes[name][i] == wanted[i][name] for i in known])
        assert right >= stated[kind][name] - MARGIN, name
    shows = np.array([scene.subject == CHARACTER for scene in fresh.scenes])
    assert judgement.presence[shows].mean() > 0.9 and judgement.presence[~shows].mean() < 0.05


def test_the_character_is_seen_in_every_place(classifier: Classifier, fresh: World):
    assert classifier(fresh.zib_pixels).presence.min() > 0.5


def test_a_judgement_does_not_depend_on_the_batch(classifier: Classifier, fresh: World):
    pixels = np.concatenate([fresh.pixels, fresh.zib_pixels])
    many = classifier(pixels[: BATCH + 3])
    few = classifier(pixels[BATCH : BATCH + 3])
    assert many.features.shape == (BATCH + 3, few.features.shape[1])
    np.testing.assert_allclose(many.features[BATCH:], few.features, atol=1e-5)
    for name, classes in LABELS.items():
        assert many.probabilities[name].shape == (BATCH + 3, len(classes))
        np.testing.assert_allclose(many.probabilities[name].sum(axis=1), 1, atol=1e-5)


def test_one_program_serves_any_number(classifier: Classifier, fresh: World, count_compilations):
    classifier(fresh.pixels[:2])
    with count_compilations() as compiled:
        classifier(fresh.pixels)
    assert not compiled


def test_weights_come_back(classifier: Classifier, tmp_path: Path):
    save_file(classifier.tensors(), tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, classifier.params, again.params))


def test_what_cannot_be_judged_is_refused(classifier: Classifier, tmp_path: Path):
    with pytest.raises(ValueError, match=r"the classifier knows \[n 96 96 3\]"):
        classifier(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="no pictures"):
        classifier(np.zeros((0, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="reinstall"):
        Classifier.load(tmp_path / "none.safetensors")


def certain(scenes: list[Scene]) -> Judgement:
    """What a perfect classifier would say of these scenes."""
    shown = [labels(scene) for scene in scenes]
    probabilities = {
        name: np.eye(len(classes), dtype=np.float32)[[max(one[name], 0) for one in shown]]
        for name, classes in LABELS.items()
    }
    return Judgement(probabilities, np.ones((len(scenes), 4), np.float32))


def test_agreement_judges_what_the_caption_says_alone():
    cat = Scene("cat", "red", "city", "rain", "small", "left")
    plain = Scene("cat", "red", "city", "rain")  # neither size nor side is said
    zib = Scene(CHARACTER, "red", "city", "rain", "big")
    shown = [
        cat,
        dataclasses.replace(cat, colour="blue", side="right"),
        dataclasses.replace(plain, size="big", side="left"),
        dataclasses.replace(zib, colour="blue", sky="snow"),
    ]
    judged = agreement(certain(shown), [full_caption(scene) for scene in (cat, cat, plain, zib)])
    np.testing.assert_allclose(judged.mean, [1, 4 / 6, 1, 3 / 4])
    np.testing.assert_array_equal(judged.all_right, [1, 0, 1, 0])
    np.testing.assert_array_equal(judged.right["side"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(judged.right["colour"], [1, 0, 1, np.nan])


def test_the_recipes_loss_ignores_what_a_scene_does_not_have():
    """A zib's colour and coat, a house's coat and pose."""
    pixels = np.zeros((3, eye.SIZE, eye.SIZE, 3), np.uint8)
    wanted = [words.labels(words.Scene(subject, "red", "city", "rain")) for subject in ("cat", CHARACTER, "house")]
    batch = {"pixels": jnp.asarray(pixels), "labels": jnp.array([[*row.values()] for row in wanted], jnp.int32)}
    params = recipe.begin()
    losses, _ = ClassifierLoss(eye.Network())(params, {}, batch)
    found = eye.Classifier(params)(pixels).probabilities
    by_hand = [
        -sum(np.log(found[name][i, label]) for name, label in row.items() if label != IGNORED)
        for i, row in enumerate(wanted)
    ]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)


def test_damage_is_repeatable_and_mild():
    rng = np.random.default_rng(0)
    pixels = np.stack([np.asarray(draw(words.sample_scene(rng), rng, SIZE)) for _ in range(12)])
    one, other = (damaged(pixels, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(one, other)
    difference = np.abs(one.astype(float) - pixels).mean(axis=(1, 2, 3))
    assert difference.min() > 1 and difference.mean() < 40  # seen: 13 to 49, 26


def test_blur_keeps_flat_colours_and_edges_in_place():
    flat = np.full((2, SIZE, SIZE, 3), 90, np.float32)
    sigma = np.array([0.5, 3.0])
    np.testing.assert_allclose(blurred(flat, sigma), flat, rtol=1e-5)
    step = flat.copy()
    step[:, :, SIZE // 2 :] = 30
    soft = blurred(step, sigma)
    np.testing.assert_allclose(soft[0, 5, :, 0] + soft[0, 5, ::-1, 0], 120, rtol=1e-5)
    assert np.ptp(np.diff(soft[1, 5, :, 0])) < np.ptp(np.diff(soft[0, 5, :, 0]))
