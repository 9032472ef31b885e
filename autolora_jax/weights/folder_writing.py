"""Writing a whole checkpoint as a folder, leaf by leaf: a diffusers folder, or the converted form with Orbax trees."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from autolora_jax.weights import orbax_folder
from autolora_jax.weights.checkpoint import Checkpoint
from autolora_jax.weights.diffusers_folder import INDEX, make_index
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import FLOATS
from autolora_jax.weights.networks import shapes_of
from autolora_jax.weights.rules import Shape, flat_shapes
from autolora_jax.weights.streaming import cast
from autolora_jax.weights.tables import export_leaf
from autolora_jax.weights.writing import stream_safetensors

DTYPES = ("bfloat16", "float32", "float16")
NamedLeaves = Iterator[tuple[str, np.ndarray]]  # (path, leaf), in the order of the component's shapes


def dtypes_for(checkpoint: Checkpoint, dtype: str | None) -> dict[str, str]:
    """Component -> the dtype to write it in: one of DTYPES.

    dtype: of all, but for a VAE that overflows in half precision (force_upcast), which is float32 then. None: of each
        component the narrowest that holds whatever its tensors are stored in.
    """
    if dtype is None:
        return {component: _narrowest(checkpoint, component) for component in checkpoint.networks}
    upcast = {"vae": "float32"} if checkpoint.networks["vae"].force_upcast else {}
    return dict.fromkeys(checkpoint.networks, dtype) | upcast


def _narrowest(checkpoint: Checkpoint, component: str) -> str:
    with checkpoint.leaves(component) as leaves:
        stored = {FLOATS["F32"] if dtype == FLOATS["F64"] else dtype for dtype in leaves.dtypes.values()}
    return str(jnp.result_type(*stored).name)


def stored_leaves(checkpoint: Checkpoint, component: str, dtype: str) -> NamedLeaves:
    """A component's leaves as they are stored, but for the dtype."""
    with checkpoint.leaves(component) as leaves:
        for path in leaves.dtypes:
            yield path, cast(leaves.read(path), np.dtype(jnp.dtype(dtype)), f"{checkpoint.name}: {component} {path}")


def require_space(out: Path, checkpoint: Checkpoint, dtypes: Mapping[str, str]) -> None:
    """Raises WeightsError when the disk of `out` can't hold the checkpoint in these dtypes."""
    sizes = {component: jnp.dtype(dtype).itemsize for component, dtype in dtypes.items()}
    shapes = ((c, shape) for c in sizes for shape in _shapes(checkpoint, c).values())
    orbax_folder.require_space(out, sum(math.prod(shape) * sizes[c] for c, shape in shapes))


def write_folder(
    part: Path,
    checkpoint: Checkpoint,
    form: str,
    dtypes: Mapping[str, str],
    leaves_of: Callable[[str], NamedLeaves],
    source: str,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Fills a new folder with a checkpoint's configs and tokenizers, and with the leaves that `leaves_of` gives.

    part: from orbax_folder.new_folder. form: a key of FORMS. dtypes: of the leaves, per component.
    source: where the weights are from, for the manifest of the converted form.
    on_progress: called with (components done, components, the one that comes next or "").
    """
    components = list(checkpoint.networks)
    for folder in checkpoint.tokenizers.values():
        shutil.copytree(folder, part / folder.name)
    zeros, scheduler = checkpoint.force_zeros_for_empty_prompt, checkpoint.scheduler
    orbax_folder.write_json(part / INDEX, make_index(checkpoint.family, checkpoint.networks, zeros, scheduler))
    orbax_folder.write_json(part / "scheduler" / "scheduler_config.json", scheduler.to_dict())
    for i, component in enumerate(components):
        if on_progress:
            on_progress(i, len(components), component)
        orbax_folder.write_json(part / component / "config.json", checkpoint.networks[component].to_dict())
        FORMS[form](part / component, checkpoint, component, dtypes[component], leaves_of(component))
    if form == CONVERTED:
        files = {component: checkpoint.weights[component].sources() for component in components}
        orbax_folder.write_manifest(part, source, files, dtypes)
    if on_progress:
        on_progress(len(components), len(components), "")


def _write_orbax(path: Path, checkpoint: Checkpoint, component: str, dtype: str, leaves: NamedLeaves) -> None:
    # The tree has no name here: it must be gone before the next component is read.
    orbax_folder.write_component(path, traverse_util.unflatten_dict(dict(leaves), sep="/"))


def _write_safetensors(path: Path, checkpoint: Checkpoint, component: str, dtype: str, leaves: NamedLeaves) -> None:
    hollow = {path: np.broadcast_to(np.float32(0), shape) for path, shape in _shapes(checkpoint, component).items()}
    shapes = {name: array.shape for name, array in (export_leaf(path, leaf) for path, leaf in hollow.items())}
    file = path / f"{checkpoint.family.parts[component].stem}.safetensors"
    stream_safetensors(file, shapes, jnp.dtype(dtype), (export_leaf(*leaf) for leaf in leaves))


CONVERTED = "orbax"
# Form -> what writes a component's leaves.
FORMS: Mapping[str, Callable[[Path, Checkpoint, str, str, NamedLeaves], None]] = {
    "diffusers": _write_safetensors,
    CONVERTED: _write_orbax,
}


def _shapes(checkpoint: Checkpoint, component: str) -> dict[str, Shape]:
    return flat_shapes(shapes_of(checkpoint.networks[component]))


def require_known(form: str, dtype: str | None) -> None:
    """Raises WeightsError for a form or dtype that can't be written."""
    if form not in FORMS:
        raise WeightsError(f"format={form!r}: use one of {', '.join(FORMS)}")
    if dtype is not None and dtype not in DTYPES:
        raise WeightsError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}")
