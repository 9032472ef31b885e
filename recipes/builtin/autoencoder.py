"""The VAE, trained on crops of the world's pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autolora_jax.settings import OptimizerConfig
from autolora_jax.sharding import data_mesh
from autolora_jax.training.autoencoder import AutoencoderLoss
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.loop import fit
from autolora_jax.training.optimizer import make_optimizer
from autolora_jax.training.step import State, initial_state
from recipes.builtin.console import Console
from recipes.builtin.networks import NETWORKS, SIZE, fresh
from recipes.builtin.pictures import pictures

CROP = 64
OPTIMIZER = OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.0, beta2=0.99)


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
