"""CLIP: its text encoders, as denoisers read them, and the whole of it, text and vision, as metrics do."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import BOOKKEEPING, C, ConfigError, JsonConfig

_IRRELEVANT = BOOKKEEPING | {"attention_dropout", "dropout", "initializer_range"}


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

    causal: ClassVar[bool] = True  # a token sees no later ones
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model_type": ("clip_text_model",), "pruned_heads": ({},)}
    IRRELEVANT: ClassVar[frozenset[str]] = _IRRELEVANT

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        architectures = raw.get("architectures") or ["CLIPTextModel"]
        return super().from_dict({**raw, "with_projection": "WithProjection" in architectures[0]}, where)

    def to_dict(self) -> dict[str, Any]:
        raw = super().to_dict()
        projection = "WithProjection" if raw.pop("with_projection") else ""
        return {"architectures": [f"CLIPTextModel{projection}"], "model_type": "clip_text_model", **raw}

    def __post_init__(self) -> None:
        _check_activation(self.hidden_act)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(JsonConfig):
    """The vision half of a CLIPConfig. Defaults: transformers', of ViT-B/32, which a silent file means."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    causal: ClassVar[bool] = False
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model_type": ("clip_vision_model",), "pruned_heads": ({},)}
    IRRELEVANT: ClassVar[frozenset[str]] = _IRRELEVANT | {"projection_dim"}  # CLIPConfig's counts

    def __post_init__(self) -> None:
        _check_activation(self.hidden_act)
        if self.image_size % self.patch_size:
            raise ConfigError(f"patch_size = {self.patch_size} should divide image_size = {self.image_size}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig(JsonConfig):
    """transformers' CLIPModel: pictures and texts -> vectors of one space."""

    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    projection_dim: int = 512

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model_type": ("clip",)}
    IRRELEVANT: ClassVar[frozenset[str]] = BOOKKEEPING | {
        "logit_scale_init_value",
        "text_config_dict",
        "vision_config_dict",
    }

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        def told(name: str) -> dict[str, Any]:
            """Old files say what is not ViT-B/32's in a second dict, which has the last word."""
            return {**(raw.get(name) or {}), **(raw.get(f"{name}_dict") or {})}

        text = CLIPTextConfig.from_dict({**_VIT_B_TEXT, **told("text_config")}, f"{where}: text_config")
        vision = CLIPVisionConfig.from_dict(told("vision_config"), f"{where}: vision_config")
        return super().from_dict({**raw, "text_config": text, "vision_config": vision}, where)

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).to_dict() for name in ("text_config", "vision_config")}
        return {"architectures": ["CLIPModel"], "model_type": "clip", **super().to_dict(), **parts}


# What a CLIPModel's file means that is silent about its text half: transformers' defaults.
_VIT_B_TEXT: Mapping[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "projection_dim": 512,
    "eos_token_id": 49407,
}


def _check_activation(name: str) -> None:
    if name not in ("quick_gelu", "gelu"):
        raise ConfigError(f"hidden_act = {name!r} is not supported (quick_gelu or gelu)")
