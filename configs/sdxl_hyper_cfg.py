"""AutoLoRA in eight steps with Hyper-SD's CFG-preserving LoRA, which acts on the base model, too.

autolora generate MODEL --config configs/sdxl_hyper_cfg.py --lora anna.safetensors:0.8 \\
    --lora Hyper-SDXL-8steps-CFG-lora.safetensors@all --prompt "Anna in the snow" --out anna

With the 12-step LoRA: --steps 12. It keeps CFG, so the guidance is Eq. 7: four evaluations a step.
Where these settings are from: docs/guides/few_steps.md.
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        guidance=AutoLoRA(gamma=1.5, w1=5.0, w2=5.0),
        num_inference_steps=8,
        scheduler="ddim",
        timestep_spacing="trailing",
    )
