"""The transformer parts that denoisers are made of. Follows diffusers 0.42.1 models/attention_processor.py,
attention.py and transformers/transformer_2d.py. NHWC for pixels, [b tokens c] for tokens.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.models.attention import dot_product_attention
from autolora_jax.models.layers import NO_PAD, Block, Conv, Dense, GroupNorm, LayerNorm, gelu, repeated


class Attention(Block):
    """Multi-head attention of tokens to a context: themselves or a prompt."""

    features: int
    heads: int
    qkv_bias: bool = False

    def setup(self) -> None:
        self.to_q, self.to_k, self.to_v = (
            Dense(self.features, use_bias=self.qkv_bias, **self.dtypes) for _ in range(3)
        )
        self.to_out = [Dense(self.features, **self.dtypes)]

    def __call__(self, x: Float[Array, "b t c"], context: Float[Array, "b s d"]) -> Float[Array, "b t c"]:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))  # [b t h d]
        y = dot_product_attention(q, k, v, self.attention, precision=self.precision)
        return self.to_out[0](y.reshape(x.shape))


class GEGLU(Block):
    """One half of a projection times the GELU of the other: the first half is the value, the second the gate."""

    features: int

    def setup(self) -> None:
        self.proj = Dense(2 * self.features, **self.dtypes)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t f"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * gelu(gate)


class FeedForward(Block):
    """A gated unit or a GELU of four times the width, and back."""

    features: int
    inner: type[Block] = GEGLU

    def setup(self) -> None:
        # net.1 is a dropout in the files' numbering
        self.net_0 = self.inner(features=4 * self.features, **self.settings)
        self.net_2 = Dense(self.features, **self.dtypes)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        return self.net_2(self.net_0(x))


class BasicTransformerBlock(Block):
    """Self-attention, cross-attention, feed-forward, each behind a LayerNorm and beside a shortcut."""

    features: int
    heads: int

    def setup(self) -> None:
        self.norm1, self.norm2, self.norm3 = (LayerNorm(1e-5, **self.dtypes) for _ in range(3))
        self.attn1, self.attn2 = (
            Attention(features=self.features, heads=self.heads, **self.settings) for _ in range(2)
        )
        self.ff = FeedForward(features=self.features, **self.settings)

    def __call__(self, x: Float[Array, "b t c"], context: Float[Array, "b s d"]) -> Float[Array, "b t c"]:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(Block):
    """Transformer blocks over an image's pixels."""

    features: int
    heads: int
    depth: int
    num_groups: int
    linear_projection: bool

    def setup(self) -> None:
        self.norm = GroupNorm(self.num_groups, 1e-6, **self.dtypes)  # not the UNet's norm_eps
        self.proj_in, self.proj_out = (
            Dense(self.features, **self.dtypes)
            if self.linear_projection
            else Conv(self.features, kernel_size=1, padding=NO_PAD, **self.dtypes)
            for _ in range(2)
        )
        self.transformer_blocks = [
            BasicTransformerBlock(features=self.features, heads=self.heads, **self.settings) for _ in range(self.depth)
        ]

    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b s d"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        # Channels are last, so a projection before or after the pixels become tokens is the same.
        y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            y = repeated(block, y, context)
        return x + self.proj_out(y.reshape(b, h, w, c))
