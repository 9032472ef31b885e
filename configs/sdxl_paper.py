"""Base model, LoRA + CFG and AutoLoRA side by side, as in the figures of arXiv 2410.03941: its character experiment.

autolora generate MODEL --config configs/sdxl_paper.py --lora princess_xl_v2.safetensors:1.0 --out anna

The paper states the prompt, γ, the CFG scale, the LoRA scale and Algorithm 2, which is DDIM. It does not state steps,
size and negative prompt: the defaults are ours. MODEL is stabilityai/stable-diffusion-xl-base-1.0,
the LoRA civitai's 212532.
"""

from autolora_jax import AutoLoRA
from autolora_jax.settings import GenerateConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        prompts=("Anna",),
        seeds=tuple(range(8)),
        guidance=AutoLoRA(gamma=1.5, w1=5.0, w2=5.0),
        scheduler="ddim",
        compare=True,
    )
