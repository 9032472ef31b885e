"""Writing a whole checkpoint as a folder, leaf by leaf: a diffusers folder, or the converted form with Orbax trees."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import orbax_folder
from autolora_jax.weights.checkpoint import Checkpoint, PathOrId, Weights, open_checkpoint
from autolora_jax.weights.diffusers_folder import INDEX, make_index
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import FLOATS
from autolora_jax.weights.placing import cast
from autolora_jax.weights.rules import Shape, flat_shapes
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import export_leaf
from autolora_jax.weights.writing import stream_safetensors

DTYPES = ("bfloat16", "float32", "float16")
OnComponent = Callable[[int, int, str], None]
NamedLeaves = Iterator[tuple[str, np.ndarray]]  # (path, leaf), in the order of the component's shapes
LeavesOf = Callable[[str, np.dtype], NamedLeaves]  # of a component, in a dtype


def convert_checkpoint(
    source: PathOrId, out: PathOrId, dtype: str = "bfloat16", *, on_progress: OnComponent | None = None, **opening: Any
) -> Path:
    """Writes `source` as a folder that open_checkpoint restores straight onto devices; returns its path.

    dtype: one of DTYPES. A VAE that overflows in half precision (force_upcast) stays float32.
    on_progress: called with (components done, components, the one that comes next or "").
    opening: variant, revision, cache_dir, tokenizer, text_encoders, networks, as for open_checkpoint.
    `out` appears when all is written, or not at all. Raises WeightsError or ConfigError.
    """
    require_known(CONVERTED, dtype)
    orbax_folder.require_new(Path(out))
    checkpoint = open_checkpoint(source, **opening)

    def leaves_of(component: str, dtype: np.dtype) -> NamedLeaves:
        with checkpoint.leaves(component) as leaves:
            for path in leaves.dtypes:
                yield path, cast(leaves.read(path), dtype, f"{checkpoint.name}: {component} {path}")

    return write_folder(Path(out), checkpoint, CONVERTED, dtype, leaves_of, str(source), on_progress)


def write_folder(
    out: Path,
    checkpoint: Checkpoint,
    form: str,
    dtype: str | None,
    leaves_of: LeavesOf,
    source: str,
    on_progress: OnComponent | None = None,
) -> Path:
    """Writes a new folder with a checkpoint's configs and tokenizers, and given leaves of its networks; returns it.

    form: a key of FORMS.
    dtype: one of DTYPES, of all components but for a VAE that overflows in half precision (force_upcast), which is
        float32 then. None: of each component the narrowest that holds whatever its tensors are stored in.
    source: where the weights are from, for the manifest of the converted form. on_progress: as for convert_checkpoint.
    `out` appears when all is written, or not at all. Raises WeightsError, also where the disk has too little space.
    """
    components = list(checkpoint.networks)
    with orbax_folder.new_folder(out) as part:
        dtypes = {component: np.dtype(jnp.dtype(_dtype_of(checkpoint, component, dtype))) for component in components}
        needed = (math.prod(s) * dtypes[c].itemsize for c in components for s in _shapes(checkpoint, c).values())
        orbax_folder.require_space(out, sum(needed))
        for folder in checkpoint.tokenizers.values():
            shutil.copytree(folder, part / folder.name)
        zeros, scheduler = checkpoint.force_zeros_for_empty_prompt, checkpoint.scheduler
        orbax_folder.write_json(part / INDEX, make_index(checkpoint.family, checkpoint.networks, zeros, scheduler))
        orbax_folder.write_json(part / "scheduler" / "scheduler_config.json", scheduler.to_dict())
        for i, component in enumerate(components):
            if on_progress:
                on_progress(i, len(components), component)
            orbax_folder.write_json(part / component / "config.json", checkpoint.networks[component].to_dict())
            dtype_here = dtypes[component]
            FORMS[form](part / component, checkpoint, component, dtype_here, leaves_of(component, dtype_here))
        if form == CONVERTED:
            files = {component: _sources(checkpoint.weights[component]) for component in components}
            orbax_folder.write_manifest(part, source, files, {c: known.name for c, known in dtypes.items()})
        if on_progress:
            on_progress(len(components), len(components), "")
    return out


def _dtype_of(checkpoint: Checkpoint, component: str, asked: str | None) -> str:
    if asked is not None:
        return "float32" if component == "vae" and checkpoint.networks["vae"].force_upcast else asked
    with checkpoint.leaves(component) as leaves:
        stored = {FLOATS["F32"] if dtype == FLOATS["F64"] else dtype for dtype in leaves.dtypes.values()}
    return str(jnp.result_type(*stored).name)


def _sources(weights: Weights) -> dict[str, int]:
    """Name and size in bytes of the files it is read from; of a converted folder none: its manifest knows them."""
    return {path.name: path.stat().st_size for path in weights.paths()} if isinstance(weights, TensorWeights) else {}


def _write_orbax(path: Path, checkpoint: Checkpoint, component: str, dtype: np.dtype, leaves: NamedLeaves) -> None:
    # The tree has no name here: it must be gone before the next component is read.
    orbax_folder.write_component(path, traverse_util.unflatten_dict(dict(leaves), sep="/"))


def _write_safetensors(
    path: Path, checkpoint: Checkpoint, component: str, dtype: np.dtype, leaves: NamedLeaves
) -> None:
    hollow = {path: np.broadcast_to(np.float32(0), shape) for path, shape in _shapes(checkpoint, component).items()}
    shapes = {name: array.shape for name, array in (export_leaf(path, leaf) for path, leaf in hollow.items())}
    file = path / f"{checkpoint.family.parts[component].stem}.safetensors"
    stream_safetensors(file, shapes, dtype, (export_leaf(*leaf) for leaf in leaves))


CONVERTED = "orbax"
# Form -> what writes a component's leaves.
FORMS: Mapping[str, Callable[[Path, Checkpoint, str, np.dtype, NamedLeaves], None]] = {
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
