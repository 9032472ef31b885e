"""The denoiser of SD3 and SD3.5: a transformer over patches of the latents and the prompt's tokens, together.

Follows diffusers 0.42.1 models/transformers/transformer_sd3.py and embeddings.py; attribute names are theirs. NHWC.
float32 islands: timestep and pooled prompt, norm statistics, softmax.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from autolora_jax.config import MMDiTConfig
from autolora_jax.models.joint import AdaptiveNorm, JointTransformerBlock, modulated
from autolora_jax.models.layers import NO_PAD, Block, Conv, Dense, TimestepEmbedding, repeated, sinusoidal_embedding

SINUSOIDS = 256  # of the timestep


class PatchEmbed(Block):
    """Patches as tokens, each with its position: the middle of a large table, cut to the picture's size."""

    config: MMDiTConfig

    def setup(self) -> None:
        c = self.config
        self.proj = Conv(c.features, kernel_size=c.patch_size, stride=c.patch_size, padding=NO_PAD, **self.dtypes)
        self.pos_embed = self.param("pos_embed", lambda _: sincos_table(c).astype(self.param_dtype))

    def __call__(self, sample: Float[Array, "b h w c"]) -> Float[Array, "b t f"]:
        """Raises ValueError for a size that is no whole number of patches or larger than the table."""
        side, patch = self.config.pos_embed_max_size, self.config.patch_size
        _check_size(sample.shape[1:3], patch, side)
        x = self.proj(sample)
        b, h, w, c = x.shape
        table = jnp.asarray(self.pos_embed, self.dtype).reshape(1, side, side, c)
        top, left = (side - h) // 2, (side - w) // 2
        return (x + table[:, top : top + h, left : left + w]).reshape(b, h * w, c)


class CombinedTimestepTextProjEmbeddings(Block):
    """Timestep and pooled prompt as one vector."""

    features: int

    def setup(self) -> None:
        self.timestep_embedder, self.text_embedder = (
            TimestepEmbedding(features=self.features, **self.settings) for _ in range(2)
        )

    def __call__(self, timesteps: Float[Array, "b"], pooled: Float[Array, "b p"]) -> Float[Array, "b f"]:
        return self.timestep_embedder(sinusoidal_embedding(timesteps, SINUSOIDS)) + self.text_embedder(pooled)


class SD3Transformer2DModel(Block):
    """Predicts the velocity noise − image from noisy latents."""

    config: MMDiTConfig

    def setup(self) -> None:
        c = self.config
        self.pos_embed = PatchEmbed(config=c, **self.settings)
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(
            features=c.features, dtype=jnp.float32, param_dtype=self.param_dtype
        )
        self.context_embedder = Dense(c.features, **self.dtypes)
        self.transformer_blocks = [
            JointTransformerBlock(
                features=c.features,
                heads=c.num_attention_heads,
                qk_norm=c.qk_norm is not None,
                dual_attention=i in c.dual_attention_layers,
                text_only_read=i == c.num_layers - 1,
                **self.settings,
            )
            for i in range(c.num_layers)
        ]
        self.norm_out = AdaptiveNorm(features=c.features, parts=2, **self.settings)
        self.proj_out = Dense(c.patch_size**2 * c.out_channels, **self.dtypes)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, "b"],
        encoder_hidden_states: Float[Array, "b s d"],
        pooled_projections: Float[Array, "b p"],
        skipped: Bool[Array, "b layers"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """The prediction, in the compute dtype.

        sample: noisy latents; height and width are multiples of the patch size, of no more patches than the table has.
        timesteps: 0..1000, need not be whole.
        encoder_hidden_states: the prompt's tokens, of all text encoders. pooled_projections: the pooled prompt.
        skipped: blocks that pass on what they are given, for skip-layer guidance; they are computed all the same, so
            that which they are is data.
        Raises ValueError for another size.
        """
        # Every adaptive norm reads the vector through a SiLU.
        vector = jax.nn.silu(self.time_text_embed(timesteps, pooled_projections)).astype(self.dtype)
        image, text = self.pos_embed(sample), self.context_embedder(encoder_hidden_states)
        for i, block in enumerate(self.transformer_blocks):
            given = image, text
            image, text = repeated(block, image, text, vector)
            if skipped is not None:
                out = skipped[:, i, None, None]
                image, text = jnp.where(out, given[0], image), jnp.where(out, given[1], text)
        x, (scale, shift) = self.norm_out(image, vector)
        return self._unpatched(self.proj_out(modulated(x, shift, scale)), sample.shape[1:3])

    def _unpatched(self, tokens: Float[Array, "b t f"], size: tuple[int, ...]) -> Float[Array, "b h w out"]:
        """Every token as the patch it stands for, its channels running fastest."""
        p = self.config.patch_size
        h, w = (n // p for n in size)
        x = tokens.reshape(-1, h, w, p, p, self.config.out_channels).swapaxes(2, 3)  # [b h p w p out]
        return x.reshape(-1, h * p, w * p, self.config.out_channels)


def sincos_table(config: MMDiTConfig) -> Float[Array, "1 n f"]:
    """Positions of an untrained network, float32; checkpoints carry theirs.

    Source: diffusers embeddings.py get_2d_sincos_pos_embed. Half the channels are of the column, half of the row;
    positions are in patches, stretched so that a picture of the trained size spans as much whatever the table's side.
    """
    side, features = config.pos_embed_max_size, config.features
    positions = jnp.arange(side) / (side / (config.sample_size // config.patch_size))
    angles = jnp.outer(positions, 10_000.0 ** -(jnp.arange(features // 4) / (features // 4)))
    line = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)  # [side f/2]
    shape = (side, side, features // 2)
    table = jnp.concatenate([jnp.broadcast_to(x, shape) for x in (line[None], line[:, None])], axis=-1)
    return table.reshape(1, side * side, features)


def _check_size(size: tuple[int, ...], patch: int, side: int) -> None:
    for name, n in zip(("height", "width"), size, strict=True):
        if n % patch or not 0 < n <= side * patch:
            nearest = min(max(round(n / patch), 1), side) * patch
            raise ValueError(
                f"latent {name} {n} should be a multiple of the patch size {patch}, at most {side * patch} (the table "
                f"of positions has {side} patches a side); use {nearest}"
            )
