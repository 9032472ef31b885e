"""SDXL's denoiser."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import ConfigError, JsonConfig


@dataclasses.dataclass(frozen=True)
class UNetConfig(JsonConfig):
    """SDXL's denoiser (diffusers' UNet2DConditionModel with text_time conditioning)."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    layers_per_block: int = 2
    transformer_layers_per_block: int | tuple[int, ...] = (1, 2, 10)
    attention_head_dim: int | tuple[int, ...] = (5, 10, 20)  # the *number of heads*, diffusers' historical misnomer
    num_attention_heads: int | tuple[int, ...] | None = None
    cross_attention_dim: int = 2048
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 2816
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = True
    sample_size: int = 128

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": ("text_time",),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "downsample_padding": (1,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "mid_block_scale_factor": (1, 1.0),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "resnet_out_scale_factor": (1, 1.0),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "attention_type": ("default",),
        "reverse_transformer_layers_per_block": (None,),
    }
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset({"addition_embed_type_num_heads", "dropout"})

    def __post_init__(self) -> None:
        n = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            types = getattr(self, name)
            if len(types) != n:
                raise ConfigError(f"{name} has {len(types)} entries, block_out_channels {n}; they must agree")
            side = "Down" if name.startswith("down") else "Up"
            allowed = {f"{side}Block2D", f"CrossAttn{side}Block2D"}
            if unknown := sorted(set(types) - allowed):
                raise ConfigError(f"{name} has {unknown}; supported are {sorted(allowed)}")
        for name in ("transformer_layers_per_block", "heads"):
            if len(getattr(self, name) if name == "heads" else self.depths) != n:
                raise ConfigError(f"{name} must have one entry per block ({n})")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % self.norm_num_groups or channels % heads:
                raise ConfigError(
                    f"{channels} channels are not divisible by {self.norm_num_groups} groups and {heads} heads"
                )

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": "UNet2DConditionModel", **super().to_dict(), "addition_embed_type": "text_time"}

    @property
    def joint_attention_dim(self) -> int:
        """Width of the prompt's tokens, by SD3's name for it."""
        return self.cross_attention_dim

    @property
    def patch_size(self) -> int:
        """Latent cells a token stands for, along each side."""
        return 1

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks per attention layer, per level."""
        d = self.transformer_layers_per_block
        return (d,) * len(self.block_out_channels) if isinstance(d, int) else d

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads, per level. Source: diffusers unet_2d_condition.py, which prefers num_attention_heads."""
        h = self.num_attention_heads or self.attention_head_dim
        return (h,) * len(self.block_out_channels) if isinstance(h, int) else h
