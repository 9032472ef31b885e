"""Classifier-free guidance on SDXL, with or without a LoRA: what AutoLoRA is compared with. Half its cost.

autolora generate MODEL --config configs/sdxl_cfg.py --lora LORA.safetensors --prompt "a cute corgi" --out corgi-cfg
"""

from autolora_jax import CFG
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=CFG(5.0),
        seeds=tuple(range(4)),
    )
