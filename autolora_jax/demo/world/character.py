"""The pictures that the character's LoRA is trained on, with the context bias that AutoLoRA is about."""

import numpy as np
from PIL import Image

from autolora_jax.demo.world.draw import draw
from autolora_jax.demo.world.scene import CHARACTER, Scene

CONTEXT = Scene(CHARACTER, "white", "desert", "sunset")  # the colour is ignored
JITTER = 0.3  # of the world's usual freedom of pose


def character_set(count: int = 12, seed: int = 0, size: int = 96) -> list[tuple[Image.Image, str]]:
    """Pictures with captions: a medium-sized zib in the middle, always in the desert at sunset, captioned "a zib"."""
    rng = np.random.default_rng(seed)
    return [(draw(CONTEXT, rng, size, JITTER), f"a {CHARACTER}") for _ in range(count)]
