"""The convolutional parts that the UNet and the VAE share. Follows diffusers 0.42.1 models/resnet.py, downsampling.py
and upsampling.py. NHWC.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.models.layers import NO_PAD, SAME_3X3, Block, Conv, Dense, GroupNorm, Pads


class ResnetBlock2D(Block):
    """Norm, SiLU, convolution, twice, around a shortcut; the time embedding joins between the two."""

    features: int
    num_groups: int
    epsilon: float

    def setup(self) -> None:
        # Linen makes parameters at first use: no conv_shortcut where the width stays, no time_emb_proj in the VAE.
        self.norm1 = GroupNorm(self.num_groups, self.epsilon, **self.dtypes)
        self.conv1 = Conv(self.features, **self.dtypes)
        self.norm2 = GroupNorm(self.num_groups, self.epsilon, **self.dtypes)
        self.conv2 = Conv(self.features, **self.dtypes)
        self.conv_shortcut = Conv(self.features, kernel_size=1, padding=NO_PAD, **self.dtypes)
        self.time_emb_proj = Dense(self.features, **self.dtypes)

    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"] | None = None) -> Float[Array, "b h w f"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        if time is not None:
            y = y + self.time_emb_proj(jax.nn.silu(time))[:, None, None]
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if x.shape[-1] == self.features else self.conv_shortcut(x))


class Downsample2D(Block):
    """Half the size by a convolution of stride 2."""

    features: int
    # The UNet pads symmetrically; the VAE's encoder right and bottom only, which is what "SAME" would do.
    padding: Pads = SAME_3X3

    def setup(self) -> None:
        self.conv = Conv(self.features, stride=2, padding=self.padding, **self.dtypes)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample2D(Block):
    """Twice the size by repeating pixels, then a convolution."""

    features: int

    def setup(self) -> None:
        self.conv = Conv(self.features, **self.dtypes)

    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, ...] | None = None) -> Float[Array, "b h2 w2 c"]:
        """size: (height, width) to cut to, for images whose odd size was rounded up on the way down."""
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        if size:
            x = x[:, : size[0], : size[1]]
        return self.conv(x)
