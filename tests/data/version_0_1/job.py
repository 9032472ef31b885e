"""A job as version 0.1 knew it."""

from autolora_jax import CFG, AutoLoRA, PersonalizationGuidance
from autolora_jax.batch import Job, Prompt, Settings
from autolora_jax.presets import Lora, ModelConfig


def get_config() -> Job:
    return Job(
        prompts=("a zib", Prompt("a bod", "rain", "5-6", "mine")),
        seeds="0-1",
        settings=Settings(
            model=ModelConfig("builtin", dtype="float32"), loras=(Lora("builtin:character", 0.8),), size=(32, 32)
        ),
        grid=[
            {"guidance": [CFG(3.0), AutoLoRA(gamma=1.5)], "lora_scale": [0.4, 1.0], "sampler.steps": [2]},
            {"guidance": [PersonalizationGuidance()], "sampler.guidance_rescale": [0.5], "sampler.noise": ["torch"]},
        ],
    )
