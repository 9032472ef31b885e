"""Every attention implementation is the same function with the same gradient; which one runs where; long sequences
stay small."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from autolora_jax.models import attention
from autolora_jax.models.attention import default_implementation, dot_product_attention
from autolora_jax.sharding import data_mesh, map_images
from tests.parity import equations, error, normal

F32 = 5e-6  # seen: 2.5e-6
BF16 = 2e-2  # seen: 9e-3; a step of bfloat16 is 4e-3
GRADIENT = 1e-5  # seen: 2.2e-6
BF16_GRADIENT = 2e-2  # seen: 9e-3

# queries, keys: whole blocks, padded queries, padded keys and both, keys of several blocks
LENGTHS = [(512, 512), (300, 256), (256, 300), (988, 1100)]


def qkv(t: int, s: int, heads: int = 2, d: int = 64, dtype=jnp.float32, batch: int = 2):
    # Queries three times as large: a softmax that is far from uniform shows a wrong scale or a missed mask.
    return tuple(
        jnp.asarray(gain * normal(seed, batch, n, heads, d), dtype)
        for seed, n, gain in ((0, t, 3), (1, s, 1), (2, s, 1))
    )


def torch_attention(q, k, v, causal: bool = False) -> np.ndarray:
    q, k, v = (torch.from_numpy(np.array(x)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).numpy()


def primitives(function, *args) -> set[str]:
    """Names of all primitives in the traced function, loops and calls included."""
    return {eqn.primitive.name for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr)}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_bytes", [2**30, 50_000])
def test_xla_matches_torch(monkeypatch, causal, chunk_bytes):
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk_bytes)
    q, k, v = qkv(77, 77, d=40)  # 77 queries are no multiple of the chunks
    assert error(dot_product_attention(q, k, v, causal=causal), torch_attention(q, k, v, causal)) < F32


def test_only_big_logits_are_chunked():
    """The VAE's attention at 1024² (1 GiB of logits) loops; a small call is two products and nothing else."""
    big, small = (jax.ShapeDtypeStruct((1, n, 1, 512), jnp.float32) for n in (16384, 4096))
    assert "scan" in primitives(dot_product_attention, big, big, big)
    assert not {"scan", "pad"} & primitives(dot_product_attention, small, small, small)
    biggest = max(
        int(np.prod(out.aval.shape))
        for eqn in equations(jax.make_jaxpr(dot_product_attention)(big, big, big).jaxpr)
        for out in eqn.outvars
    )
    assert 4 * biggest <= attention.CHUNK_BYTES


def gradients(implementation: str, q, k, v, causal: bool = False):
    """Of a weighted sum of the result, with respect to q, k, v."""
    weights = jnp.asarray(normal(3, *q.shape), jnp.float32)

    def weighted(*qkv):
        return jnp.sum(weights * dot_product_attention(*qkv, implementation, causal).astype(jnp.float32))

    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(q, k, v)


def worst(ours, theirs) -> float:
    return max(error(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_chunks_have_the_same_gradient(monkeypatch, causal):
    args = qkv(77, 77, d=40)
    whole = gradients("xla", *args, causal)
    monkeypatch.setattr(attention, "CHUNK_BYTES", 50_000)
    assert worst(gradients("xla", *args, causal), whole) < GRADIENT


def test_a_backward_pass_keeps_no_logits_of_chunks(monkeypatch):
    """Queries, keys, values and little more, where the logits are 32 times as much."""
    monkeypatch.setattr(attention, "CHUNK_BYTES", 2**20)
    x = jax.ShapeDtypeStruct((1, 1024, 4, 32), jnp.float32)
    kept = jax.eval_shape(lambda *x: jax.vjp(dot_product_attention, *x)[1], x, x, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) < 4 * x.size


@pytest.mark.parametrize("t, s", [LENGTHS[0], LENGTHS[-1]])
def test_splash_has_the_gradient_of_xla(t, s):
    args = qkv(t, s)
    assert worst(gradients("splash", *args), gradients("xla", *args)) < GRADIENT


def test_splash_gradient_when_keys_do_not_fit(monkeypatch):
    """One block of keys at a time in the backward pass: dq is a sum over them. Recomputed, as training calls it."""
    monkeypatch.setattr(attention, "SPLASH_KEY_BYTES", 3 * 2**17)
    monkeypatch.setitem(
        attention.IMPLEMENTATIONS, "recomputed", jax.checkpoint(attention._splash, static_argnums=(3, 4))
    )
    args = qkv(256, 1100, heads=1)
    assert worst(gradients("recomputed", *args), gradients("xla", *args)) < GRADIENT


def test_float32_gradients_have_exact_products():
    """On a TPU the default would round to bfloat16, in JAX's own rules of the kernel too."""
    x = jax.ShapeDtypeStruct((1, 256, 1, 64), jnp.float32)
    for name in ("xla", "splash"):
        total = lambda *x, name=name: dot_product_attention(*x, name).sum()  # noqa: E731
        traced = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(x, x, x).jaxpr
        products = [eqn.params["precision"] for eqn in equations(traced) if eqn.primitive.name == "dot_general"]
        assert len(products) >= 6
        assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_bfloat16_gradients(implementation):
    exact = gradients("xla", *qkv(256, 256))
    ours = gradients(implementation, *qkv(256, 256, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in ours} == {jnp.dtype(jnp.bfloat16)}
    assert worst(ours, exact) < BF16_GRADIENT


@pytest.mark.parametrize("t, s", LENGTHS)
def test_splash_matches_xla(t, s):
    q, k, v = qkv(t, s)
    assert error(dot_product_attention(q, k, v, "splash"), dot_product_attention(q, k, v)) < F32


def test_splash_blocks():
    """Blocks that pad less, unless they cost more than the padding; all of a core's keys at once when they fit."""
    queries, keys = (
        {n: attention.padded_length(n, blocks) for n in (256, 300, 988, 1024, 3952, 4096, 4429, 4685)}
        for blocks in (attention.QUERY_BLOCKS, attention.KEY_BLOCKS)
    )
    assert list(queries.values()) == [
        (256, 256),
        (384, 384),
        (1024, 512),
        (1024, 512),
        (4096, 512),
        (4096, 512),
        (4608, 512),
        (4992, 384),
    ]
    assert list(keys.values()) == [
        (256, 256),
        (384, 384),
        (1024, 1024),
        (1024, 1024),
        (4096, 1024),
        (4096, 1024),
        (4608, 512),
        (5120, 1024),
    ]
    assert attention.memory_block(4608, 512, 2) == 4608
    assert attention.memory_block(5120, 1024, 2) == 5120
    assert attention.memory_block(4096, 1024, 4) == 2048
    assert attention.memory_block(16384, 1024, 2) == 4096


def test_every_length_has_blocks_that_divide_it():
    for n in range(attention.FUSED_TOKENS, 10_000, 37):
        for blocks in (attention.QUERY_BLOCKS, attention.KEY_BLOCKS):
            length, block = attention.padded_length(n, blocks)
            assert length % block == 0 and n <= length < n + max(blocks)
            assert length % attention.memory_block(length, block, 2) == 0


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_bfloat16(implementation):
    exact = dot_product_attention(*qkv(256, 256))
    y = dot_product_attention(*qkv(256, 256, dtype=jnp.bfloat16), implementation)
    assert y.dtype == jnp.bfloat16
    assert error(y.astype(jnp.float32), exact) < BF16


def test_splash_under_vmap_and_shard_map():
    x = jnp.asarray(normal(3, 8, 2, 256, 2, 64))  # [images branches t h d]
    attend = lambda x: dot_product_attention(x, x, x, "splash")  # noqa: E731
    mapped = map_images(lambda _, images: jax.vmap(attend, in_axes=1, out_axes=1)(images), data_mesh())
    expected = dot_product_attention(*3 * [x.reshape(16, 256, 2, 64)]).reshape(x.shape)
    assert error(jax.jit(mapped)((), x), expected) < F32


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
@pytest.mark.parametrize("case", ["prompt", "few tokens", "wide head", "causal"])
def test_calls_that_do_not_suit_a_fused_kernel_run_as_xla(implementation, case):
    t, s, d = {"prompt": (512, 77, 64), "few tokens": (64, 64, 64), "wide head": (256, 256, 512)}.get(
        case, (77, 77, 64)
    )
    shapes = [jax.ShapeDtypeStruct((1, n, 1, d), jnp.bfloat16) for n in (t, s, s)]
    causal = case == "causal"
    plain, chosen = (
        primitives(partial(dot_product_attention, implementation=i, causal=causal), *shapes)
        for i in ("xla", implementation)
    )
    assert plain == chosen


def test_cudnn_takes_only_half_precision(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **options: calls.append(options) or q)
    for dtype in (jnp.float32, jnp.bfloat16):
        dot_product_attention(*qkv(256, 256, dtype=dtype), "cudnn")
    assert calls == [{"is_causal": False, "implementation": "cudnn"}]


def test_default_implementation():
    defaults = {p: default_implementation(p, jnp.bfloat16) for p in ("cpu", "gpu", "cuda", "tpu", "else")}
    assert defaults == {"cpu": "xla", "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash", "else": "xla"}
    assert {default_implementation(p, "float32") for p in defaults} == {"xla"}


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"'flash' is unknown; use one of 'xla', 'cudnn', 'splash'"):
        dot_product_attention(*qkv(4, 4), "flash")


@pytest.mark.gpu
@pytest.mark.parametrize("t, s", LENGTHS)
def test_cudnn_matches_xla(t, s):
    exact = dot_product_attention(*qkv(t, s))
    y = dot_product_attention(*qkv(t, s, dtype=jnp.bfloat16), "cudnn")
    assert error(y.astype(jnp.float32), exact) < BF16


@pytest.mark.gpu
@pytest.mark.parametrize("t, s", LENGTHS)
def test_cudnn_has_the_gradient_of_xla(t, s):
    exact = gradients("xla", *qkv(t, s))
    assert worst(gradients("cudnn", *qkv(t, s, dtype=jnp.bfloat16)), exact) < BF16_GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("tokens, heads", [(4096, 10), (1024, 20), (3952, 10), (16384, 10), (4685, 24)])
def test_splash_compiles_for_tpus(monkeypatch, chip, tokens, heads):
    """By the real compiler, without the chip: SDXL at 1024², an odd size, 2048², SD3; under vmap; backwards."""
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    device = topologies.get_topology_desc(chip, platform="tpu").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((2, 1, tokens, heads, 64), jnp.bfloat16, sharding=sharding)
    attend = jax.vmap(partial(dot_product_attention, implementation="splash"))
    compiled = jax.jit(attend).lower(x, x, x).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
    # q, k, v and the result with heads padded to 128 lanes; never the logits
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * x.size * x.dtype.itemsize

    backward = jax.jit(lambda q, k, v, gradient: jax.vjp(attend, q, k, v)[1](gradient)).lower(x, x, x, x).compile()
    # forward, and one kernel for dq, dk and dv
    assert backward.as_text().count('custom_call_target="tpu_custom_call"') == 2
    keys, block = attention.padded_length(tokens, attention.KEY_BLOCKS)
    parts = keys // attention.memory_block(keys, block, 4)
    # the above and its gradients, and dq of every part of the keys; seen: 8 at 4096 tokens, 28 at 16384
    assert backward.memory_analysis().temp_size_in_bytes < (14 + 2 * parts) * x.size * x.dtype.itemsize
