"""CLIP (arXiv 2103.00020): text encoders, ViT-L (SDXL's first) and OpenCLIP's bigG (its second) by config; and both
halves, whose pictures and texts are vectors of one space.

Follows transformers 5.23 models/clip/modeling_clip.py, with the published files' names (`text_model.` everywhere,
"pre_layrnorm"). NHWC. The mask of texts is causal only: padding is attended to, as in every SDXL pipeline.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from autolora_jax.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, Dinov2Config
from autolora_jax.models.attention import dot_product_attention
from autolora_jax.models.layers import ACTIVATIONS, NO_PAD, Block, Conv, Dense, LayerNorm, look_up, repeated

LEGACY_EOS = 2  # the wrong id that old configs carry
# Of what has such attention and such an MLP: both halves of CLIP, and DINOv2.
Tower = CLIPTextConfig | CLIPVisionConfig | Dinov2Config


class Embeddings(Block):
    """Token plus position."""

    config: CLIPTextConfig

    def setup(self) -> None:
        c = self.config
        self.token_embedding = self.embedding(c.vocab_size, c.hidden_size)
        self.position_embedding = self.embedding(c.max_position_embeddings, c.hidden_size)

    def __call__(self, ids: Int[Array, "b t"], extra: Float[Array, "r d"] | None) -> Float[Array, "b t d"]:
        return look_up(self.token_embedding, ids, extra) + self.position_embedding(jnp.arange(ids.shape[1])[None])


class SelfAttention(Block):
    """Multi-head attention: causal in texts, to everything in pictures."""

    config: Tower

    def setup(self) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Dense(self.config.hidden_size, **self.dtypes) for _ in range(4)
        )

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.q_proj, self.k_proj, self.v_proj))  # [b t h d]
        y = dot_product_attention(q, k, v, self.attention, self.config.causal, self.precision)
        return self.out_proj(y.reshape(x.shape))


class MLP(Block):
    """Dense, the config's activation, Dense."""

    config: Tower

    def setup(self) -> None:
        self.fc1 = Dense(self.config.intermediate_size, **self.dtypes)
        self.fc2 = Dense(self.config.hidden_size, **self.dtypes)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.fc2(ACTIVATIONS[self.config.hidden_act](self.fc1(x)))


class EncoderLayer(Block):
    """Attention and MLP, each behind a LayerNorm and beside a shortcut."""

    config: Tower

    def setup(self) -> None:
        self.layer_norm1 = LayerNorm(self.config.layer_norm_eps, **self.dtypes)
        self.self_attn = SelfAttention(config=self.config, **self.settings)
        self.layer_norm2 = LayerNorm(self.config.layer_norm_eps, **self.dtypes)
        self.mlp = MLP(config=self.config, **self.settings)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(Block):
    """The layers, one after another."""

    config: Tower

    def setup(self) -> None:
        self.layers = [EncoderLayer(config=self.config, **self.settings) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Array, ...]:
        states = [x]
        for layer in self.layers:
            states.append(repeated(layer, states[-1]))
        return tuple(states)


class TextTransformer(Block):
    """Embeddings, encoder, final norm."""

    config: CLIPTextConfig

    def setup(self) -> None:
        self.embeddings = Embeddings(config=self.config, **self.settings)
        self.encoder = Encoder(config=self.config, **self.settings)
        self.final_layer_norm = LayerNorm(self.config.layer_norm_eps, **self.dtypes)

    def __call__(
        self, ids: Int[Array, "b t"], extra: Float[Array, "r d"] | None
    ) -> tuple[tuple[Array, ...], Float[Array, "b d"]]:
        """(hidden states, final norm of the last one at the end-of-text token)."""
        states = self.encoder(self.embeddings(ids, extra))
        end = jnp.argmax(_end_score(ids, self.config), axis=-1)  # [b], the first maximum
        last = jnp.take_along_axis(states[-1], end[:, None, None], axis=1)[:, 0]
        return states, self.final_layer_norm(last)


class CLIPTextModel(Block):
    """Token ids -> what the denoiser reads."""

    config: CLIPTextConfig

    def setup(self) -> None:
        self.text_model = TextTransformer(config=self.config, **self.settings)
        if self.config.with_projection:
            self.text_projection = Dense(self.config.projection_dim, use_bias=False, **self.dtypes)

    def __call__(
        self, input_ids: Int[Array, "b t"], extra: Float[Array, "r d"] | None = None
    ) -> tuple[tuple[Array, ...], Float[Array, "b p"]]:
        """(hidden states, pooled).

        Hidden states: the embeddings, then every layer's output, [b t d] each, without the final norm; SDXL reads [-2].
        pooled: the normed state at the end-of-text token, projected if the config says so.
        input_ids: [b 77]; those from vocab_size on are rows of `extra`.
        """
        states, pooled = self.text_model(input_ids, extra)
        return states, self.text_projection(pooled) if self.config.with_projection else pooled


def _end_score(ids: Int[Array, "b t"], config: CLIPTextConfig) -> Int[Array, "b t"] | Bool[Array, "b t"]:
    """Highest where the text ends. Real end tokens are the vocabulary's last, so old configs' wrong id does no harm.

    Ids of added vectors are higher still; transformers takes them for the end where a config has the wrong id. Trainers
    and the programs that draw with embeddings do not (sd-scripts: pool_workaround).
    """
    if config.eos_token_id == LEGACY_EOS:
        return jnp.where(ids < config.vocab_size, ids, 0)
    return ids == config.eos_token_id


class VisionEmbeddings(Block):
    """The class token and a token a patch, each with its position."""

    config: CLIPVisionConfig

    def setup(self) -> None:
        c = self.config
        self.class_embedding = self.param(
            "class_embedding", nn.initializers.normal(0.02), (c.hidden_size,), self.param_dtype
        )
        self.patch_embedding = Conv(c.hidden_size, c.patch_size, c.patch_size, NO_PAD, use_bias=False, **self.dtypes)
        self.position_embedding = self.embedding(1 + (c.image_size // c.patch_size) ** 2, c.hidden_size)

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
