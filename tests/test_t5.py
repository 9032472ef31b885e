"""T5's encoder against transformers': whole, its position buckets, its norms, its range in bfloat16, its files."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from transformers import T5Config as ReferenceConfig
from transformers import T5EncoderModel as Reference
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from autolora_jax.config import ConfigError, T5Config
from autolora_jax.models.networks import param_shapes
from autolora_jax.models.t5 import T5Block, T5EncoderModel, relative_position_buckets
from autolora_jax.weights import rules, tables
from tests.parity import error, normal, params_of, submodule
from tests.reference import randomize

PARITY = 2e-5  # seen: 1.6e-6
NORM = 2e-6  # seen: 2.4e-7; an eps of 1e-5 for 1e-6 is off by more than 1 here
BF16 = 0.05  # seen: 0.025; undivided logits are large
LAYER_BF16 = 0.03  # seen: 0.007
SAME = 2e-5  # seen: 0

# More heads' channels than model's, few buckets, a short largest distance: no two sizes agree by accident.
SIZES = dict(
    vocab_size=60,
    d_model=24,
    d_kv=8,
    d_ff=40,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=12,
    relative_attention_max_distance=20,
    feed_forward_proj="gated-gelu",
)


@pytest.fixture(scope="module")
def tiny():
    """(torch's, ours, our params)."""
    module = randomize(Reference(ReferenceConfig(**SIZES)), 5)
    network = T5EncoderModel(config=T5Config.from_dict(module.config.to_dict()))
    return module, network, params_of(module, network)


def ids(length: int) -> jax.Array:
    """Two prompts, the second one mostly padding."""
    x = np.random.default_rng(length).integers(2, SIZES["vocab_size"], (2, length))
    x[1, 3:] = 0
    return jnp.asarray(x, jnp.int32)


@torch.no_grad()
def states(module: Reference, x: jax.Array) -> torch.Tensor:
    return module(torch.from_numpy(np.array(x)).long())[0]


@pytest.mark.parametrize("length", [1, 50])  # 50 tokens reach beyond the largest distance
def test_matches_transformers(tiny, length):
    module, network, params = tiny
    y = jax.jit(network.apply)({"params": params}, ids(length))
    assert error(y, states(module, ids(length))) < PARITY


@pytest.mark.parametrize("buckets, distance", [(32, 128), (12, 20), (8, 128), (4, 3)])
def test_buckets_equal_transformers(buckets, distance):
    positions = torch.arange(600)
    theirs = T5Attention._relative_position_bucket(positions[None] - positions[:, None], True, buckets, distance)
    assert np.array_equal(relative_position_buckets(600, buckets, distance), theirs.numpy())


def test_every_norm_has_torchs_eps(tiny):
    """Each alone, on inputs so small that eps decides."""
    module, network, params = tiny
    bound = network.bind({"params": params})
    norms = [(path, norm) for path, norm in module.named_modules() if isinstance(norm, T5LayerNorm)]
    assert len(norms) == 5
    for path, norm in norms:
        x = 1e-3 * normal(0, 2, 9, SIZES["d_model"])
        assert error(submodule(bound, path)(jnp.asarray(x)), norm(torch.from_numpy(x))) < NORM, path


def test_bfloat16_is_close(tiny):
    _, network, params = tiny
    half = network.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    exact, y = (jax.jit(n.apply)({"params": p}, ids(50)) for n, p in ((network, params), (half, rounded)))
    assert y.dtype == jnp.bfloat16
    assert error(y.astype(jnp.float32), exact) < BF16


def test_a_large_stream_swallows_no_layer_in_bfloat16(tiny):
    """A stream beyond float16's range, where bfloat16's steps are as large as what a layer adds."""
    _, network, params = tiny
    x = jnp.asarray(1e5 * normal(0, 2, 9, SIZES["d_model"]))
    flat = traverse_util.flatten_dict(params)
    large = traverse_util.unflatten_dict({k: v * (100 if k[-2] in ("o", "wo") else 1) for k, v in flat.items()})

    def added(network: T5EncoderModel) -> jax.Array:
        block = network.bind({"params": large}).encoder.block[0]
        return block(x, block.position_bias(9)) - x

    apply = jax.jit(added, static_argnums=0)
    exact, y = apply(network), apply(network.clone(dtype=jnp.bfloat16))
    assert error(y, exact) < LAYER_BF16
    swallowed = (x + exact).astype(jnp.bfloat16).astype(jnp.float32) - x.astype(jnp.bfloat16).astype(jnp.float32)
    assert error(swallowed, exact) > 1  # what a stream of bfloat16 would make of it


def test_a_feed_forward_beyond_float16(tiny):
    """As the XXL model's: what is between its products, and what comes out, is more than 65,504."""
    _, network, params = tiny
    layer = network.bind({"params": params}).encoder.block[0].layer[1].DenseReluDense
    half = layer.clone(parent=None, dtype=jnp.float16, param_dtype=jnp.float16)
    x, own = jnp.asarray(normal(0, 2, 9, SIZES["d_model"])), layer.variables["params"]
    large = jax.tree.map(lambda kernel: kernel * 100, own)
    exact = layer.clone(parent=None).apply({"params": large}, x)
    assert jnp.abs(exact).max() > 1e5
    y = half.apply({"params": jax.tree.map(lambda kernel: kernel.astype(jnp.float16), large)}, x)
    assert error(y, exact) < 4e-3


def test_the_stream_is_float32_from_end_to_end(tiny):
    _, network, params = tiny
    half = network.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    of_blocks = partial(
        half.apply, capture_intermediates=lambda module, method: isinstance(module, T5Block) and method == "__call__"
    )
    _, kept = jax.eval_shape(of_blocks, {"params": params}, ids(5))
    assert [x.dtype for x in jax.tree.leaves(kept)] == [jnp.float32] * network.config.num_layers


def test_recomputed_gradients_are_the_same(tiny):
    _, network, params = tiny

    def loss(params, network):
        return jnp.square(network.apply({"params": params}, ids(9))).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, recomputed = (gradient(params, network.clone(remat=remat)) for remat in (False, True))
    assert max(jax.tree.leaves(jax.tree.map(error, recomputed, plain))) < SAME
    assert param_shapes(network.clone(remat=True)) == param_shapes(network)


def test_the_embeddings_may_stand_in_a_file_twice(tiny):
    """Single files have them under two names, diffusers' folders under one."""
    module, network, params = tiny
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert tensors.keys() >= {"shared.weight", "encoder.embed_tokens.weight"}
    del tensors["encoder.embed_tokens.weight"]
    once = rules.convert(tensors, tables.stages_for(network.config), param_shapes(network))
    assert jax.tree.all(jax.tree.map(np.array_equal, once, params))
    assert tables.export(params).keys() == tensors.keys()


def test_config_there_and_back(facts):
    raw = facts / "configs" / "sd3-medium" / "text_encoder_3" / "config.json"
    config = T5Config.from_file(raw)
    assert config == T5Config()
    theirs = ReferenceConfig.from_dict(config.to_dict())
    assert T5Config.from_dict(theirs.to_dict()) == T5Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change, words",
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu' is not supported"),
        ({"feed_forward_proj": "gated-silu"}, "gated-silu"),
        ({"model_type": "umt5"}, "model_type = 'umt5'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"relative_attention_num_buckets": 2}, "leave nothing to bucket"),
    ],
)
def test_other_t5s_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        T5Config.from_dict({**T5Config().to_dict(), **change})


def test_a_silent_file_means_the_first_t5():
    silent = {k: v for k, v in T5Config().to_dict().items() if k != "feed_forward_proj"}
    assert ReferenceConfig(**silent).feed_forward_proj == "relu"
    with pytest.raises(ConfigError, match="'relu'"):
        T5Config.from_dict(silent)
