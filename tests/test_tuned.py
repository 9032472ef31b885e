"""Tuned weights that are kept draw what weights that are merged in every step draw, where there is room for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, PersonalizationGuidance
from autolora_jax.sampler import Model
from autolora_jax.tuned import ROOM, Tuned
from tests.parity import error

SAME = 2e-5  # of the largest; seen: 2e-6
CALL = dict(
    num_inference_steps=3, height=32, width=32, output_type="latent", seeds=[0, 1], guidance=AutoLoRA(1.5, 2.0, 3.0)
)


def load(folder: Path, tuned_weights: str) -> AutoLoRAPipeline:
    pipe = AutoLoRAPipeline.from_pretrained(
        folder, dtype="float32", devices=jax.devices()[:1], tuned_weights=tuned_weights
    )
    pipe.load_lora(folder / "small:0.5.safetensors", scale=0.8)
    return pipe


def draw(pipe: AutoLoRAPipeline, **changes: Any) -> np.ndarray:
    return np.asarray(pipe("a zib", **{**CALL, **changes}).images)


@pytest.fixture(scope="module")
def kept(small_folder: Path) -> AutoLoRAPipeline:
    return load(small_folder, "kept")


def test_kept_weights_draw_the_same_and_new_scales_compile_nothing(
    kept: AutoLoRAPipeline, small_folder: Path, count_compilations: Callable[[], Any]
):
    merged = load(small_folder, "merged")
    draw(kept)
    for changes in ({}, {"lora_scale": 0.3}, {"lora_scale": 1.0, "guidance": CFG(2.0)}, {"lora_scale": 0.0}):
        with count_compilations() as compiled:
            ours = draw(kept, **changes)
        assert compiled == [] or changes == {"lora_scale": 0.0}  # which has no tuned weights
        assert error(ours, draw(merged, **changes)) < SAME, changes
    several = [{"lora_scale": [0.2, 0.9], "batch_size": 1}, {"lora_scale": np.linspace(0, 1, 3).reshape(1, 3, 1)}]
    for changes in (*several, {"guidance": PersonalizationGuidance(2.0, 0.5), "lora_scale": 1.0}):
        assert error(draw(kept, **changes), draw(merged, **changes)) < SAME, changes


# ---- the choice ------------------------------------------------------------------------------------------------------


PARAMS = {
    name: {"kernel": jnp.asarray(np.random.default_rng(i).standard_normal((8, 4), np.float32))}
    for i, name in enumerate(("changed", "alone"))
}
SIZE = 4 * 8 * 4  # bytes of a kernel
LEAF = {
    "down": np.ones((8, 2), np.float32),
    "up": np.full((2, 4), 0.5, np.float32),
    "owner": np.array([0, 1], np.int32),
}
ROOM_ONLY = {**LEAF, "down": np.zeros((8, 2), np.float32)}


class Device(NamedTuple):
    """A device with so many bytes free; None if it does not say."""

    platform: str
    free: int | None

    def memory_stats(self) -> dict[str, int] | None:
        return None if self.free is None else {"bytes_limit": self.free + 100, "bytes_in_use": 100}


def chosen(wanted: str, free: int | None, scales: Any, leaf: dict[str, Any] = LEAF, platform: str = "gpu") -> Model:
    """What a batch of these scales [b, steps, loras] is drawn with."""
    tuned = Tuned(wanted, Device(platform, free))
    delta = {"changed": leaf, "alone": ROOM_ONLY}
    tuned.set_delta(PARAMS, delta, {"changed": leaf})
    kinds = {"base": np.zeros_like(scales), "lora": np.asarray(scales, np.float32)}
    return tuned.model(Model(PARAMS, delta, {}), kinds)


ONE = [[[0.5, 2.0]]]


@pytest.mark.parametrize(
    ("wanted", "free", "is_kept"),
    [
        ("auto", ROOM * SIZE, True),
        ("auto", ROOM * SIZE - 1, False),
        ("auto", None, False),
        ("kept", 0, True),
        ("merged", 10**9, False),
    ],
)
def test_memory_decides_unless_told(wanted: str, free: int | None, is_kept: bool):
    model = chosen(wanted, free, ONE)
    assert bool(model.tuned) == is_kept == (not model.lora)


def test_only_gpus_gain_by_a_copy():
    assert not chosen("auto", 10**9, ONE, platform="tpu").tuned and chosen("kept", 0, ONE, platform="tpu").tuned


def test_a_copy_has_what_changes_and_shares_the_rest():
    model = chosen("kept", 0, ONE)
    expected = PARAMS["changed"]["kernel"] + 0.5 * LEAF["down"] @ (np.array([[0.5], [2.0]]) * np.ones((2, 4)))
    np.testing.assert_allclose(model.tuned["changed"]["kernel"], expected, rtol=1e-6)
    assert model.tuned["alone"]["kernel"] is PARAMS["alone"]["kernel"] and model.params is PARAMS


@pytest.mark.parametrize("scales", [[[[0.5, 2.0]], [[0.5, 1.0]]], [[[0.5, 2.0], [0.4, 2.0]]], [[[0.0, 0.0]]]])
def test_several_scales_or_none_are_merged_as_they_come(scales: Any):
    """Two pictures of their own, two steps, no LoRA at all."""
    assert not chosen("kept", 0, scales).tuned


def test_other_scales_make_another_copy_and_the_same_none():
    tuned = Tuned("kept", Device("gpu", 0))
    tuned.set_delta(PARAMS, {"changed": LEAF, "alone": ROOM_ONLY}, {"changed": LEAF})
    one, again, other = (
        tuned.model(Model(PARAMS, {}, {}), {"lora": np.float32([[scales]])}).tuned["changed"]["kernel"]
        for scales in ([0.5, 2.0], [0.5, 2.0], [0.5, 1.0])
    )
    assert one is again and float(jnp.abs(other - one).max()) == pytest.approx(0.5)


def test_steps_without_a_lora_need_no_other_copy():
    assert chosen("kept", 0, [[[0.5, 2.0], [0.0, 0.0]]]).tuned


def test_a_copy_that_cannot_be_is_said_or_left_out():
    leaf = {**LEAF, "bias": {"rows": np.ones((1, 4), np.float32), "owner": np.zeros(1, np.int32)}}
    assert not chosen("auto", 10**9, ONE, leaf).tuned
    with pytest.raises(ValueError, match="adds a bias to a layer without one; use 'auto' or 'merged'"):
        chosen("kept", 10**9, ONE, leaf)
    with pytest.raises(ValueError, match="tuned_weights='always': use one of 'auto', 'kept', 'merged'"):
        AutoLoRAPipeline.from_pretrained(tuned_weights="always")
