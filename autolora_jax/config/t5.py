"""T5's text encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import BOOKKEEPING, C, ConfigError, JsonConfig


@dataclasses.dataclass(frozen=True)
class T5Config(JsonConfig):
    """transformers' T5EncoderModel of T5 v1.1. Defaults: XXL, the third text encoder of SD3."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "model_type": ("t5",),
        "feed_forward_proj": ("gated-gelu",),
        "dense_act_fn": ("gelu_new",),
        "is_gated_act": (True,),
    }
    IRRELEVANT: ClassVar[frozenset[str]] = BOOKKEEPING | {
        "classifier_dropout",
        "dropout_rate",
        "eos_token_id",
        "n_positions",  # there is no table of positions
        "num_decoder_layers",
        "output_past",
        "scale_decoder_outputs",
        "task_specific_params",
    }

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        # A silent file means the first T5's feed-forward, by transformers' default.
        return super().from_dict({"feed_forward_proj": "relu", **raw}, where)

    def to_dict(self) -> dict[str, Any]:
        kind = {"architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu"}
        return {**kind, **super().to_dict()}

    def __post_init__(self) -> None:
        exact = self.relative_attention_num_buckets // 2 // 2  # of a side's half, those for a single distance
        if not 0 < exact < self.relative_attention_max_distance:
            raise ConfigError(
                f"relative_attention_num_buckets = {self.relative_attention_num_buckets} and "
                f"relative_attention_max_distance = {self.relative_attention_max_distance} leave nothing to bucket; "
                "needed are at least 4 buckets and a distance above a quarter of them"
            )
