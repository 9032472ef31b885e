"""Pictures of given prompts and seeds, one each, as the classifier takes them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autolora_jax import AutoLoRAPipeline
from autolora_jax.noise import initial_noise
from autolora_jax.pipeline import Output
from autolora_jax.settings.rules import Rule
from recipes.builtin.networks import SIZE


def draw_pairs(
    pipe: AutoLoRAPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Rule,
    steps: int,
    batch: int,
    on_batch: Callable[[int], None] | None = None,
    **settings: Any,
) -> np.ndarray:
    """uint8 [n 128 128 3]: picture i of prompt i and seed i. on_batch: told how many more pictures are drawn."""
    factor = pipe.vae.config.factor
    noise = initial_noise(seeds, (SIZE // factor, SIZE // factor, pipe.denoiser.config.in_channels), "jax")

    def tell(output: Output) -> None:
        if on_batch:
            on_batch(len(output.images))

    output = pipe(
        list(prompts),
        latents=noise,
        guidance=guidance,
        num_inference_steps=steps,
        height=SIZE,
        width=SIZE,
        output_type="np",
        batch_size=max(1, batch // pipe.mesh.size),
        on_images=tell,
        **settings,
    )
    return output.images
