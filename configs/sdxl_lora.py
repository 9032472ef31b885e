"""A LoRA of SDXL on one accelerator of 16 GB or more: a subject or style of one to five dozen captioned pictures.

autolora train --config configs/sdxl_lora.py --data PICTURES --trigger "sks dog" --out dog.safetensors

Rank 16 on the attention layers of the denoiser, 1024 pixels, bfloat16 with float32 masters, four pictures a step.
"""

from autolora_jax.settings import ModelConfig, TrainingRun
from autolora_jax.training import LoraConfig, OptimizerConfig, TrainConfig


def get_config() -> TrainingRun:
    return TrainingRun(
        model=ModelConfig("stabilityai/stable-diffusion-xl-base-1.0", variant="fp16"),
        training=TrainConfig(
            lora=LoraConfig(rank=16, targets=("attention",)),
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=50, schedule="cosine"),
            gradient_accumulation_steps=4,
            steps=1000,
        ),
    )
