"""Tuned weights that are kept: a second copy of the denoiser's weights, with the LoRAs in it at their scales.

The sampler else builds `W + down·up` layer by layer in every step: nothing lies there twice, but every kernel is read
and written once more. A copy is made once for the LoRAs and their scales, and is summed in float32. It shares what the
LoRAs leave alone, and serves batches that know one scale of each LoRA; others (a scale for each step, two strengths in
one guidance, pictures with scales of their own side by side) build theirs as before.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from autolora_jax import lora
from autolora_jax.models.int8 import Int8Kernel, is_int8
from autolora_jax.sampler import Model

Tree = Mapping[str, Any]
# Where a copy pays. By the compilers' counts (docs/reference/gpu.md) merging is 6 to 8 % of an H100's bytes, but none
# of a v6e's cycles, and a v5e has not the memory.
PLATFORMS = "gpu", "cuda"
# Copies that must fit into what a device has free: the one that is drawn with, the next one while others are queued
# that still use it, and as much again for activations.
ROOM = 3


class Tuned:
    """The copy of one model, for one set of LoRAs at a time."""

    def __init__(self, wanted: str, device: Any) -> None:
        """wanted: of settings.model.TUNED_WEIGHTS. device: a jax.Device, of several one."""
        self._wanted, self._device = wanted, device
        self._delta: Tree = {}
        self._made: tuple[bytes, Tree] | None = None  # the scales, the weights

    def set_delta(self, params: Tree, delta: Tree, changed: Tree) -> None:
        """Replaces the LoRAs. delta: as in Model.lora; changed: a tree that has leaves only where they change a layer.

        Raises ValueError where the copy is wanted and can't be made.
        """
        self._made = None
        delta = _within(delta, changed)
        if self._wanted == "kept" and lora.homeless(params, delta):
            raise ValueError("tuned_weights='kept': a LoRA adds a bias to a layer without one; use 'auto' or 'merged'")
        keep = self._worth(params, delta) if self._wanted == "auto" else self._wanted == "kept"
        self._delta = delta if keep else {}

    def model(self, model: Model, scales: Mapping[str, np.ndarray]) -> Model:
        """What a batch is drawn with. scales: kind of weights -> [b, steps or 1, loras]."""
        if not self._delta:
            return model
        rows = np.concatenate([values.reshape(-1, values.shape[-1]) for values in scales.values()])
        rows = np.unique(rows[rows.any(axis=1)], axis=0)
        if len(rows) != 1:
            return model
        if self._made is None or self._made[0] != rows[0].tobytes():
            merged = lora.merge_into(model.params, self._delta, rows[0])
            self._made = rows[0].tobytes(), jax.tree.map(_placed_as, merged, dict(model.params), is_leaf=_is_kernel)
        return Model(model.params, {}, self._made[1])

    def _worth(self, params: Tree, delta: Tree) -> bool:
        """Whether a copy should be kept: the one place that decides."""
        if self._device.platform not in PLATFORMS or is_int8(params):  # who keeps 8 bits has no room for 16
            return False
        stats = self._device.memory_stats() or {}
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
        kernels = _within(params, delta)
        copy = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(kernels))
        return 0 < ROOM * copy <= free and not lora.homeless(params, delta)


def _placed_as(new: Any, old: Any) -> Any:
    like = old.values if isinstance(old, Int8Kernel) else old
    return new if new is old else jax.device_put(new, like.sharding)


def _is_kernel(node: Any) -> bool:
    return isinstance(node, Int8Kernel)


def _within(tree: Tree, like: Tree) -> dict[str, Any]:
    """What of a tree stands where `like`, a delta tree, has leaves."""
    return {name: tree[name] if lora.is_leaf(node) else _within(tree[name], node) for name, node in like.items()}
