"""The VAE of every family."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import C, ConfigError, JsonConfig


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

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"act_fn": ("silu", "swish")}
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset({"down_block_types", "up_block_types"})

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        for key, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if unknown := sorted(set(raw.get(key, ())) - {only}):
                raise ConfigError(f"{where}: {key} has {unknown}; supported is only {only}")
        return super().from_dict(raw, where)

    def to_dict(self) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        sides = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        return {"_class_name": "AutoencoderKL", **super().to_dict(), **sides}

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)
