"""Guidance that is no weighted sum: what becomes of a share between combining and stepping.

A share is what guidance adds to a prediction T that stands without it: gain·(T − G), where G is what is guided away
from (CFG: e(∅), gain w − 1; AutoLoRA: e_base^{w1}, gain γ − 1). Forms change it by numbers of each picture, of which
some change nothing: one program has them all.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Any  # an array: numpy before a call, traced inside
Latents = Float[Array, "b h w c"]


class Forms(NamedTuple):
    """Numbers of shares; each is [b …]. The defaults change nothing."""

    gain: Values = 0.0  # w − 1, γ − 1
    longest: Values = jnp.inf  # norm of a share, as a change of the denoised picture
    parallel: Values = 1.0  # how much stays of the part that is parallel to the denoised picture
    fitted: Values = 0.0  # how far G is scaled to fit T: 0 not at all, 1 fully


def fitted(prediction: Latents, share: Latents, forms: Forms) -> Latents:
    """A share whose G is scaled by s = <T, G> / |G|², in predictions. Source: CFG-Zero*, arXiv 2503.18886, Eq. 8."""
    scaled = _wide(forms.gain) * prediction - share  # gain · G
    square = _dot(scaled, scaled)
    scale = forms.gain * _dot(prediction, scaled) / jnp.where(square == 0, 1, square)
    return share + _wide(forms.fitted * (1 - scale)) * scaled


def projected(picture: Latents, change: Latents, forms: Forms) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """(how much of the change stays, how much of the picture is added to it), per image.

    picture: the denoised one without the change. Source: APG, arXiv 2410.02416, Algorithm 1: a change that is too long
    is shortened, and its part parallel to the picture, which saturates colours, is reduced.
    """
    length, square = jnp.sqrt(_dot(change, change)), _dot(picture, picture)
    kept = jnp.minimum(1, forms.longest / jnp.where(length == 0, 1, length))
    along = _dot(change, picture) / jnp.where(square == 0, 1, square)
    return kept, kept * (forms.parallel - 1) * along


def guided(
    prediction: Latents, shares: Float[Array, "b shares h w c"], forms: Forms, noisy: Latents, factor: Float[Array, ""]
) -> Latents:
    """The prediction with its shares, the innermost first. The denoised picture is noisy + factor · prediction.

    forms: [b shares].
    """
    for j in range(shares.shape[1]):
        own = Forms(*(jnp.asarray(numbers)[:, j] for numbers in forms))
        share, picture = fitted(prediction, shares[:, j], own), noisy + factor * prediction
        kept, along = projected(picture, factor * share, own)
        prediction = prediction + _wide(kept) * share + _wide(along / factor) * picture
    return prediction


def _dot(a: Latents, b: Latents) -> Float[Array, "b"]:
    return jnp.sum(a * b, axis=(1, 2, 3))


def _wide(a: Any) -> Any:
    return jnp.asarray(a)[:, None, None, None]
