"""Weights split over devices: the same pictures, a part of the bytes on each."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from autolora_jax import AutoLoRA, AutoLoRAPipeline
from autolora_jax.lora import LoraReport
from autolora_jax.sharding import WEIGHTS, data_mesh, split_axes, weight_placement
from autolora_jax.training import train_lora
from tests import reference_sd3
from tests.parity import error

SAME = 2e-5  # of the largest; seen: 3e-6. XLA for CPU splits its sums by the number of devices
CALL = dict(num_inference_steps=3, height=64, width=64, output_type="latent", max_sequence_length=24)

REPORT = LoraReport("made here", "in memory", {}, {}, {}, 0, (), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd35")
    reference_sd3.tiny_sd3(folder, "sd3.5").save_pretrained(folder)
    return folder


def loaded(folder: Path, devices: int, weight_shards: int) -> AutoLoRAPipeline:
    found = jax.devices()[:devices]
    pipe = AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=found, weight_shards=weight_shards)
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((32, 3), np.float32), rng.standard_normal((3, 32), np.float32)
    change = {"down": down / 6, "up": up, "owner": np.zeros(3, np.int32)}
    pipe.add_lora({"transformer": {"transformer_blocks_1": {"attn": {"to_q": change}}}}, REPORT)
    return pipe


def test_split_weights_draw_the_same(folder: Path):
    whole, split = loaded(folder, 1, 1), loaded(folder, 8, 4)
    call = {**CALL, "prompt": "a cat", "seeds": [0, 1, 2], "guidance": AutoLoRA(1.5, 3.0, 4.0)}
    assert error(split(**call).images, whole(**call).images) < SAME
    kernel = split.params["transformer"]["transformer_blocks_0"]["attn"]["to_q"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, WEIGHTS)
    for component in ("transformer", "text_encoder_3"):
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(split.params[component]))
        everything = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params[component]))
        assert here < 0.3 * everything  # seen: 0.27, 0.26: norms, biases and the table of positions are whole


def test_what_does_not_divide_stays_whole():
    place = weight_placement(data_mesh(weight_shards=4))
    assert place("a/kernel", (3, 3, 8, 12)).spec == PartitionSpec(None, None, None, WEIGHTS)
    assert place("a/kernel", (8, 6)).spec == PartitionSpec()
    assert place("a/embedding", (12, 6)).spec == PartitionSpec(WEIGHTS, None)
    assert place("a/bias", (12,)).spec == PartitionSpec()
    leaves = [jax.device_put(np.ones(shape), place("a/kernel", shape)) for shape in ((8, 12), (8, 6))]
    assert split_axes(leaves) == (1, None)


def test_what_cannot_be_split_is_refused(folder: Path):
    with pytest.raises(ValueError, match="weight_shards=3 should divide the number of devices, 8"):
        AutoLoRAPipeline.from_pretrained(folder, weight_shards=3)
    with pytest.raises(ValueError, match="load the pipeline with weight_shards=1"):
        train_lora(AutoLoRAPipeline.from_pretrained(folder, weight_shards=2), folder, folder / "lora.safetensors")
