"""A layer's change as a leaf of the delta tree, and back: torch's layout here, Flax's kernels there.

| change              | in the leaf                                                  | float numbers kept        |
|---------------------|--------------------------------------------------------------|---------------------------|
| LoRA, LoCon         | down, up                                                     | rank · (in + out)         |
| LoHa                | a term of two low-rank pairs: the product's rank is rank²    | 2 · rank · (in + out)     |
| LoKr                | a term of its two factors                                    | those of the factors      |
| full difference     | a term that is a kernel                                      | in · out                  |
| DoRA of any of them | the same as a term, with magnitudes and norms                | + 2 to 4 per row          |

LoHa is kept as its factors, not as the low-rank change of rank² that it also is: building the kernel from them costs
2·rank/rank² as many products, and a rank above 8 would have more numbers than memory for dense kernels.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import DTypeLike

from autolora_jax.lora.decomposed import norms
from autolora_jax.weights.files import require_finite
from autolora_jax.weights.lora.change import Change, Full, Hadamard, Kronecker, LowRank, Magnitude, Matrix
from autolora_jax.weights.lora.names import Layer
from autolora_jax.weights.rules import Shape

Parts = dict[str, np.ndarray]


@np.errstate(over="ignore", invalid="ignore")  # `_as` says it with the layer's name
def leaf_of(change: Change, layer: Layer, dtype: DTypeLike, base: Mapping[str, Any] | None) -> dict[str, Any]:
    """The leaf of one layer's change; see attach."""
    leaf: dict[str, Any] = {}
    if change.matrix is not None:
        parts = _parts(change.matrix, layer.kernel)
        cast = {name: _as(part, dtype, layer, name) for name, part in parts.items()}
        if change.magnitude:
            row = _row(change.magnitude, parts, layer, base)
            leaf["terms"] = {"0": {**cast, "owner": np.int32(0), change.magnitude.axis: row}}
        elif isinstance(change.matrix, LowRank):
            leaf |= {**cast, "owner": np.zeros(change.matrix.rank, np.int32)}
        else:
            leaf["terms"] = {"0": {**cast, "owner": np.int32(0)}}
    for name, vector in (("bias", change.bias), ("weight", change.weight)):
        if vector is not None:
            leaf[name] = {"rows": _as(vector, np.float32, layer, name)[None], "owner": np.zeros(1, np.int32)}
    return leaf


def _as(part: np.ndarray, dtype: DTypeLike, layer: Layer, name: str) -> np.ndarray:
    """The array in C order and in a dtype. Raises WeightsError for numbers that are too large for it."""
    cast = np.ascontiguousarray(part).astype(dtype, copy=False)
    require_finite(cast, f"{layer.component} {layer.path}: {name}, times alpha / rank,")
    return cast


def _row(magnitude: Magnitude, parts: Parts, layer: Layer, base: Mapping[str, Any] | None) -> Parts:
    if base is None:
        raise ValueError("a DoRA is made of the base weights' norms, too: attach it with the base parameters")
    node: Any = base[layer.component]
    for name in layer.path.split("/"):
        node = node[name]
    found = norms(node["kernel"], parts, magnitude.axis, magnitude.trainer)
    return {"magnitude": _as(magnitude.values, np.float32, layer, "magnitude"), **found}


def _parts(matrix: Matrix, kernel: Shape) -> Parts:
    """The parts of a term (see models.delta.CHANGES), float32 or as in the file; the scale is in one of them."""
    return _PARTS[type(matrix)](matrix, kernel)


def _low_rank(matrix: LowRank, kernel: Shape) -> Parts:
    down = matrix.down.transpose(2, 3, 1, 0).reshape(*kernel[:-1], matrix.rank)
    # In C order before anything else: numpy casts a transposed array several times slower.
    return {"down": down, "up": np.ascontiguousarray(matrix.up.T).astype(np.float32) * np.float32(matrix.scale)}


def _hadamard(matrix: Hadamard, kernel: Shape) -> Parts:
    one, two = _low_rank(matrix.one, kernel), _low_rank(matrix.two, kernel)
    return {
        "down_1": one["down"],
        "up_1": one["up"] * np.float32(matrix.scale),
        "down_2": two["down"],
        "up_2": two["up"],
    }


def _kronecker(matrix: Kronecker, kernel: Shape) -> Parts:
    right = matrix.right.transpose(2, 3, 1, 0)
    left = matrix.left.T.astype(np.float32) * np.float32(matrix.scale)
    return {"left": left, "right": right if len(kernel) == 4 else right[0, 0]}


def _full(matrix: Full, kernel: Shape) -> Parts:
    return {"kernel": matrix.dense.transpose(2, 3, 1, 0).reshape(kernel)}


_PARTS: Mapping[type, Callable[[Any, Shape], Parts]] = {
    LowRank: _low_rank,
    Hadamard: _hadamard,
    Kronecker: _kronecker,
    Full: _full,
}


# ---- back ------------------------------------------------------------------------------------------------------------


def change_in(leaf: Mapping[str, Any]) -> Change:
    """The change of a leaf, its scale inside the matrix. Raises ValueError when several LoRAs are stacked in it."""
    terms = list(leaf.get("terms", {}).values())
    pairs = [{"down": leaf["down"], "up": leaf["up"]}] if "up" in leaf else []
    owners = {int(owner) for owner in _owners(leaf)}
    if len(terms) + len(pairs) > 1 or len(owners) > 1:
        raise ValueError("several stacked LoRAs; save each of them on its own")
    matrix = magnitude = None
    for term in (*pairs, *terms):
        matrix = _matrix({name: np.asarray(part) for name, part in term.items() if not isinstance(part, Mapping)})
        for axis in ("outputs", "inputs"):
            if axis in term:
                trainer = "lycoris" if "norm" in term[axis] else "peft"
                magnitude = Magnitude(np.asarray(term[axis]["magnitude"]), axis, trainer)
    vectors = {name: np.asarray(leaf[name]["rows"]).sum(axis=0) for name in ("bias", "weight") if name in leaf}
    return Change(matrix, magnitude, vectors.get("bias"), vectors.get("weight"))


def _owners(leaf: Mapping[str, Any]) -> Iterator[int]:
    for part in (leaf, *leaf.get("terms", {}).values(), *(leaf[n] for n in ("bias", "weight") if n in leaf)):
        if "owner" in part:
            yield from np.atleast_1d(np.asarray(part["owner"]))


def kernel_in(leaf: Mapping[str, Any]) -> Shape:
    """The shape of the kernel that a leaf changes; of a norm or a mere bias, that of the vector."""
    return tuple(shape_of_parts(next(iter(leaf["terms"].values())) if "terms" in leaf else leaf))


def shape_of_parts(parts: Mapping[str, Any]) -> Shape:
    """The shape of the kernel that the parts of a term, or a leaf, change."""
    if "kernel" in parts:
        return tuple(np.shape(parts["kernel"]))
    if "left" in parts:
        (b, a), (*window, d, c) = np.shape(parts["left"]), np.shape(parts["right"])
        return (*window, b * d, a * c)
    for down, up in (("down", "up"), ("down_1", "up_1")):
        if up in parts:
            return (*np.shape(parts[down])[:-1], np.shape(parts[up])[-1])
    return next(np.shape(parts[name]["rows"])[1:] for name in ("bias", "weight") if name in parts)


def _torch(kernel: np.ndarray) -> np.ndarray:
    return (kernel if kernel.ndim == 4 else kernel[None, None]).transpose(3, 2, 0, 1)


def _matrix(parts: Parts) -> Matrix:
    if "kernel" in parts:
        return Full(_torch(parts["kernel"]))
    if "left" in parts:
        return Kronecker(parts["left"].T, _torch(parts["right"]), None, None)
    if "up" in parts:
        return LowRank(_torch(parts["down"]), parts["up"].T, None)
    one, two = (LowRank(_torch(parts[f"down_{i}"]), parts[f"up_{i}"].T, None) for i in (1, 2))
    return Hadamard(one, two, None)
