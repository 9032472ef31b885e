"""AutoLoRA in four steps with DMD2's LoRA, which acts on the base model, too.

autolora generate MODEL --config configs/sdxl_dmd2.py --lora anna.safetensors:0.8 \\
    --lora dmd2_sdxl_4step_lora.safetensors@all --prompt "Anna in the snow" --out anna

LCM's solver at the timesteps that it was trained at, 999, 749, 499 and 249, which 'trailing' are; and without CFG, so
the guidance is Eq. 6. Where these settings are from: docs/guides/few_steps.md.
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=AutoLoRA(gamma=1.5, w1=1.0, w2=1.0),
        num_inference_steps=4,
        scheduler="lcm",
        timestep_spacing="trailing",
    )
