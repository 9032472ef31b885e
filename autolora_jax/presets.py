"""The older name of `settings`, which presets and jobs import from."""

from autolora_jax.settings import *  # noqa: F403
