"""The older name of folder_writing, which programs of others import from."""

from autolora_jax.weights.folder_writing import convert_checkpoint

__all__ = ["convert_checkpoint"]
