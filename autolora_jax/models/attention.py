"""Which attention kernel runs: the one place that decides. softmax(q·kᵀ/√d)·v with a float32 softmax, in several makes.

| name     | for              | what it is                                                                    |
|----------|------------------|-------------------------------------------------------------------------------|
| "xla"    | any device       | two products and a softmax; long sequences walk over chunks of queries        |
| "cudnn"  | CUDA, 16 bit     | cuDNN's fused kernel                                                          |
| "splash" | TPU              | JAX's Pallas kernel, logits never leave the core; interpreted on other devices |

The fused kernels pay where logits are big; calls that do not suit them (few tokens, wide heads) run as "xla".
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, DTypeLike, Float

from autolora_jax.models.layers import EXACT, matmul_precision

# More bytes of float32 logits than this and a call walks over chunks of its queries. SDXL at 1024² has 640 MiB an image
# (4096 tokens, 10 heads), its VAE 1 GiB (16384 tokens).
CHUNK_BYTES = 256 * 2**20
# With fewer queries or keys (a prompt's 77) padding and launching a fused kernel cost more than the logits.
FUSED_TOKENS = 256
CUDNN_HEAD_DIM = 128
SPLASH_HEAD_DIM = 128  # wider heads (the VAE's one of 512) would crowd a core's 16 MiB
# Of a head's keys in a core, counted as 128 lanes: 5120 of them in 16 bits. Values take as much, both are buffered
# twice, and there is what the products of blocks leave: 8192 keys do not fit, nor do 5120 beside 640 queries.
SPLASH_KEY_BYTES = 5 * 2**18
# Block of tokens -> what it costs beside the best, per pair of query and key, by the TPU compiler's schedules of the
# kernel for v5e and v6e (benchmarks/splash_tiles.py): whether a block that pads less is worth it.
QUERY_BLOCKS = {512: 1.0, 384: 1.01, 256: 1.08, 128: 1.4}
KEY_BLOCKS = {1024: 1.0, 512: 1.0, 768: 1.03, 640: 1.12, 384: 1.15, 256: 1.3}

Kernel = Callable[[Array, Array, Array, bool, str], Array]


def dot_product_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    implementation: str = "xla",
    causal: bool = False,
    precision: str = EXACT,
) -> Float[Array, "b t h d"]:
    """softmax(q·kᵀ/√d)·v of every head, in v's dtype.

    implementation: a key of IMPLEMENTATIONS.
    causal: query i sees keys 0..i only.
    precision: of float32 products, see layers.
    Raises ValueError for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"attention implementation {implementation!r} is unknown; use one of {known}")
    return IMPLEMENTATIONS[implementation](q, k, v, causal, precision)


def biased_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    bias: Float[Array, "h t s"],
    precision: str = EXACT,
) -> Float[Array, "b t h d"]:
    """softmax(q·kᵀ + bias)·v of every head, in v's dtype: T5's, which divides by no √d.

    Runs as "xla" on every device: the fused kernels above take no bias, and a prompt's logits are small.
    """
    return _mixed(_products(q, k, precision) + bias[None], v, precision)


def default_implementation(platform: str, dtype: DTypeLike) -> str:
    """The implementation for a device's platform ("cpu", "gpu", "cuda", "tpu") and a compute dtype."""
    if jnp.dtype(dtype) == jnp.float32:  # asked for because of its exact products
        return "xla"
    return {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")


def _xla(q: Array, k: Array, v: Array, causal: bool, precision: str) -> Array:
    b, t, h, _ = q.shape
    positions = jnp.arange(t)
    chunks = -(-4 * b * h * t * k.shape[1] // CHUNK_BYTES)
    if chunks <= 1:
        return _attend(q, positions, k, v, causal, precision)
    size = -(-t // chunks)
    padding = (0, chunks * size - t)  # the queries added here are computed and thrown away
    q = jnp.pad(q, ((0, 0), padding, (0, 0), (0, 0))).reshape(b, chunks, size, h, -1)
    positions = jnp.pad(positions, padding).reshape(chunks, size)

    # A backward pass would keep the weights of all chunks, all logits again: recompute each chunk's.
    @partial(jax.checkpoint, prevent_cse=False)
    def attend(part: tuple[Array, Array]) -> Array:
        return _attend(*part, k, v, causal, precision)

    parts = jax.lax.map(attend, (jnp.moveaxis(q, 1, 0), positions))
    return jnp.moveaxis(parts, 0, 1).reshape(b, chunks * size, h, -1)[:, :t]  # [chunks b size h d] -> [b t h d]


def _attend(q: Array, positions: Array, k: Array, v: Array, causal: bool, precision: str) -> Array:
    """What the queries at these positions get from all keys."""
    logits = _products(q, k, precision) * q.shape[-1] ** -0.5
    if causal:
        visible = positions[:, None] >= jnp.arange(k.shape[1])[None, :]
        logits = jnp.where(visible[None, None], logits, -jnp.inf)
    return _mixed(logits, v, precision)


def _products(q: Array, k: Array, precision: str) -> Array:
    """q·kᵀ of every head, [b h t s] in float32."""
    passes = matmul_precision(k.dtype, precision)
    return jnp.einsum("bthd,bshd->bhts", q, k, precision=passes, preferred_element_type=jnp.float32)


def _mixed(logits: Array, v: Array, precision: str) -> Array:
    """The values, weighed by a softmax of [b h t s]."""
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=matmul_precision(v.dtype, precision))


def _cudnn(q: Array, k: Array, v: Array, causal: bool, precision: str) -> Array:
    d = q.shape[-1]
    if q.dtype.itemsize != 2 or d > CUDNN_HEAD_DIM or d % 8 or min(q.shape[1], k.shape[1]) < FUSED_TOKENS:
        return _xla(q, k, v, causal, precision)
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")


def _splash(q: Array, k: Array, v: Array, causal: bool, precision: str) -> Array:
    if causal or q.shape[-1] > SPLASH_HEAD_DIM or min(q.shape[1], k.shape[1]) < FUSED_TOKENS:
        return _xla(q, k, v, causal, precision)
    return _splash_heads(q, k, v, precision)


@partial(jax.jit, static_argnames="precision")  # traced once per shape, not once per layer
def _splash_heads(q: Array, k: Array, v: Array, precision: str) -> Array:
    (t, block_q), (s, block_kv) = padded_length(q.shape[1], QUERY_BLOCKS), padded_length(k.shape[1], KEY_BLOCKS)
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)  # the kernel does not scale
    padded = [
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))  # [b h length d]
        for x, length in ((q, t), (k, s), (v, s))
    ]
    itemsize = q.dtype.itemsize
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=memory_block(s, block_kv, itemsize),
        block_kv_compute=block_kv,
        # One backward kernel for dq, dk and dv: 1.71 million cycles where two take 2.20, counted as in memory_block.
        use_fused_bwd_kernel=True,
        block_q_dkv=block_q,
        block_kv_dkv=memory_block(s, block_kv, 2 * itemsize),  # float32 sums of dk and dv lie beside keys and values
        block_kv_dkv_compute=block_kv,
        # As products leave them: with heads of 64 last they would be padded to 128 lanes, and copied into that shape.
        q_layout=splash.QKVLayout.SEQ_MINOR,
        k_layout=splash.QKVLayout.SEQ_MINOR,
        v_layout=splash.QKVLayout.SEQ_MINOR,
    )
    mask = splash.MultiHeadMask([splash.FullMask((t, s))] * q.shape[2])
    passes = matmul_precision(q.dtype, precision) or "default"

    def heads(interpret: bool, *qkv: Array) -> Array:
        kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
        segments = None
        if s > k.shape[1]:  # padded keys are another segment, which no query sees
            segments = splash.SegmentIds(jnp.zeros(t, jnp.int32), (jnp.arange(s) >= k.shape[1]).astype(jnp.int32))
        return jax.vmap(lambda *x: kernel(*x, segment_ids=segments))(*qkv)

    tpu, elsewhere = (_at_precision(partial(heads, interpret), passes) for interpret in (False, True))
    out = jax.lax.platform_dependent(*padded, tpu=tpu, default=elsewhere)
    return out[:, :, : q.shape[1]].swapaxes(1, 2)


def _at_precision(kernel: Callable[..., Array], precision: str) -> Callable[..., Array]:
    """The kernel, and its gradient, with products of this precision.

    A context around the call is not enough: JAX traces the kernel's own rules when it differentiates, long after.
    """

    def inside(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(*args)

        return call

    run = jax.custom_vjp(inside(kernel))
    run.defvjp(inside(partial(jax.vjp, kernel)), inside(lambda pull, gradient: pull(gradient)))
    return run


def padded_length(n: int, blocks: Mapping[int, float]) -> tuple[int, int]:
    """(length to pad n tokens to, the block it is a multiple of): what costs least, then the larger block.

    blocks: QUERY_BLOCKS or KEY_BLOCKS.
    """
    padded = {block: -(-n // block) * block for block in blocks}
    best = min(blocks, key=lambda block: (padded[block] * blocks[block], -block))
    return padded[best], best


def memory_block(s: int, block: int, itemsize: int) -> int:
    """Keys that a core holds at a time: as many blocks as divide the length and fit.

    By the TPU compiler's schedules for v5e at 4096 tokens, 10 heads of 64: 0.70 million cycles with all keys held,
    0.80 with 2048, 1.21 with blocks of 512 throughout.
    """
    most = SPLASH_KEY_BYTES // (128 * itemsize) // block
    return block * max(n for n in range(1, most + 1) if s // block % n == 0)


IMPLEMENTATIONS: Mapping[str, Kernel] = {"xla": _xla, "cudnn": _cudnn, "splash": _splash}
