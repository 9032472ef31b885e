"""Model files: opening checkpoints (`open_checkpoint`), converting them, and saying what a file is (`describe`)."""

from autolora_jax.weights.checkpoint import Checkpoint, open_checkpoint
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.folder_writing import convert_checkpoint
from autolora_jax.weights.inspect import Description, describe

__all__ = ["Checkpoint", "Description", "WeightsError", "convert_checkpoint", "describe", "open_checkpoint"]
