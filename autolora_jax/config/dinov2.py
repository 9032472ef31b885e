"""DINOv2, whose features tell how much pictures differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import BOOKKEEPING, ConfigError, JsonConfig


@dataclasses.dataclass(frozen=True)
class Dinov2Config(JsonConfig):
    """transformers' Dinov2Model: small, base, large, and giant with its SwiGLU. Defaults: what a silent file means."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 224  # of the table of positions; the published models have 518
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    use_swiglu_ffn: bool = False

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "model_type": ("dinov2",),
        "hidden_act": ("gelu",),
        "qkv_bias": (True,),
    }
    IRRELEVANT: ClassVar[frozenset[str]] = BOOKKEEPING | {
        "apply_layernorm",  # these three are of a backbone for other networks
        "out_features",
        "out_indices",
        "attention_probs_dropout_prob",
        "drop_path_rate",
        "hidden_dropout_prob",
        "initializer_range",
        "layerscale_value",
        "reshape_hidden_states",
        "stage_names",
        "use_mask_token",
    }

    @property
    def intermediate_size(self) -> int:
        """Features inside the feed-forward. SwiGLU has two thirds of them, up to a multiple of 8, twice.

        Source: transformers 5.23 modeling_dinov2.py Dinov2SwiGLUFFN.
        """
        plain = self.hidden_size * self.mlp_ratio
        return (plain * 2 // 3 + 7) // 8 * 8 if self.use_swiglu_ffn else plain

    def to_dict(self) -> dict[str, Any]:
        return {"architectures": ["Dinov2Model"], "model_type": "dinov2", **super().to_dict()}

    def __post_init__(self) -> None:
        for name, value, of in (
            ("num_attention_heads", self.num_attention_heads, "hidden_size"),
            ("patch_size", self.patch_size, "image_size"),
        ):
            if value < 1 or getattr(self, of) % value:
                raise ConfigError(f"{name} = {value} should divide {of} = {getattr(self, of)}")
