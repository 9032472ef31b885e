"""The LoRA delta as its own tree: attach a file, stack several, give them scales, merge them, report on them."""

from autolora_jax.lora.attach import LoraReport, attach, report
from autolora_jax.lora.merge import merge_into
from autolora_jax.lora.tree import Tree, at_scale, is_leaf, stack

__all__ = ["LoraReport", "Tree", "at_scale", "attach", "is_leaf", "merge_into", "report", "stack"]
