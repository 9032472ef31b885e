"""AutoLoRA in eight steps with the LCM-LoRA, which acts on the base model, too.

autolora generate MODEL --config configs/sdxl_lcm.py --lora pixel-art-xl.safetensors:1.2 \\
    --lora latent-consistency/lcm-lora-sdxl@all --prompt "pixel, a cute corgi" --out corgi

Two to eight steps: --steps 4. It has learned to draw with little CFG or none, so the guidance is Eq. 6.
Where these settings are from: docs/guides/few_steps.md.
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=AutoLoRA(gamma=1.5, w1=1.0, w2=1.0),
        num_inference_steps=8,
        scheduler="lcm",
    )
