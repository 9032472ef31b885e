"""The networks that diffusers saves: both denoisers and the VAE of every family."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import C, ConfigError, JsonConfig, Values, keys


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

    HEADER: ClassVar[Mapping[str, Any]] = {"_class_name": "UNet2DConditionModel"}
    FIXED: ClassVar[Values] = {
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
    IRRELEVANT: ClassVar[frozenset[str]] = keys("addition_embed_type_num_heads dropout")

    def __post_init__(self) -> None:
        n = len(self.block_out_channels)
        for name, types, side in (
            ("down_block_types", self.down_block_types, "Down"),
            ("up_block_types", self.up_block_types, "Up"),
        ):
            if len(types) != n:
                raise ConfigError(f"{name} has {len(types)} entries, block_out_channels {n}; they must agree")
            allowed = {f"{side}Block2D", f"CrossAttn{side}Block2D"}
            if unknown := sorted(set(types) - allowed):
                raise ConfigError(f"{name} has {unknown}; supported are {sorted(allowed)}")
        for name, values in (("transformer_layers_per_block", self.depths), ("heads", self.heads)):
            if len(values) != n:
                raise ConfigError(f"{name} must have one entry per block ({n})")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % self.norm_num_groups or channels % heads:
                raise ConfigError(
                    f"{channels} channels are not divisible by {self.norm_num_groups} groups and {heads} heads"
                )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "addition_embed_type": "text_time"}

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
        return self._per_level(self.transformer_layers_per_block)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads, per level. Source: diffusers unet_2d_condition.py, which prefers num_attention_heads."""
        return self._per_level(self.num_attention_heads or self.attention_head_dim)

    def _per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * len(self.block_out_channels) if isinstance(value, int) else value


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

    HEADER: ClassVar[Mapping[str, Any]] = {"_class_name": "SD3Transformer2DModel"}

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

    @property
    def features(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclasses.dataclass(frozen=True)
class VAEConfig(JsonConfig):
    """diffusers' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.13025
    shift_factor: float | None = None
    sample_size: int = 1024
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    HEADER: ClassVar[Mapping[str, Any]] = {"_class_name": "AutoencoderKL"}
    FIXED: ClassVar[Values] = {"act_fn": ("silu", "swish")}
    # Key -> the one kind of block that its levels may be of.
    BLOCKS: ClassVar[Mapping[str, str]] = {
        "down_block_types": "DownEncoderBlock2D",
        "up_block_types": "UpDecoderBlock2D",
    }
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset(BLOCKS)

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        for key, only in VAEConfig.BLOCKS.items():
            given = raw.get(key) or ()
            if unknown := sorted(
                {str(one) for one in (given if isinstance(given, list | tuple) else [given])} - {only}
            ):
                raise ConfigError(f"{where}: {key} has {unknown}; supported is only {only}")
        return super().from_dict(raw, where)

    def to_dict(self) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        return {**super().to_dict(), **{key: [only] * levels for key, only in self.BLOCKS.items()}}

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)
