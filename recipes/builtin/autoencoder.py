"""The VAE, trained on crops of the world's pictures: pixels and edges come back sharp, latents stay near unit variance.

Source: arXiv 2112.10752, section 3.1 (a KL-regularised autoencoder with a perceptual and a patch-based adversarial
term). The perceptual term looks with our own classifier of the world; beside it stand a pyramid of L1 errors and of
their gradients. Encoder and decoder learn together in the first rounds; later ones train the decoder alone, so that
latents stay what the base model knows.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.settings import OptimizerConfig
from recipes.builtin import eye, stages
from recipes.builtin.networks import NETWORKS, SIZE, fresh
from recipes.builtin.pictures import pictures
from recipes.builtin.stages import Run, Stage

NAME = "autoencoder"
CROP = 64
ROWS = 8
DECODING = ("decoder", "post_quant_conv")  # what a round of the decoder alone trains


class Round(NamedTuple):
    """perceptual: weight of that term. adversarial: how long its gradient is by the others', at the decoded pixels.

    halved: weight of the errors that pictures of half the size have, decoded from latents of half the size: what is
    near each other in a picture is then alike in its latents, which are easier to draw (arXiv 2502.09509).
    whole: whether the encoder learns too.
    """

    steps: int
    rate: float
    adversarial: float = 0.0
    perceptual: float = 0.0
    halved: float = 0.0
    whole: bool = True

    @property
    def optimizer(self) -> OptimizerConfig:
        """The rate falls to zero in the end: every round ends with weights to use."""
        return OptimizerConfig(learning_rate=self.rate, warmup_steps=100, weight_decay=0.0, beta2=0.99)


ROUNDS = (
    Round(1200, 2e-3),
    Round(2500, 4e-3, perceptual=0.5),
    Round(1500, 3e-3, perceptual=0.5, halved=0.5),
    Round(4000, 4e-3, perceptual=0.5, whole=False),
    Round(3000, 1e-3, adversarial=0.2, perceptual=0.5, whole=False),
)


class Critic(nn.Module):
    """Tells drawn patches from decoded ones: a score for each of many overlapping patches of 31 pixels.

    Source: arXiv 1611.07004, appendix 6.1.2 (PatchGAN), smaller and without batch statistics.
    """

    widths: tuple[int, ...] = (32, 64, 96)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b _ _ 1"]:
        for i, width in enumerate(self.widths):
            stride = (1, 1) if i == 2 else (2, 2)
            x = nn.Conv(width, (4, 4), stride, name=f"conv_{i}")(x)
            if i:
                x = nn.GroupNorm(num_groups=8, epsilon=1e-5, name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Conv(1, (3, 3), name="conv_out")(x)


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """A `step.Loss` over batches {"pixels": uint8 [b h w 3], "draw": int32 [b]}, of the trainable {"vae", "critic"}.

    One pass serves both sides: the autoencoder's terms hold the critic still, the critic's hold the decoded pictures
    still. frozen: {"seed": int32, "encoder": weights that the trainable ones lack, "eye": the classifier's}.

    kl: weight of the divergence from unit Gaussians, per latent value. edges: weight of the errors of differences
    between neighbouring pixels. levels: sizes of the pyramid, each half the one before. looks: layers of the classifier
    that the perceptual term compares.
    """

    vae: AutoencoderKL
    adversarial: float
    perceptual: float
    halved: float = 0.0
    kl: float = 2e-4
    edges: float = 1.0
    levels: int = 3
    looks: int = 3

    def __call__(self, params: Any, frozen: Any, batch: Any) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1
        vae = {"params": {**frozen["encoder"], **params["vae"]}}
        mean, logvar = self.vae.apply(vae, pixels, method="encode")
        seed = jax.random.key(frozen["seed"])
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(seed, i), mean.shape[1:]))(batch["draw"])
        latents = mean + jnp.exp(logvar / 2) * noise
        decoded = self.vae.apply(vae, latents, method="decode")
        assert isinstance(decoded, jax.Array)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean(axis=(1, 2, 3))
        likeness = self._likeness(frozen, decoded, pixels)
        losses = likeness + self.kl * divergence
        if self.halved:
            smaller = self.vae.apply(vae, _halved(latents), method="decode")
            pixel_error, edge_error = self._errors(smaller - _halved(pixels))
            losses += self.halved * (pixel_error + self.edges * edge_error)
        metrics = {"pixels": jnp.abs(decoded - pixels).mean(axis=(1, 2, 3)), "divergence": divergence}
        if self.adversarial:
            fools, tells, share = self._contest(params["critic"], frozen, decoded, pixels)
            metrics |= {"fools": fools, "tells": tells, "share": share}
            losses += share * fools + tells
        return losses, metrics

    def _likeness(self, frozen: Any, decoded: Array, pixels: Array) -> Float[Array, "b"]:
        """How unlike the two are: pixels, edges, and what the classifier sees."""
        pixel_error, edge_error = self._errors(decoded - pixels)
        error = pixel_error + self.edges * edge_error
        return error + self.perceptual * self._seen(frozen["eye"], decoded, pixels) if self.perceptual else error

    def _errors(self, error: Float[Array, "b h w c"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """(mean absolute error, mean absolute error of differences), means over the pyramid."""
        pixels: list[Array] = []
        edges: list[Array] = []
        for _ in range(self.levels):
            pixels.append(jnp.abs(error).mean(axis=(1, 2, 3)))
            edges.extend(jnp.abs(jnp.diff(error, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
            error = _halved(error)
        return jnp.stack(pixels).mean(axis=0), jnp.stack(edges).mean(axis=0)

    def _seen(self, params: Any, decoded: Array, pixels: Array) -> Float[Array, "b"]:
        """How differently the classifier's first layers see the two, each layer's error relative to what it sees."""
        both = jnp.concatenate([decoded, pixels])
        maps = eye.Network().apply({"params": params}, both, self.looks, method="maps")
        errors = []
        for seen in maps:
            mine, theirs = jnp.split(seen, 2)
            theirs = jax.lax.stop_gradient(theirs)
            errors.append(jnp.abs(mine - theirs).mean(axis=(1, 2, 3)) / theirs.mean())
        return jnp.stack(errors).mean(axis=0)

    def _contest(
        self, params: Any, frozen: Any, decoded: Array, pixels: Array
    ) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
        """(the autoencoder's loss before the critic, the critic's hinge loss, the former's weight).

        Source of the weight: arXiv 2012.09841, equation 7, with gradients at the pixels in the place of a last layer's.
        """
        still, shown = jax.lax.stop_gradient((params, decoded))

        def fooling(x: Array) -> Float[Array, "b"]:
            return -Critic().apply({"params": still}, x).mean(axis=(1, 2, 3))

        false, true = jnp.split(Critic().apply({"params": params}, jnp.concatenate([shown, pixels])), 2)
        tells = jax.nn.relu(1 + false).mean(axis=(1, 2, 3)) + jax.nn.relu(1 - true).mean(axis=(1, 2, 3))
        lengths = [
            jnp.sqrt(jnp.square(jax.grad(lambda x, f=f: f(x).sum())(shown)).sum())
            for f in (fooling, lambda x: self._likeness(frozen, x, pixels))
        ]
        share = self.adversarial * lengths[1] / jnp.maximum(lengths[0], 1e-6)
        return fooling(decoded), tells, jnp.full(len(pixels), jax.lax.stop_gradient(share))


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """At half the size: means of two by two."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def begin() -> dict[str, Any]:
    """Weights before the first round."""
    critic = Critic().init(jax.random.key(9), jnp.zeros((1, CROP, CROP, 3)))["params"]
    return {"vae": fresh("vae", 0), "critic": critic}


def train(work: Path, folder: Path, count: int, rounds: int) -> Stage:
    """The stage after its first `rounds` rounds, trained on `count` pictures of the world and some of others."""

    def prepare(number: int, weights: Mapping[str, Any]) -> Run:
        return _run(ROUNDS[number], number, weights, work / "pictures", folder, count)

    return stages.train(NAME, ROUNDS[:rounds], begin, prepare, work, folder)


def _run(plan: Round, number: int, weights: Mapping[str, Any], drawings: Path, folder: Path, count: int) -> Run:
    # The LoRAs' pictures must pass through it too: the world's own have no hard blocks and no creature in teal.
    shares = {"world": count, "pixel-art": count // 6, "character": count // 10}
    drawn = np.concatenate([pictures(drawings, n, SIZE, kind).pixels for kind, n in shares.items()])

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((1, number, step))
        index = np.sort(rng.integers(len(drawn), size=ROWS))
        corners = rng.integers(SIZE - CROP + 1, size=(ROWS, 2))
        crops = np.stack([drawn[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corners, strict=True)])
        flip = rng.random(ROWS) < 0.5
        crops[flip] = crops[flip, :, ::-1]
        return {"pixels": crops[None], "draw": (step * ROWS + np.arange(ROWS, dtype=np.int32))[None]}

    frozen: dict[str, Any] = {"seed": np.int32(1 + number)}
    if plan.perceptual:
        looks = stages.load("classifier", folder)
        if looks is None:
            raise FileNotFoundError(f"the perceptual term looks with the classifier, and {folder} has none: train it")
        frozen["eye"] = looks.weights
    vae = weights["vae"]
    learns = {name: tree for name, tree in vae.items() if plan.whole or name in DECODING}
    frozen["encoder"] = {name: tree for name, tree in vae.items() if name not in learns}
    return Run(
        {"vae": learns, "critic": weights["critic"]},
        AutoencoderLoss(NETWORKS["vae"], plan.adversarial, plan.perceptual, plan.halved),
        frozen,
        batch_at,
        {**plan._asdict(), "pictures": count},
        decay=0.998,
        whole=lambda trained: {**trained, "vae": {**frozen["encoder"], **trained["vae"]}},
    )
