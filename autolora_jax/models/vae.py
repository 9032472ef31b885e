"""The VAE between pixels and latents. Follows diffusers 0.42.1 models/autoencoders/autoencoder_kl.py and vae.py, whose
attribute names it has. NHWC. Raw: scaling_factor and shift_factor are the caller's.

Not in float16 where the config says force_upcast: SDXL's overflows. In bfloat16 it does not, but 5 values of a thousand
come out more than a grey level of 256 off; float32 with products in three passes (HIGH) keeps all within. A
1024² image then needs gigabytes, so there are functions that take one image, or one tile of a large one, at a time.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from autolora_jax.config import VAEConfig
from autolora_jax.models.attention import dot_product_attention
from autolora_jax.models.layers import EXACT, NO_PAD, Block, Conv, Dense, GroupNorm, repeated
from autolora_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

Tree = Mapping[str, Any]
OVERLAP = 0.25  # of neighbouring tiles, as a part of their side
EPSILON = 1e-6  # of every norm here; the UNet's is 1e-5
BOTTOM_RIGHT = ((0, 1), (0, 1))  # the encoder's downsampling pads on these sides only


class PixelAttention(Block):
    """Self-attention of the pixels by a single head, behind a norm and beside a shortcut."""

    features: int
    num_groups: int

    def setup(self) -> None:
        self.group_norm = GroupNorm(self.num_groups, EPSILON, **self.dtypes)
        self.to_q, self.to_k, self.to_v = (Dense(self.features, **self.dtypes) for _ in range(3))
        self.to_out = [Dense(self.features, **self.dtypes)]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = self.group_norm(x).reshape(b, h * w, 1, c)  # [b t head d]
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        y = dot_product_attention(q, k, v, self.attention, precision=self.precision)
        return x + self.to_out[0](y).reshape(x.shape)


class Level(Block):
    """Resnets of one resolution, then another size or the same."""

    config: VAEConfig
    features: int
    layers: int
    resample: str | None = None  # "down", "up"

    def setup(self) -> None:
        self.resnets = [_resnet(self.config, self.features, self) for _ in range(self.layers)]
        size = {"features": self.features, **self.settings}
        self.downsamplers = [Downsample2D(padding=BOTTOM_RIGHT, **size)] if self.resample == "down" else []
        self.upsamplers = [Upsample2D(**size)] if self.resample == "up" else []

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        for block in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = repeated(block, x)
        return x


class MidBlock(Block):
    """Resnet, attention, resnet."""

    config: VAEConfig
    features: int

    def setup(self) -> None:
        self.resnets = [_resnet(self.config, self.features, self) for _ in range(2)]
        self.attentions = [
            PixelAttention(features=self.features, num_groups=self.config.norm_num_groups, **self.settings)
            for _ in range(self.config.mid_block_add_attention)
        ]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Encoder(Block):
    """Pixels -> mean and log-variance, side by side on the channels."""

    config: VAEConfig

    def setup(self) -> None:
        c = self.config
        shared = {"config": c, **self.settings}
        last = len(c.block_out_channels) - 1
        self.conv_in = Conv(c.block_out_channels[0], **self.dtypes)
        self.down_blocks = [
            Level(features=features, layers=c.layers_per_block, resample="down" if i < last else None, **shared)
            for i, features in enumerate(c.block_out_channels)
        ]
        self.mid_block = MidBlock(features=c.block_out_channels[-1], **shared)
        self.conv_norm_out = GroupNorm(c.norm_num_groups, EPSILON, **self.dtypes)
        self.conv_out = Conv(2 * c.latent_channels, **self.dtypes)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w z2"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(Block):
    """Latents -> pixels."""

    config: VAEConfig

    def setup(self) -> None:
        c = self.config
        shared = {"config": c, **self.settings}
        last = len(c.block_out_channels) - 1
        # Rounded products of latents do half of what rounding does to a picture; exact ones, so few, cost nothing.
        self.conv_in = Conv(c.block_out_channels[-1], **(self.dtypes | {"precision": EXACT}))
        self.mid_block = MidBlock(features=c.block_out_channels[-1], **shared)
        self.up_blocks = [
            Level(features=features, layers=c.layers_per_block + 1, resample="up" if i < last else None, **shared)
            for i, features in enumerate(reversed(c.block_out_channels))
        ]
        self.conv_norm_out = GroupNorm(c.norm_num_groups, EPSILON, **self.dtypes)
        self.conv_out = Conv(c.out_channels, **self.dtypes)

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(Block):
    """Pixels in [-1, 1] to latents, 8 times smaller, and back."""

    config: VAEConfig

    def setup(self) -> None:
        c = self.config
        exact = {"precision": EXACT}
        self.encoder = Encoder(config=c, **(self.settings | exact))  # once a picture for a whole training run
        self.decoder = Decoder(config=c, **self.settings)
        if c.use_quant_conv:
            self.quant_conv = Conv(2 * c.latent_channels, kernel_size=1, padding=NO_PAD, **(self.dtypes | exact))
        if c.use_post_quant_conv:
            self.post_quant_conv = Conv(c.latent_channels, kernel_size=1, padding=NO_PAD, **(self.dtypes | exact))

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
        """There and back, by the latents' mean."""
        return self.decode(self.encode(x)[0])

    def moments(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w z2"]:
        """The latents' mean and log-variance, side by side on the channels: what tiles are blended in."""
        y = self.encoder(x)
        return self.quant_conv(y) if self.config.use_quant_conv else y

    def encode(self, x: Float[Array, "b H W c"]) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
        """(mean, log-variance) of the latents' distribution, unscaled.

        x: pixels in [-1, 1]; H and W are multiples of config.factor.
        """
        return split_moments(self.moments(x))

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
        """Pixels, about [-1, 1], of unscaled latents."""
        return self.decoder(self.post_quant_conv(z) if self.config.use_post_quant_conv else z)


def split_moments(moments: Float[Array, "b h w z2"]) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
    """(mean, log-variance). Source: diffusers models/autoencoders/vae.py DiagonalGaussianDistribution."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def _resnet(config: VAEConfig, features: int, parent: Block) -> ResnetBlock2D:
    return ResnetBlock2D(features=features, num_groups=config.norm_num_groups, epsilon=EPSILON, **parent.settings)


# ---- many or large images --------------------------------------------------------------------------------------------


def decode_sliced(vae: AutoencoderKL, params: Tree, z: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
    """`vae.decode`, an image at a time."""
    return _one_by_one(_method(vae, params, "decode"), z)


def encode_sliced(
    vae: AutoencoderKL, params: Tree, x: Float[Array, "b H W c"]
) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
    """`vae.encode`, an image at a time."""
    return split_moments(_one_by_one(_method(vae, params, "moments"), x))


def decode_tiled(vae: AutoencoderKL, params: Tree, z: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
    """About `vae.decode`, a tile of the trained size at a time, neighbours blended where they overlap.

    Every tile has norm statistics of its own, so it is not the same picture. Source: diffusers autoencoder_kl.py
    tiled_decode, with enable_tiling's rule: an image no larger than a tile is not cut.
    """
    pixels = vae.config.sample_size
    return _tiled(_method(vae, params, "decode"), z, pixels // vae.config.factor, pixels)


def encode_tiled(
    vae: AutoencoderKL, params: Tree, x: Float[Array, "b H W c"]
) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
    """About `vae.encode`, in tiles like decode_tiled. Source: diffusers autoencoder_kl.py _tiled_encode."""
    pixels = vae.config.sample_size
    return split_moments(_tiled(_method(vae, params, "moments"), x, pixels, pixels // vae.config.factor))


def scaled_moments(
    vae: AutoencoderKL, params: Tree, pixels: UInt8[Array, "b H W c"], tiled: bool = False
) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
    """(mean, standard deviation) of pictures' latents, scaled and shifted as a denoiser sees them, an image at a time.

    tiled: in overlapping tiles, for pictures whose activations would not fit.
    """
    encode = encode_tiled if tiled else encode_sliced
    mean, logvar = encode(vae, params, pixels.astype(jnp.float32) / 127.5 - 1)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    return (mean - shift) * scale, jnp.exp(0.5 * logvar) * scale


def _method(vae: AutoencoderKL, params: Tree, name: str) -> Callable[[Array], Array]:
    return lambda x: vae.apply({"params": params}, x, method=name)


def _one_by_one(function: Callable[[Array], Array], x: Array) -> Array:
    return jax.lax.map(lambda one: function(one[None])[0], x)


def _tiled(function: Callable[[Array], Array], x: Array, tile: int, out_tile: int) -> Array:
    """`function` of tiles of side `tile`, which it makes `out_tile`, put together."""
    height, width = x.shape[1:3]
    if max(height, width) <= tile:
        return _one_by_one(function, x)
    stride, blend = int(tile * (1 - OVERLAP)), int(out_tile * OVERLAP)
    rows, columns = range(0, height, stride), range(0, width, stride)

    # Tiles of one shape go through one loop: the program holds at most 3 x 3 copies of the network, not one per tile.
    by_shape: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i in rows:
        for j in columns:
            by_shape.setdefault((min(tile, height - i), min(tile, width - j)), []).append((i, j))
    done: dict[tuple[int, int], Array] = {}
    for (h, w), corners in by_shape.items():
        stack = jnp.concatenate([x[:, i : i + h, j : j + w] for i, j in corners])  # [tiles*b h w c]
        done.update(zip(corners, jnp.split(_one_by_one(function, stack), len(corners)), strict=True))

    kept = out_tile - blend
    for i in rows:
        for j in columns:  # in this order: a tile blends into neighbours that are blended already
            part = done[i, j]
            if i:
                part = _blend(done[i - stride, j], part, blend, axis=1)
            if j:
                part = _blend(done[i, j - stride], part, blend, axis=2)
            done[i, j] = part
    return jnp.concatenate(
        [jnp.concatenate([done[i, j][:, :kept, :kept] for j in columns], axis=2) for i in rows], axis=1
    )


def _blend(before: Array, after: Array, extent: int, axis: int) -> Array:
    """`after`, with its first `extent` rows (or columns) fading in over the last ones of `before`."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    ramp = (jnp.arange(extent, dtype=after.dtype) / extent).reshape(-1, *(1,) * (3 - axis))
    start = before.shape[axis] - extent
    old = jax.lax.slice_in_dim(before, start, start + extent, axis=axis)
    new, rest = jnp.split(after, [extent], axis=axis)
    weight = jnp.broadcast_to(ramp, old.shape)
    return jnp.concatenate([old * (1 - weight) + new * weight, rest], axis=axis)
