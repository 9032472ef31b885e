"""A checkpoint with LoRAs merged into it, written layer by layer: a model like any other, for any program."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from autolora_jax.lora.attach import attach
from autolora_jax.lora.merge import merge_into
from autolora_jax.lora.tree import stack
from autolora_jax.weights.checkpoint import Checkpoint
from autolora_jax.weights.errors import shorten
from autolora_jax.weights.folder_writing import NamedLeaves, OnComponent, require_known, write_folder
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.placing import cast

Scaled = tuple[LoraFile, float]


def write_merged(
    checkpoint: Checkpoint,
    loras: Sequence[Scaled],
    out: str | Path,
    form: str = "diffusers",
    dtype: str | None = None,
    on_progress: OnComponent | None = None,
) -> Path:
    """Writes W + Σ scale · ΔW of a whole checkpoint to a new folder, and returns its path.

    loras: files, as read_lora gives them for this checkpoint, and their scales. A LoRA may be of any kind that loads.
    form: "diffusers", a folder that diffusers and this library load; or "orbax", which loads faster here.
    dtype: "float32", "float16", "bfloat16"; None: as stored. Sums are taken in float32 and rounded once.
    on_progress: called with (components done, components, the one that comes next or "").
    One layer is in memory at a time; in the Orbax form, the merged network. `out` appears when all is written, or not
    at all. Raises WeightsError, and ValueError for a LoRA that no weights of this architecture can hold.
    """
    require_known(form, dtype)
    for file, _ in loras:
        if foreign := sorted({layer.component for layer in file.layers} - checkpoint.networks.keys()):
            raise ValueError(f"{file.path} changes {', '.join(foreign)}, which {checkpoint.name} does not have")
        if file.embeddings:
            raise ValueError(
                f"{file.path} brings words of its own ({shorten(list(file.embeddings))}), for which a checkpoint has "
                "no place: delete its bundle_emb keys to merge the rest, and load them as embeddings beside the model"
            )
    source = " + ".join([checkpoint.name, *(f"{file.path}:{scale:g}" for file, scale in loras)])

    def leaves_of(component: str, dtype: np.dtype) -> NamedLeaves:
        return merged_leaves(checkpoint, component, loras, dtype)

    return write_folder(Path(out), checkpoint, form, dtype, leaves_of, source, on_progress)


def merged_leaves(checkpoint: Checkpoint, component: str, loras: Sequence[Scaled], dtype: np.dtype) -> NamedLeaves:
    """(path, leaf) of a component with LoRAs merged into it, one by one, in this dtype."""
    changed = {layer.path for file, _ in loras for layer in file.layers if layer.component == component}
    with checkpoint.leaves(component) as leaves:
        for module, paths in groupby(leaves.dtypes, lambda path: path.rpartition("/")[0]):
            params = {path: leaves.read(path) for path in paths}
            if module in changed:
                params = _merged(params, [(_only(file, component, module), scale) for file, scale in loras], component)
            for path, leaf in params.items():
                yield path, cast(leaf, dtype, f"{checkpoint.name} with its LoRAs: {component} {path}")


def _only(file: LoraFile, component: str, path: str) -> LoraFile:
    """The file with one layer, or with none."""
    layers = {layer: change for layer, change in file.layers.items() if layer[:2] == (component, path)}
    return dataclasses.replace(file, layers=layers)


def _merged(params: Mapping[str, np.ndarray], loras: Sequence[Scaled], component: str) -> dict[str, np.ndarray]:
    """One layer's parameters by path, with the LoRAs' changes of it, in float32."""
    tree = traverse_util.unflatten_dict({path: leaf.astype(np.float32) for path, leaf in params.items()}, sep="/")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        deltas = [attach(file, base={component: tree})[0].get(component) for file, _ in loras]
        merged = merge_into(tree, stack(deltas), np.array([scale for _, scale in loras], np.float32))
    flat = traverse_util.flatten_dict(merged, sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}
