"""A change as the tensors of a module: what kohya's and LyCORIS's programs, and PEFT, call its parts."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from autolora_jax.weights.lora.change import Change, Full, Hadamard, Kronecker, LowRank, Magnitude
from autolora_jax.weights.lora.exact import as_low_rank
from autolora_jax.weights.rules import Shape

Written = dict[str, np.ndarray]  # ending -> tensor


def _shaped(x: np.ndarray, is_conv: bool) -> np.ndarray:
    """[out, in, kh, kw] as the layer's own weight is stored."""
    return x if is_conv else x[:, :, 0, 0]


def _alpha(matrix: LowRank | Hadamard) -> np.ndarray:
    return np.array(matrix.rank if matrix.alpha is None else matrix.alpha, np.float32)


def _kohya_low_rank(m: LowRank, is_conv: bool) -> Written:
    up = m.up[:, :, None, None] if is_conv else m.up
    return {"lora_down.weight": _shaped(m.down, is_conv), "lora_up.weight": up, "alpha": _alpha(m)}


def _kohya_hadamard(m: Hadamard, is_conv: bool) -> Written:
    pairs = {1: m.one, 2: m.two}
    factors = {f"hada_w{i}_a": pair.up for i, pair in pairs.items()}
    factors |= {f"hada_w{i}_b": pair.down.reshape(pair.rank, -1) for i, pair in pairs.items()}
    return {**factors, "alpha": _alpha(m)}


def _kohya_kronecker(m: Kronecker, is_conv: bool) -> Written:
    # Whole factors have no alpha: whatever their scale was, it is in one of them now.
    left = m.left if m.scale == 1 else m.left.astype(np.float32) * np.float32(m.scale)
    return {"lokr_w1": left, "lokr_w2": _shaped(m.right, is_conv)}


def _kohya_full(m: Full, is_conv: bool) -> Written:
    return {"diff": _shaped(m.dense, is_conv)}


_KOHYA: Mapping[type, Callable[[Any, bool], Written]] = {
    LowRank: _kohya_low_rank,
    Hadamard: _kohya_hadamard,
    Kronecker: _kohya_kronecker,
    Full: _kohya_full,
}


def kohya(change: Change, kernel: Shape) -> Written:
    """Every kind of change by the keys that sd-scripts and LyCORIS give it."""
    is_conv = len(kernel) == 4
    tensors = _KOHYA[type(change.matrix)](change.matrix, is_conv) if change.matrix else {}
    if change.magnitude:
        tensors["dora_scale"] = _dora_scale(change.magnitude, is_conv)
    weight, bias = ("w_norm", "b_norm") if len(kernel) == 1 else ("", "diff_b")
    if change.weight is not None:
        tensors[weight] = change.weight
    if change.bias is not None:
        tensors[bias] = change.bias
    return tensors


def _dora_scale(magnitude: Magnitude, is_conv: bool) -> np.ndarray:
    column = magnitude.values.reshape(-1, 1) if magnitude.axis == "outputs" else magnitude.values.reshape(1, -1)
    return column[:, :, None, None] if is_conv else column


def peft(change: Change, kernel: Shape) -> Written:
    """LoRA, DoRA over outputs and biases; other kinds as the low-rank change that they also are.

    Raises ValueError for what PEFT has no name for.
    """
    if change.matrix is None:
        raise ValueError("PEFT's LoRA has no place for trained norms, or for biases alone; write it as kohya")
    is_conv, m = len(kernel) == 4, as_low_rank(change.matrix)
    up = m.up[:, :, None, None] if is_conv else m.up
    tensors = {"lora_A.weight": _shaped(m.down, is_conv), "lora_B.weight": up}
    if change.bias is not None:
        tensors["lora_B.bias"] = change.bias.astype(np.float32) / np.float32(m.scale)
    if change.magnitude:
        if change.magnitude.axis == "inputs":
            raise ValueError("PEFT's DoRA has magnitudes of outputs only, this one of inputs; write it as kohya")
        values = change.magnitude.values
        tensors["lora_magnitude_vector"] = values.reshape(1, -1, 1, 1) if is_conv else values
    return tensors


WRITERS: Mapping[str, Callable[[Change, Shape], Written]] = {"kohya": kohya, "peft": peft}
