"""Writing LoRA files in the two dialects that others read: kohya, with single files' names, and PEFT/diffusers."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from autolora_jax.config import JsonConfig, UNetConfig
from autolora_jax.weights.lora.change import LowRank
from autolora_jax.weights.lora.dialects import KOHYA, KOHYA_SD3, KOHYA_SGM, PEFT
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.fused import together
from autolora_jax.weights.lora.names import SPELLINGS, Layer, spell
from autolora_jax.weights.lora.peft import HEADER_KEY, peft_header
from autolora_jax.weights.lora.sd3_names import Place
from autolora_jax.weights.writing import write_safetensors

# dialect -> (naming styles, ending of down, ending of up)
DIALECTS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "kohya": ((KOHYA_SGM, KOHYA_SD3, KOHYA), "lora_down.weight", "lora_up.weight"),
    "peft": ((PEFT,), "lora_A.weight", "lora_B.weight"),
}
DTYPES: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


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
    which one file can't tell apart, and for values that the dtype can't hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    changes = {layer: _as(change, layer, dtype) for layer, change in _changes(trees)}
    write_lora(path, changes, dialect, metadata, denoiser_config)


def convert_lora(path: str | os.PathLike[str], file: LoraFile, dialect: str, denoiser_config: JsonConfig) -> None:
    """Writes a LoRA that was read in another dialect: the same tensors, bit for bit, and the same header entries.

    Every layer keeps its alpha: as a tensor in kohya's dialect, in the header of PEFT's. Only where SD3's q, k and v,
    which kohya has as one, differ in alpha / rank, it becomes part of `up`, in float32; see `fused`.
    """
    header = {key: value for key, value in file.metadata.items() if key != HEADER_KEY}
    write_lora(path, file.layers, dialect, header, denoiser_config)


def write_lora(
    path: str | os.PathLike[str],
    layers: Mapping[Layer, LowRank],
    dialect: str,
    metadata: Mapping[str, str] | None,
    denoiser_config: JsonConfig | None,
) -> None:
    """Writes layers' changes to a file; see save_lora."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is not known; choose one of {', '.join(DIALECTS)}")
    if not layers:
        raise ValueError("there is no layer to write")
    styles, down_ending, up_ending = DIALECTS[dialect]
    modules: dict[str, list[tuple[Layer, Place, LowRank]]] = {}
    for layer, change in layers.items():
        name, place = _name(layer, styles, denoiser_config or UNetConfig())
        modules.setdefault(name, []).append((layer, place, change))
    tensors: dict[str, np.ndarray] = {}
    alphas: dict[str, dict[str, tuple[int, float]]] = {}
    for name, pieces in modules.items():
        layer, place, _ = pieces[0]
        change = together([(place, change) for _, place, change in pieces])
        is_conv = len(layer.kernel) == 4
        alpha = change.rank if change.alpha is None else change.alpha
        tensors[f"{name}.{down_ending}"] = change.down if is_conv else change.down[:, :, 0, 0]
        tensors[f"{name}.{up_ending}"] = change.up[:, :, None, None] if is_conv else change.up
        if dialect == "kohya":
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
        alphas.setdefault(layer.component, {})[place.module] = (change.rank, float(alpha))
    header = {"format": "pt", **(metadata or {})} | ({HEADER_KEY: peft_header(alphas)} if dialect == "peft" else {})
    write_safetensors(Path(path), tensors, header)


def _as(change: LowRank, layer: Layer, dtype: str) -> LowRank:
    with np.errstate(over="ignore"):
        down, up = change.down.astype(DTYPES[dtype]), change.up.astype(DTYPES[dtype])
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ValueError(f"{layer.component} {layer.path} has values that {dtype} can't hold; save it as float32")
    return dataclasses.replace(change, down=down, up=up)


def _name(layer: Layer, styles: tuple[str, ...], denoiser_config: JsonConfig) -> tuple[str, Place]:
    """(full name, place in the layout): the first spelling of that style."""
    for spelling in SPELLINGS[layer.component]:
        if spelling.style in styles and (spelled := spell(spelling, layer.path, denoiser_config)):
            return spelled
    raise ValueError(f"{layer.component} {layer.path} has no name in {' or '.join(styles)}")


def _changes(trees: Mapping[str, Any]) -> Iterator[tuple[Layer, LowRank]]:
    for component, tree in trees.items():
        leaves: dict[str, dict[str, np.ndarray]] = {}
        for path, leaf in traverse_util.flatten_dict(dict(tree), sep="/").items():
            layer, _, part = path.rpartition("/")
            leaves.setdefault(layer, {})[part] = np.asarray(leaf)
        for path, parts in leaves.items():
            down, up = parts["down"], parts["up"]
            if parts["owner"].any():
                raise ValueError(f"{component} {path} holds several stacked LoRAs; save each of them on its own")
            as_conv = down if down.ndim == 4 else down[None, None]
            layer = Layer(component, path, (*down.shape[:-1], up.shape[1]))
            yield layer, LowRank(as_conv.transpose(3, 2, 0, 1), up.T, None)
