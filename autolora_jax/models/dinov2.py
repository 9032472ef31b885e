"""DINOv2 (arXiv 2304.07193), a vision transformer: small, base, large, and giant, whose feed-forward is a SwiGLU.

Follows transformers 5.23 models/dinov2/modeling_dinov2.py, whose attribute names it has but for the attention's, which
is CLIP's; published files have older ones, which weights/tables.py renames. NHWC. float32 islands: norm statistics,
logits and softmax, the table of positions.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.config import Dinov2Config
from autolora_jax.models.clip import MLP, SelfAttention
from autolora_jax.models.layers import NO_PAD, Block, Conv, Dense, LayerNorm, repeated


class PatchEmbeddings(Block):
    """A token a patch."""

    config: Dinov2Config

    def setup(self) -> None:
        side = self.config.patch_size
        self.projection = Conv(self.config.hidden_size, side, side, NO_PAD, **self.dtypes)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.projection(x)


class Embeddings(Block):
    """The class token and the patches, each with its position."""

    config: Dinov2Config

    def setup(self) -> None:
        c = self.config
        table = (1, 1 + (c.image_size // c.patch_size) ** 2, c.hidden_size)
        self.cls_token = self.param("cls_token", nn.initializers.zeros, (1, 1, c.hidden_size), self.param_dtype)
        self.position_embeddings = self.param(
            "position_embeddings", nn.initializers.normal(0.02), table, self.param_dtype
        )
        self.patch_embeddings = PatchEmbeddings(config=c, **self.settings)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        patches = self.patch_embeddings(x)
        b, height, width, d = patches.shape
        table = resized_positions(jnp.asarray(self.position_embeddings, jnp.float32), height, width)
        first = jnp.broadcast_to(jnp.asarray(self.cls_token, self.dtype), (b, 1, d))
        return jnp.concatenate([first, patches.reshape(b, -1, d)], axis=1) + table.astype(self.dtype)


class SwiGLU(Block):
    """SiLU of one projection times another, and back."""

    config: Dinov2Config

    def setup(self) -> None:
        self.gate_proj, self.up_proj = (Dense(self.config.intermediate_size, **self.dtypes) for _ in range(2))
        self.down_proj = Dense(self.config.hidden_size, **self.dtypes)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class LayerScale(Block):
    """A learned factor a feature."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        factors = self.param("lambda1", nn.initializers.ones, (self.config.hidden_size,), self.param_dtype)
        return x * jnp.asarray(factors, self.dtype)[None, None]


class Layer(Block):
    """Attention and feed-forward, each behind a norm, scaled, and beside a shortcut."""

    config: Dinov2Config

    def setup(self) -> None:
        part: dict[str, Any] = {"config": self.config, **self.settings}
        self.norm1 = LayerNorm(self.config.layer_norm_eps, **self.dtypes)
        self.self_attn = SelfAttention(**part)  # theirs is `attention`, which here is which kernel runs
        self.layer_scale1 = LayerScale(**part)
        self.norm2 = LayerNorm(self.config.layer_norm_eps, **self.dtypes)
        self.mlp = (SwiGLU if self.config.use_swiglu_ffn else MLP)(**part)
        self.layer_scale2 = LayerScale(**part)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = x + self.layer_scale1(self.self_attn(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Encoder(Block):
    """The layers, one after another."""

    config: Dinov2Config

    def setup(self) -> None:
        self.layer = [Layer(config=self.config, **self.settings) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        for layer in self.layer:
            x = repeated(layer, x)
        return x


class Dinov2Model(Block):
    """Pictures -> tokens; the class token's is what stands for a picture."""

    config: Dinov2Config

    def setup(self) -> None:
        self.embeddings = Embeddings(config=self.config, **self.settings)
        self.encoder = Encoder(config=self.config, **self.settings)
        self.layernorm = LayerNorm(self.config.layer_norm_eps, **self.dtypes)

    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        """The last layer's states, normed: the class token's at [:, 0] (their pooler output), then the patches'.

        pixels: normalised as the checkpoint's preprocessor_config.json says; h and w at least patch_size, what a patch
        does not fill is not seen.
        """
        return self.layernorm(self.encoder(self.embeddings(pixels)))


def resized_positions(table: Float[Array, "1 t d"], height: int, width: int) -> Float[Array, "1 t2 d"]:
    """The table of positions of a square of patches, as one of height x width; the class token's stays as it is."""
    side = round((table.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    square = table[0, 1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(bicubic(side, length)) for length in (height, width))
    new = jnp.einsum("yi,xj,ijd->yxd", rows, columns, square, precision="highest")
    return jnp.concatenate([table[:, :1], new.reshape(1, height * width, -1)], axis=1)


def bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Weights of `old` samples in each of `new`, as torch's interpolate(mode="bicubic", align_corners=False) has them.

    That is a cubic with a = −0.75 over four neighbours, which are no more when it shrinks (no antialiasing), the outer
    samples going on beyond the edges. jax.image.resize has a = −0.5 and other edges. (The original DINOv2 code asks for
    a scale of (new + 0.1) / old, which moves samples by 0.2 % of a patch or less; transformers' is followed.)
    Source: torch aten/native/UpSample.h, get_cubic_upsample_coefficients.
    """
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        x = np.abs(centres - (first + offset))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * a * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)
