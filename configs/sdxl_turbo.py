"""AutoLoRA in four steps on SDXL Turbo: the model itself is fast, and needs no second LoRA.

autolora generate MODEL --config configs/sdxl_turbo.py --lora anna.safetensors:0.8 --prompt "Anna" --out anna

MODEL is stabilityai/sdxl-turbo. It has learned to draw pictures of 512 pixels without CFG, so the guidance is Eq. 6.
Where these settings are from: docs/guides/few_steps.md.
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=AutoLoRA(gamma=1.5, w1=1.0, w2=1.0),
        num_inference_steps=4,
        scheduler="euler_ancestral",
        timestep_spacing="trailing",
        size=(512, 512),
    )
