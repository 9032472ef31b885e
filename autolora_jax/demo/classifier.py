"""Says what a picture of the built-in world shows: a small convolutional network with one answer per attribute.

Right on fresh pictures, held-out pairs and the character among them (2000 of each kind, 500 of pixel art):

| | subject | colour | place | sky | size | side | all |
|---|---|---|---|---|---|---|---|
| as drawn | 100 % | 100 % | 100 % | 100 % | 100 % | 100 % | 100 % |
| blurred, sigma 1 pixel | 99.95 % | 100 % | 100 % | 100 % | 99.95 % | 100 % | 99.9 % |
| noised, deviation 12 of 255 | 99.95 % | 100 % | 99.95 % | 100 % | 100 % | 100 % | 99.9 % |
| damaged as in training | 99.6 % | 100 % | 99.95 % | 100 % | 99.8 % | 100 % | 99.3 % |
| pixel art | 98.2 % | 99.1 % | 99.8 % | 100 % | 99.8 % | 100 % | 97.2 % |

The character's mean probability is 0.9998 or more where it is and below 0.0001 where it is not. classifier.json holds
these figures. It always chooses: what is none of the world's subjects is called one of them all the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Float32, Int, UInt8
from safetensors.numpy import load_file

from autolora_jax.demo.world import LABELS, named

SIZE = 96  # pixels along a side
FEATURES = 96
WEIGHTS = Path(__file__).with_name("classifier.safetensors")
BATCH = 64  # pictures judged together; the last batch is filled up, so that one program serves any number


class Network(nn.Module):
    """Pictures in [-1, 1] -> (logits of every attribute, features). Halves the picture five times."""

    widths: tuple[int, ...] = (16, 32, 64, 96, 128)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[dict[str, Float[Array, "b _"]], Float[Array, "b d"]]:
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), (2, 2), padding=((1, 1), (1, 1)), name=f"conv_{i}")(x)
            if i:  # without a norm the first layer keeps what brightness says about the sky
                x = nn.GroupNorm(num_groups=8, epsilon=1e-5, name=f"norm_{i}")(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)  # the 3 x 3 places stay apart: side and size are where things are
        features = nn.relu(nn.Dense(FEATURES, name="features")(x))
        return {name: nn.Dense(len(words), name=name)(features) for name, words in LABELS.items()}, features


class Judgement(NamedTuple):
    """What n pictures show, float32. probabilities: attribute of LABELS -> [n classes]; features: [n d], >= 0."""

    probabilities: dict[str, Float32[np.ndarray, "n _"]]
    features: Float32[np.ndarray, "n d"]

    @property
    def presence(self) -> Float32[np.ndarray, "n"]:
        """The probability that each picture shows the character."""
        return self.probabilities["subject"][:, -1]  # the last of a world's subjects

    @property
    def classes(self) -> dict[str, Int[np.ndarray, "n"]]:
        """The likeliest class of each attribute."""
        return {name: p.argmax(axis=1) for name, p in self.probabilities.items()}


class Agreement(NamedTuple):
    """How n pictures agree with what their captions say.

    right: attribute -> [n], 1 right, 0 wrong, NaN where the caption does not speak of it.
    """

    right: dict[str, Float[np.ndarray, "n"]]

    def share(self, *attributes: str) -> Float[np.ndarray, "n"]:
        """What is right of these attributes, as far as they are spoken of; NaN where none is."""
        table = np.stack([self.right[name] for name in attributes])  # [attributes n]
        with np.errstate(invalid="ignore"):  # 0 / 0
            return np.nansum(table, axis=0) / (~np.isnan(table)).sum(axis=0)

    @property
    def mean(self) -> Float[np.ndarray, "n"]:
        """Over all attributes."""
        return self.share(*self.right)

    @property
    def all_right(self) -> Float[np.ndarray, "n"]:
        """1 where everything is right that the caption says."""
        return np.where(np.isnan(self.mean), np.nan, self.mean == 1)


class Classifier:
    """The trained network, ready to judge."""

    network: ClassVar[nn.Module] = Network()
    side: ClassVar[int] = SIZE  # of pictures, pixels

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Classifier":
        """The shipped one. Raises FileNotFoundError when the file is not there."""
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; reinstall autolora-jax")
        return cls(traverse_util.unflatten_dict(load_file(path), sep="/"))

    def tensors(self) -> dict[str, np.ndarray]:
        """What its file holds: the weights in half precision."""
        flat = traverse_util.flatten_dict(self.params, sep="/")
        return {name: np.asarray(leaf, np.float16) for name, leaf in flat.items()}

    def __call__(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Judgement:
        """Judges pictures [n side side 3]; a picture's judgement does not depend on the others."""
        if pixels.shape[1:] != (self.side, self.side, 3):
            raise ValueError(f"pictures have shape {pixels.shape}; the classifier knows [n {self.side} {self.side} 3]")
        if not len(pixels):
            raise ValueError("no pictures to judge")
        parts = []
        for first in range(0, len(pixels), BATCH):
            rows = pixels[first : first + BATCH]
            full = np.concatenate([rows, np.zeros((BATCH - len(rows), *rows.shape[1:]), np.uint8)])
            parts.append(jax.tree.map(np.asarray, _judge(self.network, self.params, full)))
        return Judgement(*jax.tree.map(lambda *x: np.concatenate(x)[: len(pixels)], *parts))


def agreement(
    judgement: Judgement, captions: Sequence[str], named: Callable[[str], dict[str, int]] = named
) -> Agreement:
    """How the pictures agree with what is said of the world: one caption a picture. named: what a text names of it."""
    said, found = [named(caption) for caption in captions], judgement.classes
    right = {
        name: [float(found[name][i] == words[name]) if name in words else np.nan for i, words in enumerate(said)]
        for name in found
    }
    return Agreement({name: np.array(values, np.float64) for name, values in right.items()})


@partial(jax.jit, static_argnums=0)
def _judge(
    network: nn.Module, params: Any, pixels: UInt8[Array, "n h w c"]
) -> tuple[dict[str, Float[Array, "n _"]], Float[Array, "n d"]]:
    logits, features = network.apply({"params": params}, normalised(pixels))
    return {name: jax.nn.softmax(x) for name, x in logits.items()}, features


def normalised(pixels: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Bytes as the network takes them, in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1
