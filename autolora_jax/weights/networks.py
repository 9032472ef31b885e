"""The four networks of an SDXL checkpoint: their configs, what those must agree on, the shapes of their parameters."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from autolora_jax.config import CLIPTextConfig, ConfigError, JsonConfig, UNetConfig, VAEConfig
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.shapes import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import AutoencoderKL


class Networks(NamedTuple):
    """Configs by component."""

    text_encoder: CLIPTextConfig
    text_encoder_2: CLIPTextConfig
    unet: UNetConfig
    vae: VAEConfig


COMPONENTS = Networks._fields

# SDXL base 1.0. Source: the published config.json files.
SDXL = Networks(
    text_encoder=CLIPTextConfig(),
    text_encoder_2=CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
        projection_dim=1280,
        with_projection=True,
    ),
    unet=UNetConfig(),
    vae=VAEConfig(),
)
_MODULES = {UNetConfig: UNet2DConditionModel, VAEConfig: AutoencoderKL, CLIPTextConfig: CLIPTextModel}
_KINDS = {8: " (as an InstructPix2Pix model has)", 9: " (as an inpainting model has)"}


@lru_cache(maxsize=16)
def shapes_of(config: JsonConfig) -> Mapping[str, Any]:
    """The network's parameter tree with shapes as leaves. Nothing is allocated."""
    return param_shapes(_MODULES[type(config)](config=config))


def check_together(networks: Networks, where: str) -> None:
    """Raises ConfigError when the networks can't work together as SDXL; `where` names the checkpoint."""
    one, two, unet, vae = networks
    sizes = 6 * unet.addition_time_embed_dim
    pairs = (
        ("the UNet's in_channels", unet.in_channels, "the VAE's latent_channels", vae.latent_channels),
        ("the UNet's out_channels", unet.out_channels, "the VAE's latent_channels", vae.latent_channels),
        (
            "the UNet's cross_attention_dim",
            unet.cross_attention_dim,
            "the sum of the text encoders' hidden_size",
            one.hidden_size + two.hidden_size,
        ),
        (
            "the UNet's projection_class_embeddings_input_dim",
            unet.projection_class_embeddings_input_dim,
            "text_encoder_2's projection_dim and six embedded sizes",
            two.projection_dim + sizes,
        ),
    )
    wrong = [f"{a} is {x}{_KINDS.get(x, '')}, {b} {y}" for a, x, b, y in pairs if x != y]
    if wrong:
        raise ConfigError(f"{where} can't be run as SDXL: {'; '.join(wrong)}; each pair must agree")
