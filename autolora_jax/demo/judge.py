"""The world's own judge of the built-in model's pictures: the paper's scores from 0 to 5 without a language model.

CPS  character presence: 5 × the probability that the classifier gives to the character
PC   prompt correspondence: 5 × the share of what the prompt names that the classifier finds
SA   style adherence: 5 × how much of the picture's change lies on the grid of pixel art, see `pixel_art_share`

and what only this world's classifier is asked, from 0 to 1, whose means are shares:

Surroundings      of the place, sky, size and side that the prompt names, what the classifier finds
All right         1 where it finds everything that the prompt names
Training context  1 where it sees the place and sky of all pictures that the character's LoRA was trained on

And what it sees of the surroundings, whatever the prompt says, for the diversity of each.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

from autolora_jax.demo.classifier import Judgement, agreement
from autolora_jax.demo.world import CONTEXT, LABELS, PIXELS

BEST = 5
SURROUNDINGS = ("place", "sky", "size", "side")
# What the share is of drawn pictures: of the lines between neighbours, a third are lines of the grid.
ORDINARY = 1 / 3  # of 500: 0.331 ± 0.017; 64 through the autoencoder: 0.330 ± 0.013
# Of pixel art as the model's autoencoder, which blurs it, gives 64 of them back: 0.408 ± 0.022. As drawn it is 1.
PIXEL_ART = 0.408


def world_scores(
    judgement: Judgement, pixels: UInt8[np.ndarray, "n h w 3"], prompts: Sequence[str]
) -> dict[str, Float64[np.ndarray, "n"]]:
    """The scores of pictures, by name. Those that depend on the prompt are NaN where it names nothing for them."""
    found = agreement(judgement, prompts)
    trained = [judgement.classes[name] == LABELS[name].index(getattr(CONTEXT, name)) for name in ("place", "sky")]
    return {
        "CPS": BEST * judgement.presence.astype(np.float64),
        "PC": BEST * found.mean,
        "SA": BEST * adherence(pixels),
        "Surroundings": found.share(*SURROUNDINGS),
        "All right": found.all_right,
        "Training context": np.logical_and(*trained).astype(np.float64),
    }


def kinds_of(judgement: Judgement) -> dict[str, Int[np.ndarray, "n"]]:
    """What pictures show of their surroundings: attribute -> the likeliest of demo.world's LABELS, by its number."""
    return {name: judgement.classes[name] for name in SURROUNDINGS}


def adherence(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float64[np.ndarray, "n"]:
    """How much of pixel art there is, 0 to 1: 0 is an ordinary picture, 1 the best that the autoencoder can keep."""
    return np.clip((pixel_art_share(pixels) - ORDINARY) / (PIXEL_ART - ORDINARY), 0.0, 1.0)


def pixel_art_share(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n"]:
    """The share of all change between neighbouring pixels that lies on the lines between the world's big pixels.

    1 where big pixels are each of one colour; one third, as many as there are lines, where nothing knows of them.
    Pictures of one colour: one third.
    """
    side = pixels.shape[1] // PIXELS
    on = total = np.zeros(len(pixels))
    for axis in (1, 2):
        change = np.abs(np.diff(pixels.astype(np.float64), axis=axis))
        along = change.sum(axis=tuple({1, 2, 3} - {axis}))  # [n, lines]
        on, total = on + along[:, side - 1 :: side].sum(axis=1), total + along.sum(axis=1)
    return np.where(total > 0, on / np.where(total > 0, total, 1.0), 1 / side)
