"""The encoder of T5 v1.1, SD3's third text encoder. Follows transformers 5.23 models/t5/modeling_t5.py, whose attribute
names it has. No mask: padding is attended to, as in every SD3 pipeline.

float32 islands: the residual stream, norm statistics, logits and softmax, and `wo` where all else is float16. The
stream of the XXL model grows to where float16 ends and bfloat16 counts in hundreds: a layer's own, far smaller change
would be rounded away.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from autolora_jax.config import T5Config
from autolora_jax.models.attention import biased_attention
from autolora_jax.models.layers import FAST, Block, Dense, RMSNorm, gelu_tanh, look_up, repeated


class SelfAttention(Block):
    """Multi-head attention to all tokens; the first layer's has the table of position biases for all layers."""

    config: T5Config
    has_bias: bool

    def setup(self) -> None:
        c = self.config
        self.q, self.k, self.v = (Dense(c.num_heads * c.d_kv, use_bias=False, **self.dtypes) for _ in range(3))
        self.o = Dense(c.d_model, use_bias=False, **self.dtypes)
        if self.has_bias:
            self.relative_attention_bias = nn.Embed(
                c.relative_attention_num_buckets, c.num_heads, dtype=jnp.float32, param_dtype=self.param_dtype
            )

    def __call__(self, x: Float[Array, "b t d"], bias: Float[Array, "h t t"]) -> Float[Array, "b t d"]:
        # Without the barrier XLA for TPUs lays the kernels out anew for the heads; a loop over prompts holds these, too
        # (2.4 GB of the XXL model).
        projected = jax.lax.optimization_barrier([project(x) for project in (self.q, self.k, self.v)])
        q, k, v = (y.reshape(*x.shape[:2], self.config.num_heads, -1) for y in projected)  # [b t h d]
        return self.o(biased_attention(q, k, v, bias, self.precision).reshape(*x.shape[:2], -1))

    def position_bias(self, length: int) -> Float[Array, "h t t"]:
        """What every head's logit of query i and key j gets for their distance, float32."""
        c = self.config
        buckets = relative_position_buckets(length, c.relative_attention_num_buckets, c.relative_attention_max_distance)
        return self.relative_attention_bias(jnp.asarray(buckets)).transpose(2, 0, 1)


class AttentionLayer(Block):
    """Attention behind a norm and beside a shortcut."""

    config: T5Config
    has_bias: bool

    def setup(self) -> None:
        self.layer_norm = RMSNorm(self.config.layer_norm_epsilon, **self.dtypes)
        self.SelfAttention = SelfAttention(config=self.config, has_bias=self.has_bias, **self.settings)

    def __call__(self, x: Float[Array, "b t d"], bias: Float[Array, "h t t"]) -> Float[Array, "b t d"]:
        return x + self.SelfAttention(self.layer_norm(x), bias).astype(x.dtype)


class GatedDense(Block):
    """GELU of one projection times another, and back."""

    config: T5Config

    def setup(self) -> None:
        self.wi_0, self.wi_1 = (Dense(self.config.d_ff, use_bias=False, **self.dtypes) for _ in range(2))
        # What it takes and gives is beyond float16 in the XXL model. TF32 has all of float16's digits.
        wide = {"dtype": jnp.float32, "precision": FAST} if jnp.dtype(self.dtype) == jnp.float16 else {}
        self.wo = Dense(self.config.d_model, use_bias=False, **(self.dtypes | wide))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        gate, value = (project(x).astype(self.wo.dtype) for project in (self.wi_0, self.wi_1))
        return self.wo(gelu_tanh(gate) * value)


class FeedForwardLayer(Block):
    """Feed-forward behind a norm and beside a shortcut."""

    config: T5Config

    def setup(self) -> None:
        self.layer_norm = RMSNorm(self.config.layer_norm_epsilon, **self.dtypes)
        self.DenseReluDense = GatedDense(config=self.config, **self.settings)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return x + self.DenseReluDense(self.layer_norm(x)).astype(x.dtype)


class T5Block(Block):
    """Attention, then feed-forward."""

    config: T5Config
    has_bias: bool

    def setup(self) -> None:
        self.layer = [
            AttentionLayer(config=self.config, has_bias=self.has_bias, **self.settings),
            FeedForwardLayer(config=self.config, **self.settings),
        ]

    def __call__(self, x: Float[Array, "b t d"], bias: Float[Array, "h t t"]) -> Float[Array, "b t d"]:
        """x: the residual stream, float32; bias: position_bias of the first block."""
        return self.layer[1](self.layer[0](x, bias))

    def position_bias(self, length: int) -> Float[Array, "h t t"]:
        """SelfAttention.position_bias."""
        return self.layer[0].SelfAttention.position_bias(length)


class T5Stack(Block):
    """The blocks, one after another, and a norm."""

    config: T5Config

    def setup(self) -> None:
        self.block = [
            T5Block(config=self.config, has_bias=i == 0, **self.settings) for i in range(self.config.num_layers)
        ]
        self.final_layer_norm = RMSNorm(self.config.layer_norm_epsilon, **self.dtypes)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        bias = self.block[0].position_bias(x.shape[1])
        for block in self.block:
            x = repeated(block, x, bias)
        return self.final_layer_norm(x)


class T5EncoderModel(Block):
    """Token ids -> what the denoiser reads."""

    config: T5Config

    def setup(self) -> None:
        self.shared = self.embedding(self.config.vocab_size, self.config.d_model)
        self.encoder = T5Stack(config=self.config, **self.settings)

    def __call__(self, input_ids: Int[Array, "b t"], extra: Float[Array, "r d"] | None = None) -> Float[Array, "b t d"]:
        """The last layer's states, normed, in the compute dtype.

        input_ids: of any length; those from vocab_size on are rows of `extra`. The `attention` setting does not matter
            here.
        """
        return self.encoder(look_up(self.shared, input_ids, extra).astype(jnp.float32))


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "t t"]:
    """The bucket of query i and key j: half of them for keys to the left, half for keys to the right of the query.

    In each half, half of the buckets are for a single distance, the others grow geometrically up to max_distance.
    Source: transformers modeling_t5.py _relative_position_bucket. Whole numbers instead of its logarithms, which a
    device's last digit could put on the other side of a power of two.
    """
    side = num_buckets // 2
    exact = side // 2
    grown = side - exact
    # Bucket exact + k starts where distance / exact reaches (max_distance / exact) ** (k / grown).
    starts = [
        next(n for n in itertools.count(exact) if n**grown >= max_distance**k * exact ** (grown - k))
        for k in range(grown)
    ]
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    bucket = np.searchsorted([*range(exact), *starts], np.abs(distance), side="right") - 1
    return (bucket + side * (distance > 0)).astype(np.int32)
