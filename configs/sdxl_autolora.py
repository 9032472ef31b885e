"""AutoLoRA on SDXL: the paper's scales, the checkpoint's own scheduler.

autolora generate MODEL --config configs/sdxl_autolora.py --lora LORA.safetensors --prompt "a cute corgi" --out corgi
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=AutoLoRA(gamma=1.5, w1=5.0, w2=5.0),
        seeds=tuple(range(4)),
    )
