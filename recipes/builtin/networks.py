"""What the built-in model is: SDXL's classes and layout, a few million weights."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from autolora_jax.config import CLIPTextConfig, SchedulerConfig, UNetConfig, VAEConfig
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.networks import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import AutoencoderKL
from recipes.builtin.tokenizer import merges_of, vocabulary_size
from recipes.builtin.words import WORDS

SIZE = 128  # pixels along a side
# The order in which every word of the captions comes out as one token: a merge wins over those after it.
FIRST = ("frog", "sunset", "mountains", "under", "castle", "storm", "forest", "orange", "dragon", "striped")
MERGES = merges_of((*FIRST, *sorted(set(WORDS) - set(FIRST), key=lambda word: (-len(word), word))))
VOCABULARY = vocabulary_size(MERGES)
WIDTHS = (64, 96)  # of the two text encoders

# Velocity instead of noise: at this size the first steps decide the colours, where noise says little about a picture.
SCHEDULER = SchedulerConfig(prediction_type="v_prediction", timestep_spacing="trailing")
LATENTS = 16  # channels, as SD3 has; SDXL's four can't hold the outlines that eight by eight pixels show
UNET = UNetConfig(
    in_channels=LATENTS,
    out_channels=LATENTS,
    block_out_channels=(64, 128, 144),
    layers_per_block=1,
    transformer_layers_per_block=(1, 1, 1),
    attention_head_dim=(2, 4, 4),
    cross_attention_dim=sum(WIDTHS),
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 16,
    norm_num_groups=8,
    sample_size=SIZE // 8,
)
# One layer a level in the encoder are two in the decoder, which has thrice the work.
VAE = VAEConfig(
    block_out_channels=(24, 48, 96, 112),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=SIZE,
    latent_channels=LATENTS,
    scaling_factor=1.0,
)
TEXT_ENCODER = CLIPTextConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTHS[0],
    intermediate_size=4 * WIDTHS[0],
    num_hidden_layers=3,
    num_attention_heads=2,
)
TEXT_ENCODER_2 = CLIPTextConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTHS[1],
    intermediate_size=4 * WIDTHS[1],
    num_hidden_layers=3,
    num_attention_heads=3,
    hidden_act="gelu",
    projection_dim=WIDTHS[1],
    with_projection=True,
)
NETWORKS = {
    "unet": UNet2DConditionModel(config=UNET),
    "vae": AutoencoderKL(config=VAE),
    "text_encoder": CLIPTextModel(config=TEXT_ENCODER),
    "text_encoder_2": CLIPTextModel(config=TEXT_ENCODER_2),
}
# Last layers of residual branches, and of the UNet: at zero every block begins as the identity.
SILENT = re.compile(r"(conv2|to_out_0|net_2|proj_out|out_proj|fc2|unet/conv_out)/kernel")


def fresh(name: str, seed: int) -> dict[str, Any]:
    """Initial weights of a network: unit-gain matrices, neutral norms, silent branches."""
    flat = traverse_util.flatten_dict(param_shapes(NETWORKS[name]), sep="/")
    keys = jax.random.split(jax.random.key(seed), len(flat))
    return traverse_util.unflatten_dict(
        {path: _fresh(f"{name}/{path}", leaf, key) for (path, leaf), key in zip(flat.items(), keys, strict=True)},
        sep="/",
    )


def _fresh(path: str, leaf: Any, key: jax.Array) -> jax.Array:
    if SILENT.search(path) or path.endswith("/bias"):
        return jnp.zeros(leaf.shape)
    if path.endswith("/scale"):
        return jnp.ones(leaf.shape)
    fan_in = 1 if path.endswith("/embedding") else leaf.size // leaf.shape[-1]
    gain = 0.3 if path.endswith("/embedding") else 1.0
    return gain * jax.random.normal(key, leaf.shape) * fan_in**-0.5


def count(params: Mapping[str, Any]) -> int:
    """Parameters of a tree."""
    return sum(x.size for x in jax.tree.leaves(params))
