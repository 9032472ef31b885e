"""CLIP's text encoders."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import BOOKKEEPING, C, ConfigError, JsonConfig


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(JsonConfig):
    """transformers' CLIPTextModel / CLIPTextModelWithProjection. Defaults: SDXL's first encoder, CLIP ViT-L."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768
    eos_token_id: int = 2
    with_projection: bool = False

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model_type": ("clip_text_model",)}
    IRRELEVANT: ClassVar[frozenset[str]] = BOOKKEEPING | {"attention_dropout", "dropout", "initializer_range"}

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        architectures = raw.get("architectures") or ["CLIPTextModel"]
        return super().from_dict({**raw, "with_projection": "WithProjection" in architectures[0]}, where)

    def to_dict(self) -> dict[str, Any]:
        raw = super().to_dict()
        projection = "WithProjection" if raw.pop("with_projection") else ""
        return {"architectures": [f"CLIPTextModel{projection}"], "model_type": "clip_text_model", **raw}

    def __post_init__(self) -> None:
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ConfigError(f"hidden_act = {self.hidden_act!r} is not supported (quick_gelu or gelu)")
