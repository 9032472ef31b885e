"""AutoLoRA in four steps with SDXL-Lightning's LoRA, which acts on the base model, too.

autolora generate MODEL --config configs/sdxl_lightning.py --lora anna.safetensors:0.8 \\
    --lora sdxl_lightning_4step_lora.safetensors@all --prompt "Anna in the snow" --out anna

With the 8-step LoRA: --steps 8. It has learned to draw without CFG, so the guidance is Eq. 6: two evaluations a step.
Where these settings are from: docs/guides/few_steps.md.
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=AutoLoRA(gamma=1.5, w1=1.0, w2=1.0),
        num_inference_steps=4,
        scheduler="euler",
        timestep_spacing="trailing",
    )
