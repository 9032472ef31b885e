"""Large jobs whose pictures are noise, drawn by nobody: what the batch runner costs by itself."""

from collections.abc import Sequence

import numpy as np

from autolora_jax.batch import Drawing, Job, OutputConfig, Pictures, Settings
from autolora_jax.batch.draw import Draw
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.settings import ModelConfig

ROWS = 64  # of a batch


def made_up_job(pictures: int, shard_size: int | None) -> Job:
    """A job of so many pictures."""
    return Job(
        prompts=("a zib in the forest",),
        seeds=range(pictures),
        settings=Settings(model=ModelConfig("builtin", "float32"), num_inference_steps=2),
        output=OutputConfig(shard_size=shard_size),
        batch_size=ROWS,
    )


def noise(side: int) -> Draw:
    """What draws pictures of so many pixels a side; no two of side² look the same."""
    field = np.random.default_rng(0).integers(0, 256, (2 * side, 2 * side, 3), np.uint8)

    def draw(rows: Sequence[Row], batch: Batch) -> Drawing:
        at = [divmod(row.item % side**2, side) for row in rows]
        pixels = np.stack([field[y : y + side, x : x + side] for y, x in at])
        return Drawing({}, lambda: Pictures(pixels, np.ones(len(rows), bool)))

    return draw
