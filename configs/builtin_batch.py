"""A job for the built-in model: offline, 48 pictures in minutes on two CPU cores.

autolora batch configs/builtin_batch.py --out zibs
"""

from autolora_jax import CFG, AutoLoRA
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import Lora, ModelConfig


def get_config() -> Job:
    return Job(
        prompts=("a zib on the beach", "a zib in the snow at night"),
        seeds="0-7",
        settings=Settings(model=ModelConfig("builtin"), loras=(Lora("builtin:character", 0.7),)),
        grid={"guidance": [CFG(3.0), AutoLoRA(gamma=1.5, w1=3.0, w2=3.0), AutoLoRA(gamma=2.0, w1=3.0, w2=3.0)]},
    )
