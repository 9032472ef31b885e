"""A job as version 0.1 knew it."""

from autolora_jax.batch import Job, Settings
from autolora_jax.presets import SamplerConfig


def get_config() -> Job:
    return Job(prompts=("a zib",), settings=Settings(sampler=SamplerConfig(steps=2)))
