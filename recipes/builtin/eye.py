"""Says what a picture of the second edition's world shows: a small convolutional network, an answer per attribute.

It has the interface of autolora_jax/demo/classifier.py, whose place it takes when the model is trained. Its first
layers are also what the autoencoder's perceptual loss looks with. It always chooses: what is none of the world's
subjects is called one of them all the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from recipes.builtin.words import CHARACTER, LABELS, named

SIZE = 128  # pixels along a side
FEATURES = 128
BATCH = 64  # pictures judged together; the last batch is filled up, so that one program serves any number


class Network(nn.Module):
    """Pictures in [-1, 1] -> (logits of every attribute, features). Halves the picture five times."""

    widths: tuple[int, ...] = (24, 48, 64, 96, 128)

    def setup(self) -> None:
        self.conv = [nn.Conv(width, (3, 3), (2, 2), padding=((1, 1), (1, 1))) for width in self.widths]
        # Without a norm the first layer keeps what brightness says about the sky.
        self.norm = [nn.GroupNorm(num_groups=8, epsilon=1e-5) for _ in self.widths[1:]]
        self.features = nn.Dense(FEATURES)
        self.heads = {name: nn.Dense(len(words)) for name, words in LABELS.items()}

    def maps(self, x: Float[Array, "b h w 3"], count: int | None = None) -> list[Float[Array, "b _ _ _"]]:
        """What the first `count` layers see, each at half the size of the one before."""
        seen = []
        for i, conv in enumerate(self.conv[:count]):
            x = conv(x)
            x = nn.relu(self.norm[i - 1](x) if i else x)
            seen.append(x)
        return seen

    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[dict[str, Float[Array, "b _"]], Float[Array, "b d"]]:
        x = self.maps(x)[-1]
        x = x.reshape(x.shape[0], -1)  # the 4 x 4 places stay apart: side and size are where things are
        features = nn.relu(self.features(x))
        return {name: head(features) for name, head in self.heads.items()}, features


class Judgement(NamedTuple):
    """What n pictures show, float32. probabilities: attribute of LABELS -> [n classes]; features: [n d], >= 0."""

    probabilities: dict[str, Float32[np.ndarray, "n _"]]
    features: Float32[np.ndarray, "n d"]

    @property
    def presence(self) -> Float32[np.ndarray, "n"]:
        """The probability that each picture shows the character."""
        return self.probabilities["subject"][:, LABELS["subject"].index(CHARACTER)]

    @property
    def classes(self) -> dict[str, Int[np.ndarray, "n"]]:
        """The likeliest class of each attribute."""
        return {name: p.argmax(axis=1) for name, p in self.probabilities.items()}


class Agreement(NamedTuple):
    """How n pictures agree with what their captions say.

    right: attribute -> [n], 1 right, 0 wrong, NaN where the caption does not speak of it.
    """

    right: dict[str, Float[np.ndarray, "n"]]

    @property
    def mean(self) -> Float[np.ndarray, "n"]:
        """What is right of all that is spoken of; NaN where nothing is."""
        table = np.stack([*self.right.values()])  # [attributes n]
        with np.errstate(invalid="ignore"):  # 0 / 0
            return np.nansum(table, axis=0) / (~np.isnan(table)).sum(axis=0)

    @property
    def all_right(self) -> Float[np.ndarray, "n"]:
        """1 where everything is right that the caption says."""
        return np.where(np.isnan(self.mean), np.nan, self.mean == 1)


class Classifier:
    """The trained network, ready to judge."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def __call__(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Judgement:
        """Judges pictures [n 128 128 3]; a picture's judgement does not depend on the others."""
        if pixels.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"pictures have shape {pixels.shape}; the classifier knows [n {SIZE} {SIZE} 3]")
        if not len(pixels):
            raise ValueError("no pictures to judge")
        parts = []
        for first in range(0, len(pixels), BATCH):
            rows = pixels[first : first + BATCH]
            full = np.concatenate([rows, np.zeros((BATCH - len(rows), *rows.shape[1:]), np.uint8)])
            parts.append(jax.tree.map(np.asarray, _judge(self.params, full)))
        return Judgement(*jax.tree.map(lambda *x: np.concatenate(x)[: len(pixels)], *parts))


def agreement(judgement: Judgement, captions: Sequence[str]) -> Agreement:
    """How the pictures agree with what is said of the world: one caption a picture."""
    said, found = [named(caption) for caption in captions], judgement.classes
    right = {
        name: [float(found[name][i] == words[name]) if name in words else np.nan for i, words in enumerate(said)]
        for name in LABELS
    }
    return Agreement({name: np.array(values, np.float64) for name, values in right.items()})


@jax.jit
def _judge(params: Any, pixels: UInt8[Array, "n h w c"]) -> tuple[dict[str, Float[Array, "n _"]], Float[Array, "n d"]]:
    logits, features = Network().apply({"params": params}, normalised(pixels))
    return {name: jax.nn.softmax(x) for name, x in logits.items()}, features


def normalised(pixels: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Bytes as the network takes them, in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1
