"""Kernels in 8 bits: what is drawn is what the rounded weights draw, and no second model lies beside them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline
from autolora_jax.config import ConfigError, UNetConfig
from autolora_jax.models.int8 import Int8Kernel, dense, meet, quantized
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.sharding import data_mesh
from autolora_jax.weights.folder_writing import convert_checkpoint
from benchmarks.programs import lower_sampler
from tests import reference_sd3
from tests.parity import error, normal
from tests.reference import UNET

SAME = 2e-5  # of the largest; seen: 2e-6
CALL: dict[str, Any] = dict(num_inference_steps=3, height=64, width=64, output_type="latent", seeds=[0, 1])
RULE = AutoLoRA(1.5, 3.0, 4.0)


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd35")
    reference_sd3.tiny_sd3(folder, "sd3.5").save_pretrained(folder)
    return folder


def load(folder: Path, devices: int = 1, **more: Any) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:devices], **more)


def kernels(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Int8Kernel)) if isinstance(x, Int8Kernel)]


def rounded(pipe: AutoLoRAPipeline, components: tuple[str, ...]) -> None:
    """Gives a pipeline the weights that 8 bits would hold, as ordinary ones."""
    for component in components:
        params = pipe.params[component]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = [key.key for key in path]
            node = params
            for name in names[:-1]:
                node = node[name]
            node[names[-1]] = dense(quantized("/".join(names), jnp.array(leaf)), jnp.float32)


def test_a_kernel_is_rounded_to_the_nearest_of_255():
    kernel = normal(0, 3, 3, 8, 5)
    kernel[..., 2] = 0
    kept = quantized("a/kernel", jnp.array(kernel))
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    assert kept.values.dtype == jnp.int8 and kept.shape == kernel.shape and np.allclose(kept.factor[:2], step[:2])
    assert (np.abs(dense(kept, jnp.float32) - kernel) <= step / 2 + 1e-6).all()
    assert not np.asarray(dense(kept, jnp.float32))[..., 2].any()
    bias = jnp.ones(3)
    assert quantized("a/bias", bias) is bias


def test_sdxl_draws_what_the_rounded_weights_draw(small_folder: Path):
    drawn = []
    for int8 in ("denoiser", None):
        pipe = load(small_folder, int8=int8)
        if int8 is None:
            rounded(pipe, ("unet",))
        else:
            assert kernels(pipe.params["unet"]) and not kernels({**pipe.params, "unet": {}})
        pipe.load_lora(small_folder / "small:0.5.safetensors", scale=0.8)
        drawn.append(pipe("a cat", guidance=RULE, **CALL).images)
    assert error(*drawn) < SAME


def test_sd3_and_its_t5_do_and_split_over_devices_too(sd35: Path, tmp_path: Path):
    call = {**CALL, "prompt": "a cat", "guidance": CFG(4.0), "max_sequence_length": 24}
    exact = load(sd35)(**call).images
    plain = load(sd35)
    rounded(plain, ("transformer", "text_encoder_3"))
    wanted = plain(**call).images
    assert error(wanted, exact) > 1e-3  # it is another model, a little
    convert_checkpoint(sd35, tmp_path / "orbax", "float32")
    for pipe in (load(sd35, int8="both"), load(sd35, 4, int8="both", weight_shards=4)):
        assert kernels(pipe.params["transformer"]) and kernels(pipe.params["text_encoder_3"])
        assert not kernels(pipe.params["text_encoder"])
        assert error(pipe(**call).images, wanted) < SAME
    converted = load(tmp_path / "orbax", int8="t5")
    theirs, ours = kernels(load(sd35, int8="t5").params), kernels(converted.params)
    assert len(ours) == len(theirs) and all((a.values == b.values).all() for a, b in zip(ours, theirs, strict=True))


def test_the_other_form_is_not_made_before_it_is_used():
    """A barrier binds each kernel to its layer's input. XLA for v5e then needs 43 MB of temporaries for this sampler,
    where 16-bit kernels need 65, and has no second model among them.
    """
    kernel = Int8Kernel(jnp.ones((8, 4), jnp.int8), jnp.ones(4))
    text = jax.jit(meet).lower(jnp.ones((2, 8)), kernel).as_text()
    [barrier] = [line for line in text.splitlines() if "optimization_barrier" in line]
    assert "tensor<2x8xf32>" in barrier and "tensor<8x4xi8>" in barrier
    shape = {k: v for k, v in UNET.items() if k not in ("addition_embed_type", "sample_size")}
    unet = UNet2DConditionModel(config=UNetConfig.from_dict({**shape, "sample_size": 8}))
    lowered = lower_sampler(unet, data_mesh(jax.devices()[:1]), 1, RULE, int8=True).as_text()
    assert any("optimization_barrier" in line and "xi8>" in line for line in lowered.splitlines())


def test_what_can_not_be_kept_so_is_said(small_folder: Path):
    with pytest.raises(ValueError, match="int8='unet': use one of 't5', 'denoiser', 'both', or None"):
        load(small_folder, int8="unet")
    with pytest.raises(ConfigError, match="SDXL has no T5"):
        load(small_folder, int8="t5")
