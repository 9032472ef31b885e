"""SD3's denoiser."""

import dataclasses
from typing import Any

from autolora_jax.config.base import ConfigError, JsonConfig


@dataclasses.dataclass(frozen=True)
class MMDiTConfig(JsonConfig):
    """The denoiser of SD3 and SD3.5 (diffusers' SD3Transformer2DModel). Defaults: SD3 Medium."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 24
    attention_head_dim: int = 64
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1536
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 192  # patches a side
    dual_attention_layers: tuple[int, ...] = ()  # of the image alone, beside the joint one; only SD3.5 Medium has some
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        if self.qk_norm not in (None, "rms_norm"):
            raise ConfigError(f"qk_norm = {self.qk_norm!r} is not supported (rms_norm or null)")
        if self.caption_projection_dim != self.features:
            raise ConfigError(
                f"caption_projection_dim is {self.caption_projection_dim}, num_attention_heads × attention_head_dim "
                f"{self.features}; they must agree"
            )
        if outside := sorted(set(self.dual_attention_layers) - set(range(self.num_layers))):
            raise ConfigError(f"dual_attention_layers has {outside}; there are {self.num_layers} layers, from 0")

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": "SD3Transformer2DModel", **super().to_dict()}

    @property
    def features(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim
