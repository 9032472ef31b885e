"""Configs of the published models, for files that hold none. Source: their config.json files."""

from typing import Any

from autolora_jax.config import CLIPTextConfig, MMDiTConfig, T5Config, UNetConfig, VAEConfig
from autolora_jax.models.networks import Networks

_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "with_projection": True,
}

SDXL_BASE: Networks = {
    "text_encoder": CLIPTextConfig(),
    "text_encoder_2": CLIPTextConfig(**_BIG_G),
    "unet": UNetConfig(),
    "vae": VAEConfig(),
}
_SD3_VAE = VAEConfig(
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
)


def _sd3(transformer: MMDiTConfig) -> Networks:
    return {
        "text_encoder": CLIPTextConfig(with_projection=True),
        "text_encoder_2": CLIPTextConfig(**_BIG_G),
        "text_encoder_3": T5Config(),
        "transformer": transformer,
        "vae": _SD3_VAE,
    }


SD3_MEDIUM = _sd3(MMDiTConfig())
SD35_MEDIUM = _sd3(MMDiTConfig(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))))
SD35_LARGE = _sd3(MMDiTConfig(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"))
