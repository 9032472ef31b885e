"""Devices are outside: a mesh, what lies where on it, and how a function of a batch of images is mapped over it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"  # images are split over this axis; weights are the same on all of it


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A 1-D mesh over the given devices (default: all of this process's backend)."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_images(mesh: Mesh) -> NamedSharding:
    """The leading axis, images, split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def batch_rows(mesh: Mesh) -> NamedSharding:
    """Training batches [accumulation, rows, ...], their rows split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(None, DATA))


def map_images(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function(shared, images)` mapped over the data axis: every leaf of `images` and of the result leads with images.

    Inside, a device sees only its own images, so kernels that the partitioner can't split (Pallas) need no care, and
    the program contains no collectives by construction.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(DATA)),
        out_specs=PartitionSpec(DATA),
        axis_names={DATA},
        check_vma=False,  # Pallas kernels do not declare how their outputs vary
    )


def map_gradients(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function(shared, batch)` mapped over the data axis, every leaf of `batch` [accumulation, rows, ...].

    The result is one for all: the function itself takes the mean over DATA, the only exchange between devices.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, DATA)),
        out_specs=PartitionSpec(),
        axis_names={DATA},
        check_vma=False,  # as above
    )


def pad_rows(tree: Any, rows: int) -> Any:
    """Every numpy leaf of [n ...] repeated from its last row to [rows ...]: batches that don't divide the devices."""

    def pad(leaf: np.ndarray) -> np.ndarray:
        missing = rows - leaf.shape[0]
        return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(pad, tree)
