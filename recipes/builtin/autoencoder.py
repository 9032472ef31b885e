"""The VAE, trained on crops of the world's pictures: pixels and edges come back, latents stay near unit variance.

Source: arXiv 2112.10752, section 3.1 (KL-regularised autoencoder), with a pyramid of L1 errors and their gradients in
the place of a pretrained perceptual loss.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.settings import OptimizerConfig
from autolora_jax.sharding import data_mesh
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.loop import fit
from autolora_jax.training.optimizer import make_optimizer
from autolora_jax.training.step import State, initial_state
from recipes.builtin.console import Console
from recipes.builtin.networks import NETWORKS, SIZE, fresh
from recipes.builtin.pictures import pictures

CROP = 64
OPTIMIZER = OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.0, beta2=0.99)


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """A `step.Loss` over batches {"pixels": uint8 [b h w 3], "draw": int32 [b]}; frozen: {"seed": int32}.

    kl: weight of the divergence from unit Gaussians, per latent value. edges: weight of the errors of differences
    between neighbouring pixels. levels: sizes of the pyramid, each half the one before.
    """

    vae: AutoencoderKL
    kl: float = 1e-3
    edges: float = 1.0
    levels: int = 3

    def __call__(self, params: Any, frozen: Any, batch: Any) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1
        mean, logvar = self.vae.apply({"params": params}, pixels, method="encode")
        seed = jax.random.key(frozen["seed"])
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(seed, i), mean.shape[1:]))(batch["draw"])
        decoded = self.vae.apply({"params": params}, mean + jnp.exp(logvar / 2) * noise, method="decode")
        pixel_error, edge_error = self._errors(decoded - pixels)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean(axis=(1, 2, 3))
        losses = pixel_error + self.edges * edge_error + self.kl * divergence
        return losses, {"pixels": jnp.abs(decoded - pixels).mean(axis=(1, 2, 3)), "divergence": divergence}

    def _errors(self, error: Float[Array, "b h w c"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """(mean absolute error, mean absolute error of differences), means over the pyramid."""
        pixels: list[Array] = []
        edges: list[Array] = []
        for _ in range(self.levels):
            pixels.append(jnp.abs(error).mean(axis=(1, 2, 3)))
            edges.extend(jnp.abs(jnp.diff(error, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
            b, h, w, c = error.shape
            error = error.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
        return jnp.stack(pixels).mean(axis=0), jnp.stack(edges).mean(axis=0)


def train(work: Path, rounds: Sequence[int], rows: int, count: int) -> Any:
    """The trained weights. rounds: steps of each; all begin with the last one's weights and the full rate."""
    params = fresh("vae", 0)
    for i, steps in enumerate(rounds):
        params = _round(work / f"vae-{i}", params, steps, i, rows, work / "pictures", count).average
    return params


def _round(folder: Path, params: Any, steps: int, number: int, rows: int, drawings: Path, count: int) -> State:
    # The LoRAs' pictures must pass through it too: the world's own have no hard blocks and no creature in teal.
    shares = {"world": count, "pixel-art": count // 6, "character": count // 10}
    drawn = np.concatenate([pictures(drawings, n, SIZE, kind).pixels for kind, n in shares.items()])
    mesh = data_mesh()

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((1, number, step))
        index = np.sort(rng.integers(len(drawn), size=rows))
        corners = rng.integers(SIZE - CROP + 1, size=(rows, 2))
        crops = np.stack([drawn[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corners, strict=True)])
        flip = rng.random(rows) < 0.5
        crops[flip] = crops[flip, :, ::-1]
        return {"pixels": crops[None], "draw": (step * rows + np.arange(rows, dtype=np.int32))[None]}

    loss = AutoencoderLoss(NETWORKS["vae"], kl=3e-4)
    optimizer = make_optimizer(OPTIMIZER, steps)
    state = initial_state(params, optimizer, average=True)
    settings = {"steps": steps, "rows": rows, "count": count}
    with Checkpoints(folder, settings) as checkpoints, Console("autoencoder") as console:
        return fit(
            loss,
            optimizer,
            state,
            {"seed": np.int32(1 + number)},
            batch_at,
            steps,
            mesh,
            decay=0.998,
            checkpoints=checkpoints,
            save_every=500,
            on_step=console.show,
        )
