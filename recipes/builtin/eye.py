"""Says what a picture of the second edition's world shows: a small convolutional network, an answer per attribute.

All but the network is autolora_jax/demo/classifier.py's, whose network's place it takes when the model is trained. Its
first layers are also what the autoencoder's perceptual loss looks with.
"""

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from autolora_jax.demo import classifier as demo
from recipes.builtin.words import LABELS, named

SIZE = 128  # pixels along a side
FEATURES = 128


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


class Classifier(demo.Classifier):
    """The trained network, ready to judge pictures [n 128 128 3]."""

    network, side = Network(), SIZE


agreement = partial(demo.agreement, named=named)
