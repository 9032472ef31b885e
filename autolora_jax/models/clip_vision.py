"""CLIP whole (arXiv 2103.00020): pictures and texts as vectors of one space. Its text half is models/clip.py's.

Follows transformers 5.23 models/clip/modeling_clip.py, whose attribute names it has ("pre_layrnorm" among them). NHWC.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from autolora_jax.config import CLIPConfig, CLIPVisionConfig
from autolora_jax.models.clip import Encoder, TextTransformer
from autolora_jax.models.layers import NO_PAD, Block, Conv, Dense, LayerNorm


class VisionEmbeddings(Block):
    """The class token and a token a patch, each with its position."""

    config: CLIPVisionConfig

    def setup(self) -> None:
        c = self.config
        self.class_embedding = self.param(
            "class_embedding", nn.initializers.normal(0.02), (c.hidden_size,), self.param_dtype
        )
        self.patch_embedding = Conv(c.hidden_size, c.patch_size, c.patch_size, NO_PAD, use_bias=False, **self.dtypes)
        self.position_embedding = nn.Embed(1 + (c.image_size // c.patch_size) ** 2, c.hidden_size, **self.dtypes)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        patches = self.patch_embedding(x)
        patches = patches.reshape(x.shape[0], -1, patches.shape[-1])  # [b h·w d]
        first = jnp.asarray(self.class_embedding, self.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, first.size)), patches], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1])[None])


class VisionTransformer(Block):
    """Embeddings between norms, encoder, and a norm of the class token's state."""

    config: CLIPVisionConfig

    def setup(self) -> None:
        self.embeddings = VisionEmbeddings(config=self.config, **self.settings)
        self.pre_layrnorm = LayerNorm(self.config.layer_norm_eps, **self.dtypes)
        self.encoder = Encoder(config=self.config, **self.settings)
        self.post_layernorm = LayerNorm(self.config.layer_norm_eps, **self.dtypes)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(x)))[-1][:, 0])


class CLIPModel(Block):
    """Both halves, each with its projection into the common space."""

    config: CLIPConfig

    def setup(self) -> None:
        self.text_model = TextTransformer(config=self.config.text_config, **self.settings)
        self.vision_model = VisionTransformer(config=self.config.vision_config, **self.settings)
        self.text_projection, self.visual_projection = (
            Dense(self.config.projection_dim, use_bias=False, **self.dtypes) for _ in range(2)
        )

    def __call__(
        self, pixels: Float[Array, "b h w c"], input_ids: Int[Array, "n t"]
    ) -> tuple[Float[Array, "b p"], Float[Array, "n p"]]:
        """(image_features, text_features)."""
        return self.image_features(pixels), self.text_features(input_ids)

    def image_features(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b p"]:
        """A vector a picture, of any length. pixels: image_size a side, normalised as preprocessor_config.json says."""
        return self.visual_projection(self.vision_model(pixels))

    def text_features(self, input_ids: Int[Array, "n t"]) -> Float[Array, "n p"]:
        """A vector a text, of any length. input_ids: from the start to the end token; what follows is not seen."""
        return self.text_projection(self.text_model(input_ids, None)[1])
