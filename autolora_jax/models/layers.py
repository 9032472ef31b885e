"""Layers that every network here is made of: Flax Linen, channels last, each aware of an optional LoRA delta.

dtype is the compute dtype, param_dtype the stored one. float32 compute means float32 products on every device, unless a
lower `precision` lets TPUs round their inputs to bfloat16, and GPUs to TF32. Norm statistics are always float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from autolora_jax.models.delta import Delta, apply_kernel, changed
from autolora_jax.models.int8 import meet

Pads = tuple[tuple[int, int], tuple[int, int]]
NO_PAD: Pads = ((0, 0), (0, 0))
SAME_3X3: Pads = ((1, 1), (1, 1))
# Of float32 products, as JAX names them: six bfloat16 passes of a TPU, a GPU's float32; three, its TF32; one, its TF32.
EXACT, HIGH, FAST = "highest", "high", "default"


def matmul_precision(dtype: DTypeLike, precision: str = EXACT) -> str | None:
    """The `precision` argument of every product computed in this dtype. precision: a Block's."""
    return precision if jnp.dtype(dtype) == jnp.float32 else None


class Block(nn.Module, kw_only=True):  # type: ignore[call-arg]  # Flax's types are not read
    """Base of every part of a network: dtypes, attention kernel and what training keeps, handed down unchanged."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    precision: str = EXACT  # of products, where dtype is float32
    attention: str = "xla"  # a key of attention.IMPLEMENTATIONS
    remat: bool = False  # a backward pass keeps the inputs of `repeated` blocks alone: less memory, one more forward

    @property
    def dtypes(self) -> dict[str, Any]:
        """What a layer needs of them."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": self.precision}

    @property
    def settings(self) -> dict[str, Any]:
        """What a smaller block needs of them."""
        return {**self.dtypes, "attention": self.attention, "remat": self.remat}

    def embedding(self, size: int, features: int) -> nn.Embed:
        """A table of vectors."""
        return nn.Embed(size, features, dtype=self.dtype, param_dtype=self.param_dtype)


def repeated(block: Block, *inputs: Array) -> Any:
    """block(*inputs), for blocks that a network has many of: equal ones on equal shapes are traced and lowered once.

    A compiler puts the body in the place of every call again, so what runs is the same. The body is computed once more
    in a backward pass if `remat` asks for it.
    """
    assert block.scope is not None
    if block.scope.mutable is not False:  # it makes its parameters, or shows what is inside: nothing to share
        return block(*inputs)
    with jax.named_scope(str(block.name)):
        return _traced_once(block.clone(parent=None, name=None), block.variables, *inputs)


@partial(jax.jit, static_argnums=0)
def _traced_once(block: Block, variables: Any, *inputs: Array) -> Any:
    apply = jax.checkpoint(block.apply) if block.remat else block.apply
    return apply(variables, *inputs)


class _Adapted(nn.Module, kw_only=True):  # type: ignore[call-arg]
    """A layer that may carry a delta in the "lora" collection."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    precision: str = EXACT

    def delta(self) -> Delta | None:
        return self.variables.get("lora")

    def stored(self, name: str, initializer: Callable[..., Array], shape: tuple[int, ...]) -> Any:
        """The layer's parameter. Flax's `param` traces the initializer at every use, 40 % of tracing a UNet."""
        value = self.get_variable("params", name)
        if value is None or value.shape != shape:  # to be made, or an error that Flax words
            return self.param(name, initializer, shape, self.param_dtype)
        return value

    def biased(self, y: Array, has_bias: bool) -> Array:
        """y plus the layer's bias, if it has one, plus what the delta adds to it."""
        bias = self.stored("bias", nn.initializers.zeros, y.shape[-1:]) if has_bias else None
        total = changed(bias, self.delta(), "bias", y.ndim, y.dtype)
        return y if total is None else y + total


@partial(jax.jit, static_argnums=(1, 2))  # so that it is traced once for each shape
def _random_kernel(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return nn.initializers.lecun_normal()(key, shape, dtype)


class _Affine(_Adapted, kw_only=True):  # type: ignore[call-arg]
    """A map that is linear in its kernel, and a bias."""

    use_bias: bool = True

    def mapped(self, x: Array, kernel_shape: tuple[int, ...], linear: Callable[..., Array], positions: int) -> Array:
        """linear(x, kernel, precision=…) with the delta added, and the bias. positions: see apply_kernel."""
        kernel = self.stored("kernel", _random_kernel, kernel_shape)
        x, kernel = meet(x.astype(self.dtype), kernel)
        precision = matmul_precision(self.dtype, self.precision)
        y = apply_kernel(x, kernel, self.delta(), partial(linear, precision=precision), positions, precision)
        return self.biased(y, self.use_bias)


class Dense(_Affine):
    """Affine map of the last axis: [b ... in] -> [b ... features]. torch's Linear with a transposed kernel."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.mapped(x, (x.shape[-1], self.features), jnp.matmul, x.size // x.shape[-1])


class Conv(_Affine):
    """2-D convolution, NHWC. Padding is spelled as torch means it: ((top, bottom), (left, right))."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Pads = SAME_3X3

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        convolve = partial(
            jax.lax.conv_general_dilated,
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        return self.mapped(x, shape, convolve, x.size // x.shape[-1] // self.stride**2)


class TimestepEmbedding(Block):
    """Dense, SiLU, Dense."""

    features: int

    def setup(self) -> None:
        self.linear_1 = Dense(self.features, **self.dtypes)
        self.linear_2 = Dense(self.features, **self.dtypes)

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b f"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class _Norm(_Adapted):
    """A norm, whose weight and bias may carry a delta."""

    def weighed(self, y: Array, has_bias: bool = True) -> Array:
        """y · weight + bias, float32."""
        weight = self.stored("scale", nn.initializers.ones, y.shape[-1:])
        factor = changed(weight, self.delta(), "weight", y.ndim, y.dtype)
        assert factor is not None
        return self.biased(y * factor, has_bias)


class GroupNorm(_Norm):
    """torch's GroupNorm over (pixels, channels of a group): [b ... c] -> the same. Two-pass float32 statistics."""

    num_groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        shape = (x.shape[0], -1, self.num_groups, x.shape[-1] // self.num_groups)
        groups = x.astype(jnp.float32).reshape(shape)  # [b s g c/g]
        mean = groups.mean(axis=(1, 3), keepdims=True)
        # Two passes: E[x²] − E[x]² loses all digits where |mean| >> std, which the VAE's decoder reaches.
        var = jnp.square(groups - mean).mean(axis=(1, 3), keepdims=True)
        y = ((groups - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        return self.weighed(y).astype(self.dtype)


class LayerNorm(_Norm):
    """torch's LayerNorm over the last axis. float32 statistics: of float32 inputs in two passes, of 16-bit ones in one.

    E[x²] − E[x]² is wrong by 1.5e-7·(mean/std)² of the variance. Rounding the inputs to bfloat16 has moved it by more,
    whatever the mean (4e-2 beside 1.4e-3 where it is 100 std; float16 3e-3), and a TPU reads them once instead of
    twice: 9 % of a transformer block.
    """

    epsilon: float
    affine: bool = True  # with weight and bias

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        y = x.astype(jnp.float32)
        mean = y.mean(axis=-1, keepdims=True)
        if x.dtype.itemsize == 2:
            variance = jnp.maximum(jnp.square(y).mean(axis=-1, keepdims=True) - jnp.square(mean), 0.0)
        else:
            variance = jnp.square(y - mean).mean(axis=-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (self.weighed(y) if self.affine else y).astype(self.dtype)


class RMSNorm(_Norm):
    """Last axis over its root mean square, times a weight: no mean, no bias. float32 statistics."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        return self.weighed(y, has_bias=False).astype(self.dtype)


def look_up(table: nn.Embed, ids: Int[Array, "b t"], extra: Float[Array, "r d"] | None = None) -> Float[Array, "b t d"]:
    """Token ids -> vectors. Ids from the table's size on are rows of `extra`: the table is never copied or written.

    extra: vectors of embeddings (textual inversion), in any float type.
    """
    if extra is None:
        return table(ids)
    size = table.num_embeddings
    known = table(jnp.minimum(ids, size - 1))
    added = jnp.take(extra.astype(known.dtype), jnp.maximum(ids - size, 0), axis=0, mode="clip")
    return jnp.where((ids < size)[..., None], known, added)


def quick_gelu(x: Array) -> Array:
    """CLIP ViT-L's activation: x·σ(1.702x). Source: transformers/activations.py QuickGELUActivation."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """The exact, erf form, torch's default: jax.nn.gelu's default is tanh, which moves a run by 4e-4."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    """The tanh form, of SD3's denoiser and of T5 (transformers calls it gelu_new)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


def sinusoidal_embedding(t: Float[Array, "n"], dim: int, max_period: float = 10_000.0) -> Float[Array, "n dim"]:
    """Timestep embedding, cosines first, float32. Source: diffusers embeddings.py get_timestep_embedding
    with flip_sin_to_cos=True, downscale_freq_shift=0.

    t: [n], any real number (SDXL passes timesteps 0..999 and pixel sizes).
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
