"""A delta tree as changes of layers again, and as a LoRA file."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from autolora_jax.config import JsonConfig
from autolora_jax.lora.tree import VECTORS, is_leaf
from autolora_jax.weights.lora.embeddings import Embeddings
from autolora_jax.weights.lora.export import DTYPES, write_lora
from autolora_jax.weights.lora.kinds import Change, dora
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.names import Layer


def save_lora(
    path: str | os.PathLike[str],
    trees: Mapping[str, Any],
    dialect: str = "kohya",
    metadata: Mapping[str, str] | None = None,
    denoiser_config: JsonConfig | None = None,
    dtype: str = "float32",
    embeddings: Embeddings | None = None,
) -> None:
    """Writes one LoRA's delta trees (component -> tree, as lora.attach gives them) to a .safetensors file.

    alpha is part of the trees' `up`, so the file says alpha = rank; in kohya's dialect, where layers differ in rank,
    the highest for all, for diffusers reads one there for all. The file appears whole or not at all.
    metadata: further header entries, such as {"modelspec.trigger_phrase": …}.
    denoiser_config: of the base model, for kohya's names of its blocks; None: SDXL's UNet.
    dtype: of the tensors, a key of DTYPES; float16 halves the file, and is what most published ones are.
    embeddings: words that come with it, in kohya's dialect.
    Raises ValueError for an unknown dialect or dtype, for a config of another kind of denoiser, for stacked LoRAs,
    which one file can't tell apart, for what the dialect has no names for, and for values that the dtype can't hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    found = {layer: change for component, tree in trees.items() for layer, change in changes(component, tree)}
    ranks = {change.matrix.rank for change in found.values() if isinstance(change.matrix, LowRank)}
    if dialect == "kohya" and len(ranks) > 1:
        found = {layer: _at(change, float(max(ranks))) for layer, change in found.items()}
    cast = {layer: _as(change, layer, dtype) for layer, change in found.items()}
    write_lora(path, cast, dialect, metadata, denoiser_config, embeddings)


def changes(component: str, tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[Layer, Change]]:
    """Every layer of a component's delta tree, with its change."""
    for name, node in tree.items():
        here = f"{path}/{name}".lstrip("/")
        if not is_leaf(node):
            yield from changes(component, node, here)
            continue
        change = change_in(node, f"{component} {here}")
        yield Layer(component, here, change.shape), change


def change_in(leaf: Mapping[str, Any], name: str) -> Change:
    """The change of a leaf, its scale inside the matrix. Raises ValueError when several LoRAs are stacked in it."""
    terms = [*leaf.get("terms", {}).values()]
    terms += [{"change": LowRank(leaf["down"], leaf["up"]), "owner": leaf["owner"]}] if "up" in leaf else []
    owned = [*terms, *(leaf[entry] for entry in VECTORS if entry in leaf)]
    owners = {int(owner) for part in owned for owner in np.atleast_1d(np.asarray(part["owner"]))}
    if len(terms) > 1 or len(owners) > 1:
        raise ValueError(f"{name} holds several stacked LoRAs; save each of them on its own")
    vectors = {entry: np.asarray(leaf[entry]["rows"]).sum(axis=0) for entry in VECTORS if entry in leaf}
    if not terms:
        return Change(**vectors)
    return Change(jax.tree.map(np.asarray, terms[0]["change"]), dora.magnitude_in(terms[0]), **vectors)


def _at(change: Change, alpha: float) -> Change:
    """A change that says this alpha, and is the same."""
    if not isinstance(matrix := change.matrix, LowRank):
        return change
    up = np.asarray(matrix.up, np.float32) * np.float32(matrix.scale * matrix.rank / alpha)
    return dataclasses.replace(change, matrix=dataclasses.replace(matrix, up=up, alpha=alpha))


def _as(change: Change, layer: Layer, dtype: str) -> Change:
    with np.errstate(over="ignore"):
        cast: Change = jax.tree.map(lambda array: array.astype(DTYPES[dtype]), change)
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(cast)):
        raise ValueError(f"{layer.component} {layer.path} has values that {dtype} can't hold; save it as float32")
    return cast
