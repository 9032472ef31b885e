"""SD3's transformer block: image and text are two streams that attend to one sequence, [image, text].

Follows diffusers 0.42.1 models/attention.py JointTransformerBlock, normalization.py and attention_processor.py
JointAttnProcessor2_0, whose attribute names it has. Tokens are [b t c]. A vector of timestep and prompt, [b c], says
how every norm shifts and scales and how far every branch is open.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.models.attention import dot_product_attention
from autolora_jax.models.layers import Block, Dense, LayerNorm, RMSNorm, gelu_tanh
from autolora_jax.models.transformer import FeedForward

EPSILON = 1e-6  # of every norm here


class AdaptiveNorm(Block):
    """LayerNorm without weights of its own, and the vectors that a block needs beside it.

    Their order is the caller's to know: SD3 has shift before scale where a stream goes on, scale before shift where it
    ends.
    """

    features: int
    parts: int

    def setup(self) -> None:
        self.norm = LayerNorm(EPSILON, affine=False, **self.dtypes)
        self.linear = Dense(self.parts * self.features, **self.dtypes)

    def __call__(
        self, x: Float[Array, "b t c"], vector: Float[Array, "b c"]
    ) -> tuple[Float[Array, "b t c"], list[Float[Array, "b 1 c"]]]:
        return self.norm(x), jnp.split(self.linear(vector)[:, None], self.parts, axis=-1)


def modulated(
    x: Float[Array, "b t c"], shift: Float[Array, "b 1 c"], scale: Float[Array, "b 1 c"]
) -> Float[Array, "b t c"]:
    """A normed x, scaled around 1 and shifted."""
    return x * (1 + scale) + shift


class Heads(Block):
    """What an attention over one stream or two is made of."""

    features: int
    heads: int
    qk_norm: bool  # RMS norm of every head's queries and keys

    def _projections(self) -> list[Dense]:
        return [Dense(self.features, **self.dtypes) for _ in range(3)]

    def _norms(self) -> list[Any]:
        return [RMSNorm(EPSILON, **self.dtypes) if self.qk_norm else _unchanged for _ in range(2)]

    def _split(self, x: Float[Array, "b t c"], project: list[Any], norm: list[Any]) -> list[Float[Array, "b t h d"]]:
        """[queries, keys, values]"""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in project)
        return [norm[0](q), norm[1](k), v]


def _unchanged(x: Array) -> Array:
    return x


class SelfAttention(Heads):
    """Multi-head attention of the image to itself."""

    def setup(self) -> None:
        self.to_q, self.to_k, self.to_v = self._projections()
        self.norm_q, self.norm_k = self._norms()
        self.to_out = [Dense(self.features, **self.dtypes)]

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        q, k, v = self._split(x, [self.to_q, self.to_k, self.to_v], [self.norm_q, self.norm_k])
        return self.to_out[0](dot_product_attention(q, k, v, self.attention, precision=self.precision).reshape(x.shape))


class JointAttention(Heads):
    """Multi-head attention of image and text, each with projections of its own, to both."""

    text_only_read: bool  # nothing goes back to the text

    def setup(self) -> None:
        self.to_q, self.to_k, self.to_v = self._projections()
        self.norm_q, self.norm_k = self._norms()
        self.add_q_proj, self.add_k_proj, self.add_v_proj = self._projections()
        self.norm_added_q, self.norm_added_k = self._norms()
        self.to_out = [Dense(self.features, **self.dtypes)]
        if not self.text_only_read:
            self.to_add_out = Dense(self.features, **self.dtypes)

    def __call__(
        self, image: Float[Array, "b t c"], text: Float[Array, "b s c"]
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b s c"]]:
        """What image and text get; what the text gets is meaningless where it is only read."""
        of_image = self._split(image, [self.to_q, self.to_k, self.to_v], [self.norm_q, self.norm_k])
        of_text = self._split(
            text, [self.add_q_proj, self.add_k_proj, self.add_v_proj], [self.norm_added_q, self.norm_added_k]
        )
        q, k, v = (jnp.concatenate(both, axis=1) for both in zip(of_image, of_text, strict=True))  # [b t+s h d]
        y = dot_product_attention(q, k, v, self.attention, precision=self.precision)
        y = y.reshape(image.shape[0], -1, self.features)
        to_image, to_text = jnp.split(y, [image.shape[1]], axis=1)
        return self.to_out[0](to_image), to_text if self.text_only_read else self.to_add_out(to_text)


class GELU(Block):
    """Dense and the tanh form of GELU."""

    features: int

    def setup(self) -> None:
        self.proj = Dense(self.features, **self.dtypes)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t f"]:
        return gelu_tanh(self.proj(x))


class JointTransformerBlock(Block):
    """Attention and feed-forward of both streams, each behind a norm and beside a shortcut, opened by a gate."""

    features: int
    heads: int
    qk_norm: bool
    dual_attention: bool  # the image attends once more, to itself alone
    text_only_read: bool  # of the last block, whose text nobody needs; diffusers' context_pre_only

    def setup(self) -> None:
        size = {"features": self.features, **self.settings}
        heads = {"heads": self.heads, "qk_norm": self.qk_norm, **size}
        self.norm1 = AdaptiveNorm(parts=9 if self.dual_attention else 6, **size)
        self.norm1_context = AdaptiveNorm(parts=2 if self.text_only_read else 6, **size)
        self.attn = JointAttention(text_only_read=self.text_only_read, **heads)
        if self.dual_attention:
            self.attn2 = SelfAttention(**heads)
        self.norm2 = LayerNorm(EPSILON, affine=False, **self.dtypes)
        self.ff = FeedForward(inner=GELU, **size)
        if not self.text_only_read:
            self.norm2_context = LayerNorm(EPSILON, affine=False, **self.dtypes)
            self.ff_context = FeedForward(inner=GELU, **size)

    def __call__(
        self, image: Float[Array, "b t c"], text: Float[Array, "b s c"], vector: Float[Array, "b c"]
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b s c"]]:
        """Both streams; the text as it came where it is only read."""
        # norms
        x, (shift, scale, gate, ff_shift, ff_scale, ff_gate, *dual) = self.norm1(image, vector)
        y, ends_or_goes_on = self.norm1_context(text, vector)
        if self.text_only_read:
            text_scale, text_shift = ends_or_goes_on
        else:
            text_shift, text_scale, text_gate, text_ff_shift, text_ff_scale, text_ff_gate = ends_or_goes_on
        # attention
        to_image, to_text = self.attn(modulated(x, shift, scale), modulated(y, text_shift, text_scale))
        image = image + gate * to_image
        if self.dual_attention:
            dual_shift, dual_scale, dual_gate = dual
            image = image + dual_gate * self.attn2(modulated(x, dual_shift, dual_scale))
        # feed-forward
        image = image + ff_gate * self.ff(modulated(self.norm2(image), ff_shift, ff_scale))
        if self.text_only_read:
            return image, text
        text = text + text_gate * to_text
        text = text + text_ff_gate * self.ff_context(modulated(self.norm2_context(text), text_ff_shift, text_ff_scale))
        return image, text
