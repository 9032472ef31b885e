"""The LoRA delta as its own tree: attach a file, stack several, give them scales, merge, extract, resize, report."""

from autolora_jax.lora.attach import LoraReport, attach, report
from autolora_jax.lora.blocks import Blocks, read_blocks, spelled, weighted
from autolora_jax.lora.extract import Extraction, extract
from autolora_jax.lora.loaded import Loaded, Strength, by_kind, over
from autolora_jax.lora.merge import homeless, merge_into
from autolora_jax.lora.merged_checkpoint import write_merged
from autolora_jax.lora.resize import resize
from autolora_jax.lora.save import save_lora
from autolora_jax.lora.tree import Tree, at_scale, is_leaf, padded, padded_scales, stack
from autolora_jax.lora.truncation import Fit, Fits, Truncation

__all__ = [
    "Blocks",
    "Extraction",
    "Fit",
    "Fits",
    "Loaded",
    "LoraReport",
    "Strength",
    "Tree",
    "Truncation",
    "at_scale",
    "attach",
    "by_kind",
    "extract",
    "homeless",
    "is_leaf",
    "merge_into",
    "over",
    "padded",
    "padded_scales",
    "read_blocks",
    "report",
    "resize",
    "save_lora",
    "spelled",
    "stack",
    "weighted",
    "write_merged",
]
