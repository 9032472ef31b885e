"""Vectors that prompts add to the table of a text encoder."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def look_up(table: nn.Embed, ids: Int[Array, "b t"], extra: Float[Array, "r d"] | None = None) -> Float[Array, "b t d"]:
    """Token ids -> vectors. Ids from the table's size on are rows of `extra`: the table is never copied or written.

    extra: vectors of embeddings (textual inversion), in any float type.
    """
    if extra is None:
        return table(ids)
    size = table.num_embeddings
    known = table(jnp.minimum(ids, size - 1))
    added = jnp.take(extra.astype(known.dtype), jnp.maximum(ids - size, 0), axis=0, mode="clip")
    return jnp.where((ids < size)[..., None], known, added)
