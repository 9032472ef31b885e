"""SDXL's denoiser: a UNet that attends to the prompt and is told the timestep, the pooled prompt and the image's size.

Follows diffusers 0.42.1 models/unets/unet_2d_condition.py and unet_2d_blocks.py; attribute names are theirs. NHWC.
float32 islands: timestep and size embeddings, norm statistics, softmax.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.config import UNetConfig
from autolora_jax.models.layers import Block, Conv, GroupNorm, TimestepEmbedding, repeated, sinusoidal_embedding
from autolora_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from autolora_jax.models.transformer import Transformer2DModel


class Level(Block):
    """What the blocks of one resolution are made of: resnets, and a transformer after each where it attends."""

    config: UNetConfig
    features: int
    heads: int
    depth: int  # transformer blocks per attention layer
    attends: bool

    def _resnets(self, n: int) -> list[ResnetBlock2D]:
        c = self.config
        return [
            ResnetBlock2D(features=self.features, num_groups=c.norm_num_groups, epsilon=c.norm_eps, **self.settings)
            for _ in range(n)
        ]

    def _transformers(self, n: int) -> list[Transformer2DModel]:
        return [
            Transformer2DModel(
                features=self.features,
                heads=self.heads,
                depth=self.depth,
                num_groups=self.config.norm_num_groups,
                linear_projection=self.config.use_linear_projection,
                **self.settings,
            )
            for _ in range(n if self.attends else 0)
        ]


class DownBlock(Level):
    """Resnets (and transformers), then half the size; every output is kept for the way up."""

    downsample: bool

    def setup(self) -> None:
        n = self.config.layers_per_block
        self.resnets, self.attentions = self._resnets(n), self._transformers(n)
        self.downsamplers = [Downsample2D(features=self.features, **self.settings)] if self.downsample else []

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b t"], context: Float[Array, "b s d"]
    ) -> list[Array]:
        kept = []
        for i, resnet in enumerate(self.resnets):
            x = repeated(resnet, x, time)
            if self.attends:
                x = self.attentions[i](x, context)
            kept.append(x)
        return kept + [downsampler(x) for downsampler in self.downsamplers]


class MidBlock(Level):
    """Resnet, transformer, resnet."""

    def setup(self) -> None:
        self.resnets, self.attentions = self._resnets(2), self._transformers(1)

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b t"], context: Float[Array, "b s d"]
    ) -> Float[Array, "b h w c"]:
        x = repeated(self.resnets[0], x, time)
        x = self.attentions[0](x, context)
        return repeated(self.resnets[1], x, time)


class UpBlock(Level):
    """Resnets over the image and what was kept on the way down (and transformers), then twice the size."""

    upsample: bool

    def setup(self) -> None:
        n = self.config.layers_per_block + 1
        self.resnets, self.attentions = self._resnets(n), self._transformers(n)
        self.upsamplers = [Upsample2D(features=self.features, **self.settings)] if self.upsample else []

    def __call__(
        self, x: Float[Array, "b h w c"], kept: list[Array], time: Float[Array, "b t"], context: Float[Array, "b s d"]
    ) -> Float[Array, "b h2 w2 f"]:
        """kept: everything from the way down that is not used yet; this block takes its share off the end."""
        for i, resnet in enumerate(self.resnets):
            x = repeated(resnet, jnp.concatenate([x, kept.pop()], axis=-1), time)
            if self.attends:
                x = self.attentions[i](x, context)
        for upsampler in self.upsamplers:
            x = upsampler(x, kept[-1].shape[1:3])  # odd sizes come back as they went
        return x


class UNet2DConditionModel(Block):
    """Predicts noise (or velocity) from noisy latents."""

    config: UNetConfig

    def setup(self) -> None:
        c = self.config
        levels = [
            {"features": features, "heads": heads, "depth": depth, "config": c, **self.settings}
            for features, heads, depth in zip(c.block_out_channels, c.heads, c.depths, strict=True)
        ]
        down_attends, up_attends = (
            [kind.startswith("CrossAttn") for kind in kinds] for kinds in (c.down_block_types, c.up_block_types)
        )
        last = len(levels) - 1
        time = {
            "features": 4 * c.block_out_channels[0],
            "dtype": jnp.float32,
            "param_dtype": self.param_dtype,
        }
        self.time_embedding, self.add_embedding = TimestepEmbedding(**time), TimestepEmbedding(**time)
        self.conv_in = Conv(c.block_out_channels[0], **self.dtypes)
        self.down_blocks = [
            DownBlock(**level, attends=attends, downsample=i < last)
            for i, (level, attends) in enumerate(zip(levels, down_attends, strict=True))
        ]
        self.mid_block = MidBlock(**levels[-1], attends=True)
        self.up_blocks = [
            UpBlock(**level, attends=attends, upsample=i < last)
            for i, (level, attends) in enumerate(zip(reversed(levels), up_attends, strict=True))
        ]
        self.conv_norm_out = GroupNorm(c.norm_num_groups, c.norm_eps, **self.dtypes)
        self.conv_out = Conv(c.out_channels, **self.dtypes)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, "b"],
        encoder_hidden_states: Float[Array, "b s d"],
        text_embeds: Float[Array, "b p"],
        time_ids: Float[Array, "b 6"],
    ) -> Float[Array, "b h w out"]:
        """The prediction, in the compute dtype.

        sample: noisy latents, scaled as the schedule says; any height and width.
        timesteps: 0..999, need not be whole.
        encoder_hidden_states: the prompt's tokens, both encoders side by side. text_embeds: the pooled prompt.
        time_ids: original height, width, crop top, left, target height, width, in pixels.
        """
        time = self._embed_time(timesteps, text_embeds, time_ids).astype(self.dtype)
        context = encoder_hidden_states.astype(self.dtype)
        # down
        kept = [self.conv_in(sample)]
        for down_block in self.down_blocks:
            kept += down_block(kept[-1], time, context)
        # middle
        x = self.mid_block(kept[-1], time, context)
        # up
        for up_block in self.up_blocks:
            x = up_block(x, kept, time, context)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))

    def _embed_time(
        self, timesteps: Float[Array, "b"], text_embeds: Float[Array, "b p"], time_ids: Float[Array, "b 6"]
    ) -> Float[Array, "b t"]:
        """Timestep, pooled prompt and sizes as one vector, float32."""
        c = self.config
        time = self.time_embedding(sinusoidal_embedding(timesteps, c.block_out_channels[0]))
        sizes = sinusoidal_embedding(time_ids.reshape(-1), c.addition_time_embed_dim).reshape(time_ids.shape[0], -1)
        added = jnp.concatenate([text_embeds.astype(jnp.float32), sizes], axis=-1)  # [b p+6·256]
        return time + self.add_embedding(added)
