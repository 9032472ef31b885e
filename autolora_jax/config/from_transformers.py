"""The networks that transformers saves: text encoders, and vision models whose features tell pictures apart."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import C, ConfigError, JsonConfig, Values, keys

# Keys that transformers writes into every file; none changes what a network computes.
_BOOKKEEPING = keys("""
    architectures bos_token_id chunk_size_feed_forward decoder_start_token_id diversity_penalty dtype early_stopping
    encoder_no_repeat_ngram_size id2label initializer_factor is_encoder_decoder label2id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences pad_token_id problem_type
    remove_invalid_values repetition_penalty return_dict temperature tie_word_embeddings top_k top_p torch_dtype
    transformers_version typical_p use_bfloat16 use_cache
""")
_OF_CLIP = _BOOKKEEPING | keys("attention_dropout dropout initializer_range")


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(JsonConfig):
    """CLIPTextModel / CLIPTextModelWithProjection. Defaults: SDXL's first encoder, CLIP ViT-L."""

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
    FIXED: ClassVar[Values] = {"model_type": ("clip_text_model",), "pruned_heads": ({},)}
    IRRELEVANT: ClassVar[frozenset[str]] = _OF_CLIP

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
    FIXED: ClassVar[Values] = {"model_type": ("clip_vision_model",), "pruned_heads": ({},)}
    IRRELEVANT: ClassVar[frozenset[str]] = _OF_CLIP | {"projection_dim"}  # CLIPConfig's counts

    def __post_init__(self) -> None:
        _check_activation(self.hidden_act)
        if self.image_size % self.patch_size:
            raise ConfigError(f"patch_size = {self.patch_size} should divide image_size = {self.image_size}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig(JsonConfig):
    """CLIPModel: pictures and texts -> vectors of one space."""

    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    projection_dim: int = 512

    HEADER: ClassVar[Mapping[str, Any]] = {"architectures": ["CLIPModel"], "model_type": "clip"}
    FIXED: ClassVar[Values] = {"model_type": ("clip",)}
    IRRELEVANT: ClassVar[frozenset[str]] = _BOOKKEEPING | keys(
        "logit_scale_init_value text_config_dict vision_config_dict"
    )

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
        return {**super().to_dict(), **parts}


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


@dataclasses.dataclass(frozen=True)
class T5Config(JsonConfig):
    """T5EncoderModel of T5 v1.1. Defaults: XXL, the third text encoder of SD3."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    HEADER: ClassVar[Mapping[str, Any]] = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
    }
    FIXED: ClassVar[Values] = {
        "model_type": ("t5",),
        "feed_forward_proj": ("gated-gelu",),
        "dense_act_fn": ("gelu_new",),
        "is_gated_act": (True,),
    }
    # n_positions: there is no table of positions.
    IRRELEVANT: ClassVar[frozenset[str]] = _BOOKKEEPING | keys("""
        classifier_dropout dropout_rate eos_token_id n_positions num_decoder_layers output_past scale_decoder_outputs
        task_specific_params
    """)

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        # A silent file means the first T5's feed-forward, by transformers' default.
        return super().from_dict({"feed_forward_proj": "relu", **raw}, where)

    def __post_init__(self) -> None:
        exact = self.relative_attention_num_buckets // 2 // 2  # of a side's half, those for a single distance
        if not 0 < exact < self.relative_attention_max_distance:
            raise ConfigError(
                f"relative_attention_num_buckets = {self.relative_attention_num_buckets} and "
                f"relative_attention_max_distance = {self.relative_attention_max_distance} leave nothing to bucket; "
                "needed are at least 4 buckets and a distance above a quarter of them"
            )


@dataclasses.dataclass(frozen=True)
class Dinov2Config(JsonConfig):
    """Dinov2Model: small, base, large, and giant with its SwiGLU. Defaults: what a silent file means."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 224  # of the table of positions; the published models have 518
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    use_swiglu_ffn: bool = False

    causal: ClassVar[bool] = False
    hidden_act: ClassVar[str] = "gelu"
    HEADER: ClassVar[Mapping[str, Any]] = {"architectures": ["Dinov2Model"], "model_type": "dinov2"}
    FIXED: ClassVar[Values] = {"model_type": ("dinov2",), "hidden_act": ("gelu",), "qkv_bias": (True,)}
    # The first three are of a backbone for other networks.
    IRRELEVANT: ClassVar[frozenset[str]] = _BOOKKEEPING | keys("""
        apply_layernorm out_features out_indices attention_probs_dropout_prob drop_path_rate hidden_dropout_prob
        initializer_range layerscale_value reshape_hidden_states stage_names use_mask_token
    """)

    @property
    def intermediate_size(self) -> int:
        """Features inside the feed-forward. SwiGLU has two thirds of them, up to a multiple of 8, twice.

        Source: transformers 5.23 modeling_dinov2.py Dinov2SwiGLUFFN.
        """
        plain = self.hidden_size * self.mlp_ratio
        return (plain * 2 // 3 + 7) // 8 * 8 if self.use_swiglu_ffn else plain

    def __post_init__(self) -> None:
        for name, value, of in (
            ("num_attention_heads", self.num_attention_heads, "hidden_size"),
            ("patch_size", self.patch_size, "image_size"),
        ):
            if value < 1 or getattr(self, of) % value:
                raise ConfigError(f"{name} = {value} should divide {of} = {getattr(self, of)}")
