"""Writing LoRA files in the two dialects that others read: kohya, with single files' names, and PEFT/diffusers."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from autolora_jax.config import JsonConfig, UNetConfig
from autolora_jax.weights.lora.dialects import KOHYA, PEFT
from autolora_jax.weights.lora.embeddings import Embeddings, bundled
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.fused import together
from autolora_jax.weights.lora.kinds import Change, vectors
from autolora_jax.weights.lora.kinds.low_rank import LowRank, as_low_rank
from autolora_jax.weights.lora.kinds.matrix import Written
from autolora_jax.weights.lora.names import SPELLINGS, Layer, Place, spell
from autolora_jax.weights.lora.peft import HEADER_KEY, peft_header
from autolora_jax.weights.tables import torch_module
from autolora_jax.weights.writing import require_writable, write_safetensors

DIALECTS: Mapping[str, str] = {"kohya": KOHYA, "peft": PEFT}  # dialect -> naming style
SPEC_HASH = "modelspec.hash_sha256"  # of a file's data, true of that file alone
DTYPES: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def require_saveable(out: Path, dialect: str, dtype: str) -> None:
    """Raises the ValueError or WeightsError that saving a LoRA there would raise, before the work that makes it."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is not known; choose one of {', '.join(DIALECTS)}")
    if dtype not in DTYPES:
        raise ValueError(f"save_dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"out = {str(out)!r} should be a file that ends in .safetensors")
    require_writable(out.parent)


def convert_lora(path: str | os.PathLike[str], file: LoraFile, dialect: str, denoiser_config: JsonConfig) -> None:
    """Writes a LoRA that was read in another dialect: the same tensors, bit for bit, and the same header entries, but
    for hashes of the file that it was.

    Every layer keeps its alpha: as a tensor in kohya's dialect, in the header of PEFT's. Only where SD3's q, k and v,
    which kohya has as one, differ in alpha / rank, it becomes part of `up`, in float32; see `fused`. What PEFT can't
    hold as it is (LoHa, LoKr, differences) is written as the low-rank change that it also is. Embeddings go along.
    Raises ValueError for what the dialect has no names for.
    """
    header = {key: value for key, value in file.metadata.items() if key not in (HEADER_KEY, SPEC_HASH)}
    write_lora(path, file.layers, dialect, header, denoiser_config, file.embeddings)


def write_lora(
    path: str | os.PathLike[str],
    layers: Mapping[Layer, Change],
    dialect: str,
    metadata: Mapping[str, str] | None,
    denoiser_config: JsonConfig | None,
    embeddings: Embeddings | None = None,
) -> None:
    """Writes layers' changes to a file, with the embeddings that come with them; see save_lora."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is not known; choose one of {', '.join(DIALECTS)}")
    if not layers:
        raise ValueError("there is no layer to write")
    modules: dict[str, list[tuple[Layer, Place, Change]]] = {}
    for layer, change in layers.items():
        spelling = SPELLINGS[DIALECTS[dialect]][layer.component]
        name, place = spell(spelling, torch_module(layer.path), denoiser_config or UNetConfig())
        modules.setdefault(name, []).append((layer, place, change))
    tensors: dict[str, np.ndarray] = {}
    alphas: dict[str, dict[str, tuple[int, float]]] = {}
    for name, pieces in modules.items():
        layer, place, _ = pieces[0]
        change = together([(place, change) for _, place, change in pieces])
        if dialect == "peft" and change.matrix:
            low = as_low_rank(change.matrix)
            change = dataclasses.replace(change, matrix=low)
            alphas.setdefault(layer.component, {})[place.module] = (low.rank, low.scale * low.rank)
        try:
            written = _WRITERS[dialect](change, len(layer.kernel) == 4)
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None
        tensors |= {f"{name}.{ending}": tensor for ending, tensor in written.items()}
    if embeddings and dialect != "kohya":
        raise ValueError(f"the words {', '.join(embeddings)} have no place in a PEFT file; write it as kohya")
    tensors |= bundled(embeddings or {})
    dora = {name for name in tensors if name.endswith("lora_magnitude_vector")}
    if dora and len(dora) < len(modules):
        raise ValueError("some layers are DoRAs and some are not, which PEFT's settings can't say; write it as kohya")
    bias = any(name.endswith("lora_B.bias") for name in tensors)
    header = {"format": "pt", **(metadata or {})} | (
        {HEADER_KEY: peft_header(alphas, bool(dora), bias)} if dialect == "peft" else {}
    )
    write_safetensors(Path(path), tensors, header, hashed=True)


def _kohya(change: Change, is_conv: bool) -> Written:
    """Every kind of change by the endings that sd-scripts and LyCORIS give it."""
    tensors = change.matrix.tensors() if change.matrix else {}
    if change.magnitude:
        tensors["dora_scale"] = change.magnitude.dora_scale(is_conv)
    return tensors | vectors.tensors(change)


def _peft(change: Change, is_conv: bool) -> Written:
    """LoRA, DoRA over outputs and biases. Raises ValueError for what PEFT has no name for."""
    if not isinstance(change.matrix, LowRank):
        raise ValueError("PEFT's LoRA has no place for trained norms, or for biases alone; write it as kohya")
    tensors = change.matrix.peft()
    if change.bias is not None:
        tensors["lora_B.bias"] = change.bias.astype(np.float32) / np.float32(change.matrix.scale)
    if change.magnitude:
        tensors["lora_magnitude_vector"] = change.magnitude.peft(is_conv)
    return tensors


_WRITERS: Mapping[str, Callable[[Change, bool], Written]] = {"kohya": _kohya, "peft": _peft}
