"""How a run of diffusers begins with a picture and keeps a part of it, around any loop, of both families."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """What a run is to change. masks: one each; None: all is drawn anew."""

    images: Sequence[Image.Image]
    masks: Sequence[Image.Image] | None
    strength: float


def pictures(n: int, width: int, height: int) -> list[Image.Image]:
    """Noise in patches, so that resizing and encoding leave something of it."""
    rng = np.random.default_rng(11)
    small = (rng.integers(0, 256, (5, 7, 3), np.uint8) for _ in range(n))
    return [Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC) for pixels in small]


def masks(n: int, width: int, height: int) -> list[Image.Image]:
    """Grey slopes, each cut elsewhere."""
    slope = np.add.outer(np.linspace(0, 1, height), np.linspace(0, 1, width))
    return [Image.fromarray(np.uint8(255 * np.clip(slope / (1 + i / 2), 0, 1))) for i in range(n)]


def draw(generators: Sequence[torch.Generator], like: torch.Tensor) -> torch.Tensor:
    """The generators' next draw, in the shape of one latent."""
    return torch.cat([torch.randn(1, *like.shape[1:], generator=generator) for generator in generators])


class Begun:
    """A run that began: x, its timesteps, and `kept`, called after every step."""

    def __init__(self, vae: Any, solver: Any, picture: Picture, seeds: Sequence[int], height: int, width: int) -> None:
        """solver: whose timesteps are set."""
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        size = {"height": height, "width": width}
        pixels = VaeImageProcessor().preprocess(list(picture.images), **size)
        found = vae.encode(pixels).latent_dist
        raw = found.mean + found.std * draw(self.generators, found.mean)
        self.image = (raw - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        self.noise = draw(self.generators, raw)
        n, flow = len(solver.timesteps), vae.config.shift_factor is not None
        first = int(n - n * picture.strength) if flow else n - int(n * picture.strength)
        self.solver, self.timesteps = solver, solver.timesteps[first:]
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(first)
        self.x = self.noised(self.timesteps[:1].repeat(len(seeds)))
        self.mask = None
        if picture.masks is not None:
            processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
            cells = height // 8, width // 8
            self.mask = torch.nn.functional.interpolate(processor.preprocess(list(picture.masks), **size), size=cells)
            draw(self.generators, raw)  # of the masked picture's latents, which this model does not read
            if picture.strength == 1:
                self.x = self.noise * getattr(solver, "init_noise_sigma", 1.0)

    def noised(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The picture at a timestep."""
        if hasattr(self.solver, "scale_noise"):
            return self.solver.scale_noise(self.image, timesteps, self.noise)
        return self.solver.add_noise(self.image, self.noise, timesteps)

    def kept(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """x after step i, the picture where the mask keeps it."""
        if self.mask is None:
            return x
        last = i == len(self.timesteps) - 1
        known = self.image if last else self.noised(self.timesteps[i + 1 : i + 2])
        return (1 - self.mask) * known + self.mask * x
