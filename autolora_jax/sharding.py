"""Devices are outside: a mesh, what lies where on it, and how a function of a batch of images is mapped over it.

Images are split over all devices. Weights are the same on all of them, or, for a model that one device can't hold,
split over the mesh's second axis: `weight_shards` devices hold a copy together, and each layer's kernel is put together
on every one of them when it is needed (ZeRO-3, arXiv 1910.02054). Splitting the layers' work instead (tensor
parallelism) would exchange activations in every layer and hinder the attention kernels, and gains only where there are
fewer images than devices.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, WEIGHTS = "data", "weights"
IMAGES = (DATA, WEIGHTS)  # images are split over both axes, weights over WEIGHTS if at all

# Path of a leaf -> its axis that is split, where its length allows; all else is small and lies whole on every device.
PARTITIONS: tuple[tuple[str, int], ...] = ((r".*/kernel", -1), (r".*/embedding", 0))


def data_mesh(devices: Sequence[jax.Device] | None = None, weight_shards: int = 1) -> Mesh:
    """A mesh over the given devices (default: all of this process's backend).

    weight_shards: neighbouring devices that hold one copy of the weights together.
    """
    found = np.array(jax.devices() if devices is None else devices)
    if weight_shards < 1 or found.size % weight_shards:
        raise ValueError(f"weight_shards={weight_shards} should divide the number of devices, {found.size}")
    return Mesh(found.reshape(-1, weight_shards), IMAGES)


def weight_placement(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Where each leaf of a network's parameters goes: a function of its path "a/b/kernel" and shape."""
    shards = mesh.shape[WEIGHTS]

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axis = next((axis % len(shape) for pattern, axis in PARTITIONS if re.fullmatch(pattern, path)), None)
        if shards == 1 or axis is None or shape[axis] % shards:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*(WEIGHTS if i == axis else None for i in range(len(shape)))))

    return place


Axes = tuple[int | None, ...]


def split_axes(params: Any) -> Axes:
    """Of each leaf, in jax.tree.leaves' order: the axis that is split over WEIGHTS, or None."""
    specs = [getattr(leaf.sharding, "spec", ()) for leaf in jax.tree.leaves(params)]
    return tuple(spec.index(WEIGHTS) if WEIGHTS in spec else None for spec in map(tuple, specs))


def put_together(params: Any, axes: Axes, when: jax.Array) -> Any:
    """Inside map_images: the whole of parameters of which this device has a part, not before `when` is known.

    Without that XLA would do it once, before the sampler's loop, and hold the whole model.
    """
    if not any(axis is not None for axis in axes):
        return params
    leaves, tree = jax.tree.flatten(params)
    leaves, _ = jax.lax.optimization_barrier((leaves, when))
    whole = [
        leaf if axis is None else jax.lax.all_gather(leaf, WEIGHTS, axis=axis, tiled=True)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(tree, whole)


def part_specs(params: Any, axes: Axes) -> Any:
    """The PartitionSpec of each leaf, as a tree like `params`."""
    specs = [PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, WEIGHTS) for axis in axes]
    return jax.tree.unflatten(jax.tree.structure(params), specs)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_images(mesh: Mesh) -> NamedSharding:
    """The leading axis, images, split over all devices."""
    return NamedSharding(mesh, PartitionSpec(IMAGES))


def batch_rows(mesh: Mesh) -> NamedSharding:
    """Training batches [accumulation, rows, ...], their rows split over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, IMAGES))


def map_images(function: Callable[..., Any], mesh: Mesh, shared: Any = None) -> Callable[..., Any]:
    """`function(shared, images)` mapped over all devices: every leaf of `images` and of the result leads with images.

    Inside, a device sees only its own images, so kernels that the partitioner can't split (Pallas) need no care, and
    the program contains no collectives but those of `put_together`.
    shared: specs of `shared` where it is not all the same on all devices.
    """
    return _mapped(function, mesh, (shared or PartitionSpec(), PartitionSpec(IMAGES)), PartitionSpec(IMAGES))


def map_gradients(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function(shared, batch)` mapped over all devices, every leaf of `batch` [accumulation, rows, ...].

    The result is one for all: the function itself takes the mean over IMAGES, the only exchange between devices.
    """
    return _mapped(function, mesh, (PartitionSpec(), PartitionSpec(None, IMAGES)), PartitionSpec())


def _mapped(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    # check_vma: Pallas kernels do not declare how their outputs vary.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(IMAGES), check_vma=False
    )


def pad_rows(tree: Any, rows: int) -> Any:
    """Every numpy leaf of [n ...] repeated from its last row to [rows ...]: batches that don't divide the devices."""

    def pad(leaf: np.ndarray) -> np.ndarray:
        missing = rows - leaf.shape[0]
        return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(pad, tree)
