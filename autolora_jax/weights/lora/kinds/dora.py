"""DoRA: a kernel whose rows have magnitudes of their own. W' = magnitude · (W + Δ) / ‖W + Δ‖, along one axis.

It stands beside a change of any kind. What a scale s other than 1 means is a matter of who trained, and both are kept;
0 is the base model in both:

    LyCORIS (`dora_scale`):             W' = (W + Δ) · (1 + s · (magnitude / ‖W + Δ‖ − 1))
    PEFT (`lora_magnitude_vector`):     W' = (W + sΔ) · magnitude / ‖W + sΔ‖

Neither tends to the base model as s tends to 0. Both are W' = W + W · keep + Δ · amount with a keep and an amount per
row, so the base kernel is read once, when the LoRA is attached, for the norms; no second kernel is kept.
Sources: lycoris/functional/general.py weight_decompose; peft/tuners/lora/dora.py DoraLinearLayer.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.models.int8 import dense
from autolora_jax.weights.lora.kinds.matrix import ADAPTER, STATIC, Matrix, Shapes, Tensors
from autolora_jax.weights.rules import Shape

AXES = ("outputs", "inputs")
PARTS: Mapping[str, str] = {
    "dora_scale": "dora_scale",
    "magnitude": rf"(lora_)?magnitude(_vector)?{ADAPTER}(\.weight)?",
}
_TRAINERS = {"dora_scale": "lycoris", "magnitude": "peft"}
_EPSILON = np.float32(np.finfo(np.float32).eps)  # LyCORIS adds it to norms


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Magnitude:
    """The norms that the changed kernel is given."""

    values: np.ndarray  # [out] or [in]
    axis: str = dataclasses.field(metadata=STATIC)  # "outputs" or "inputs"
    trainer: str = dataclasses.field(metadata=STATIC)  # "lycoris" or "peft": who says what scales other than 1 mean

    def row(self, kernel: Any, matrix: Matrix) -> dict[str, np.ndarray]:
        """What `amounts` needs of a base kernel and its change, as arrays along the axis: magnitudes and norms."""
        found = jax.device_get(_norms(kernel, matrix, self.axis, self.trainer))
        return {"magnitude": self.values, **{name: np.asarray(value) for name, value in found.items()}}

    def dora_scale(self, is_conv: bool) -> np.ndarray:
        """As LyCORIS stores them."""
        column = self.values.reshape(-1, 1) if self.axis == "outputs" else self.values.reshape(1, -1)
        return column[:, :, None, None] if is_conv else column

    def peft(self, is_conv: bool) -> np.ndarray:
        """As PEFT stores them. Raises ValueError for those of inputs."""
        if self.axis == "inputs":
            raise ValueError("PEFT's DoRA has magnitudes of outputs only, this one of inputs; write it as kohya")
        return self.values.reshape(1, -1, 1, 1) if is_conv else self.values


def misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """What is wrong with the magnitudes that a module has beside its change."""
    found = [part for part in PARTS if part in shapes]
    if len(found) > 1:
        return f"magnitudes given twice, as {' and '.join(found)}"
    for part in found:
        if len(kernel) == 1 or _axis(part, shapes[part], kernel) is None:
            return f"magnitudes {list(shapes[part])}, which are neither one per output nor one per input"
    return None


def read(tensors: Tensors, kernel: Shape) -> Magnitude | None:
    """The magnitudes that a module has, if any."""
    for part, trainer in _TRAINERS.items():
        if part in tensors and (axis := _axis(part, tensors[part].shape, kernel)):
            return Magnitude(tensors[part].reshape(-1), axis, trainer)
    return None


def magnitude_in(term: Mapping[str, Any]) -> Magnitude | None:
    """The magnitudes in a delta tree's term, if any."""
    for axis in AXES:
        if axis in term:
            return Magnitude(np.asarray(term[axis]["magnitude"]), axis, "lycoris" if "norm" in term[axis] else "peft")
    return None


def _axis(part: str, shape: Shape, kernel: Shape) -> str | None:
    """The axis that magnitudes of this shape belong to; None where it is neither."""
    inputs, outputs = kernel[-2:]
    bare = tuple(n for n in shape if n != 1) or (1,)
    of_outputs, of_inputs = bare == (outputs,), bare == (inputs,)
    if part == "magnitude":  # PEFT's are of outputs: [out], or a convolution's [1, out, 1, 1]
        return "outputs" if of_outputs and shape in ((outputs,), (outputs, 1), (1, outputs, 1, 1)) else None
    if of_outputs and shape[0] == outputs:
        return "outputs"
    return "inputs" if of_inputs and shape[0] == 1 else None


@partial(jax.jit, static_argnames=("axis", "trainer"))
def _norms(kernel: Array, matrix: Matrix, axis: str, trainer: str) -> dict[str, Array]:
    base = dense(kernel, jnp.float32)
    delta = matrix.on(base)
    kept = base.ndim - (1 if axis == "outputs" else 2)
    over = tuple(i for i in range(base.ndim) if i != kept)
    if trainer == "lycoris":
        return {"norm": jnp.sqrt(jnp.square(base + delta).sum(over)) + _EPSILON}
    # ‖W + sΔ‖² = ‖W‖² + 2s⟨W, Δ⟩ + s²‖Δ‖²
    products = {"base_base": base * base, "base_change": base * delta, "change_change": delta * delta}
    return {name: product.sum(over) for name, product in products.items()}


def amounts(row: Mapping[str, Any], scale: Float[Array, "*b"]) -> dict[str, Float[Array, "*b c"]]:
    """{keep, amount} of a term at a scale: W' = W + W · keep + Δ · amount.

    row: as Magnitude.row gives it.
    """
    s = scale[..., None]
    row = {name: jnp.asarray(values).reshape(*(1,) * scale.ndim, -1) for name, values in row.items()}
    if "norm" in row:
        total = 1 + s * (row["magnitude"] / row["norm"] - 1)
        keep, amount = total - 1, total
    else:
        squared = row["base_base"] + 2 * s * row["base_change"] + jnp.square(s) * row["change_change"]
        gain = row["magnitude"] / jnp.sqrt(squared)
        keep, amount = gain - 1, s * gain
    return {"keep": jnp.where(s == 0, 0, keep), "amount": jnp.where(s == 0, 0, amount)}
