"""From open tensor files to a parameter tree on the devices, a few tensors at a time.

A tensor is checked where the file is mapped, cast and rearranged on the host, put on its devices and forgotten before
its thread takes the next one, so loading needs a few tensors of host memory beyond the tree itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import DTypeLike

from autolora_jax.weights.files import FLOATS, TensorFiles, TensorInfo
from autolora_jax.weights.placing import Kept, Placement, as_it_is, cast, place
from autolora_jax.weights.rules import (
    NO_DEFAULTS,
    Default,
    Examination,
    Piece,
    Shape,
    Stage,
    examine,
    flat_shapes,
    plan,
)

T = TypeVar("T")
THREADS = 4  # a tensor each: while some wait for a device, or the disk, the others are busy


class Leaves(NamedTuple):
    """A component's leaves, to be read one by one: for programs that need no whole tree in memory."""

    dtypes: Mapping[str, np.dtype]  # path "a/b/kernel" -> the dtype it is stored in; see TensorInfo.read_as
    read: Callable[[str], np.ndarray]  # the leaf at a path, on the host. Raises WeightsError for NaN and infinity


class TensorWeights(NamedTuple):
    """One component's tensors in safetensors files, and the stages that lead their names into its tree."""

    files: Callable[[], TensorFiles]  # opens them
    prefix: str  # of its tensors, in a file that holds several components
    stages: Sequence[Stage]
    defaults: Mapping[str, Default] = NO_DEFAULTS  # of leaves that the files may lack

    def infos(self) -> dict[str, TensorInfo]:
        """The component's tensors by name, without prefix."""
        with self.files() as files:
            return self._infos(files)

    def examine(self, targets: Mapping[str, Any]) -> Examination:
        """What loading would do, without reading weights. targets: the tree of shapes."""
        with self.files() as files:
            return examine(self._shapes(files), self.stages, targets, self.defaults)

    def check(self, targets: Mapping[str, Any]) -> None:
        """Raises the WeightsError that `load` would raise, but for the values, without reading weights."""
        with self.files() as files:
            self._plan(files, targets)

    def load(
        self, targets: Mapping[str, Any], dtype: DTypeLike, placement: Placement, kept: Kept = as_it_is
    ) -> dict[str, Any]:
        """The parameter tree as nested dicts of jax arrays. kept: what is made of each leaf, on its devices."""
        wanted, shapes = np.dtype(jnp.dtype(dtype)), flat_shapes(targets)
        [default] = jnp.zeros(()).devices()  # the default device, which threads don't inherit
        with self.files() as files:
            steps = self._plan(files, targets)

            def placed(source: str, pieces: list[Piece]) -> dict[str, Any]:
                tensor = cast(files.view(self.prefix + source), wanted, f"{files.where}: {self.prefix}{source}")
                with jax.default_device(default):
                    made = {
                        step.name: kept(step.name, place(step.make(tensor), step.name, placement)) for step in pieces
                    }
                # Waiting keeps transfers from queueing up: the host would hold every tensor in flight.
                return jax.block_until_ready(made)

            tasks = [(source, list(pieces)) for source, pieces in groupby(steps, lambda step: step.source)]
            flat = {path: leaf for made in _in_threads(placed, tasks) for path, leaf in made.items()}
        for path in shapes.keys() - flat.keys():
            flat[path] = kept(path, place(self.defaults[path].make(shapes[path]).astype(wanted), path, placement))
        return traverse_util.unflatten_dict(flat, sep="/")

    @contextmanager
    def leaves(self, targets: Mapping[str, Any]) -> Iterator[Leaves]:
        """Its leaves, while the files are open. Raises WeightsError like `check`."""
        shapes = flat_shapes(targets)
        with self.files() as files:
            steps = {step.name: step for step in self._plan(files, targets)}

            @lru_cache(maxsize=1)  # leaves that are cut from one tensor (q, k, v) mostly come one after another
            def tensor(source: str) -> np.ndarray:
                return files.read(self.prefix + source)

            def read(path: str) -> np.ndarray:
                if path in steps:
                    return steps[path].make(tensor(steps[path].source))
                return self.defaults[path].make(shapes[path])

            read_as = {path: files.tensors[self.prefix + step.source].read_as for path, step in steps.items()}
            yield Leaves({path: read_as.get(path, FLOATS["F32"]) for path in shapes}, read)

    def paths(self) -> list[Path]:
        """The files that it is read from, in a fixed order."""
        with self.files() as files:
            return sorted({info.file for info in files.tensors.values()})

    def _infos(self, files: TensorFiles) -> dict[str, TensorInfo]:
        return {n.removeprefix(self.prefix): i for n, i in files.tensors.items() if n.startswith(self.prefix)}

    def _shapes(self, files: TensorFiles) -> dict[str, Shape]:
        return {name: info.shape for name, info in self._infos(files).items()}

    def _plan(self, files: TensorFiles, targets: Mapping[str, Any]) -> list[Piece]:
        steps = plan(self._shapes(files), self.stages, targets, files.where, self.defaults)
        files.require_floats(self.prefix + step.source for step in steps)
        return steps


def _in_threads(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """function(*task) of each, in their order. The first that fails, in that order, ends it."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(lambda task: function(*task), tasks)
    finally:
        pool.shutdown(cancel_futures=True)
