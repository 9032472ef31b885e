"""Writing a delta tree to a LoRA file."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from autolora_jax.config import JsonConfig
from autolora_jax.lora.leaves import change_in, kernel_in
from autolora_jax.lora.tree import is_leaf
from autolora_jax.weights.lora.change import Change
from autolora_jax.weights.lora.export import DTYPES, write_lora
from autolora_jax.weights.lora.names import Layer


def save_lora(
    path: str | os.PathLike[str],
    trees: Mapping[str, Any],
    dialect: str = "kohya",
    metadata: Mapping[str, str] | None = None,
    denoiser_config: JsonConfig | None = None,
    dtype: str = "float32",
) -> None:
    """Writes one LoRA's delta trees (component -> tree, as lora.attach gives them) to a .safetensors file.

    alpha is part of the trees' `up`, so the file says alpha = rank. The file appears whole or not at all.
    metadata: further header entries, such as {"modelspec.trigger_phrase": …}.
    denoiser_config: of the base model, for kohya's names of its blocks; None: SDXL's UNet.
    dtype: of the tensors, a key of DTYPES; float16 halves the file, and is what most published ones are.
    Raises ValueError for an unknown dialect or dtype, for a config of another kind of denoiser, for stacked LoRAs,
    which one file can't tell apart, for what the dialect has no names for, and for values that the dtype can't hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    found = (item for component, tree in trees.items() for item in changes(component, tree))
    cast = {layer: _as(change, layer, dtype) for layer, change in found}
    write_lora(path, cast, dialect, metadata, denoiser_config)


def changes(component: str, tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[Layer, Change]]:
    """Every layer of a component's delta tree, with its change."""
    for name, node in tree.items():
        here = f"{path}/{name}".lstrip("/")
        if not is_leaf(node):
            yield from changes(component, node, here)
            continue
        try:
            yield Layer(component, here, kernel_in(node)), change_in(node)
        except ValueError as e:
            raise ValueError(f"{component} {here} holds {e}") from None


def _as(change: Change, layer: Layer, dtype: str) -> Change:
    with np.errstate(over="ignore"):
        cast = change.mapped(lambda array: array.astype(DTYPES[dtype]))
    if not all(np.isfinite(array).all() for array in cast.arrays()):
        raise ValueError(f"{layer.component} {layer.path} has values that {dtype} can't hold; save it as float32")
    return cast
