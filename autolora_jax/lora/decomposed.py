"""DoRA: a kernel whose rows have magnitudes of their own. W' = magnitude · (W + Δ) / ‖W + Δ‖, along one axis.

What a scale s other than 1 means is a matter of who trained, and both are kept; 0 is the base model in both:

    LyCORIS (`dora_scale`):             W' = (W + Δ) · (1 + s · (magnitude / ‖W + Δ‖ − 1))
    PEFT (`lora_magnitude_vector`):     W' = (W + sΔ) · magnitude / ‖W + sΔ‖

Neither tends to the base model as s tends to 0. Both are W' = W + W · keep + Δ · amount with a keep and an amount per
row, so the base kernel is read once, when the LoRA is attached, for the norms; no second kernel is kept.
Sources: lycoris/functional/general.py weight_decompose; peft/tuners/lora/dora.py DoraLinearLayer.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.models.delta import change_of

Tree = Mapping[str, Any]
LYCORIS_EPSILON = np.float32(np.finfo(np.float32).eps)  # LyCORIS adds it to norms


def norms(kernel: Any, change: Tree, axis: str, trainer: str) -> dict[str, np.ndarray]:
    """What `amounts` needs of the base kernel beside the magnitudes: arrays along "outputs" or "inputs", float32.

    change: a term's parts. trainer: "lycoris" or "peft".
    """
    found = _norms(kernel, dict(change), axis, trainer)
    return {name: np.asarray(value) for name, value in jax.device_get(found).items()}


@partial(jax.jit, static_argnames=("axis", "trainer"))
def _norms(kernel: Array, change: Tree, axis: str, trainer: str) -> dict[str, Array]:
    base, delta = jnp.asarray(kernel, jnp.float32), change_of(change)
    kept = base.ndim - (1 if axis == "outputs" else 2)
    over = tuple(i for i in range(base.ndim) if i != kept)
    if trainer == "lycoris":
        return {"norm": jnp.sqrt(jnp.square(base + delta).sum(over)) + LYCORIS_EPSILON}
    # ‖W + sΔ‖² = ‖W‖² + 2s⟨W, Δ⟩ + s²‖Δ‖²
    products = {"base_base": base * base, "base_change": base * delta, "change_change": delta * delta}
    return {name: product.sum(over) for name, product in products.items()}


def amounts(row: Tree, scale: Float[Array, "*b"]) -> dict[str, Float[Array, "*b c"]]:
    """{keep, amount} of a term at a scale: W' = W + W · keep + Δ · amount.

    row: {"magnitude": [c], and what `norms` gave}.
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
