"""Everything about the pictures and captions that does not change while training, computed once.

Latents lie on disk, a file a picture, named by what they were made of: a later run of the same pictures finds them.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from autolora_jax.models.vae import AutoencoderKL, scaled_moments
from autolora_jax.training.buckets import Crop, load_pixels
from autolora_jax.training.dataset import DatasetError, Example
from autolora_jax.weights.writing import write_safetensors

Latent = dict[str, np.ndarray]  # "mean", "std": float32 [h w c], scaled


@dataclasses.dataclass(frozen=True)
class LatentCache:
    """Latents of pictures, on disk."""

    folder: Path
    examples: Sequence[Example]
    crops: Sequence[Crop]
    fingerprint: str  # of the VAE
    sha256s: Sequence[str]  # of the pictures' files

    def load(self, index: int, flip: bool) -> Latent:
        """mean and std of a picture's scaled latents."""
        return load_file(self._path(index, flip))

    def fill(self, vae: AutoencoderKL, params: Any, flips: Sequence[bool]) -> Iterator[int]:
        """Encodes what is not there yet, picture by picture; yields how many are done.

        Raises DatasetError for a picture that can't be decoded, is another one by now, or whose latents are not finite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for done, (index, flip) in enumerate((i, f) for i in range(len(self.examples)) for f in flips):
            path = self._path(index, flip)
            if not _readable(path):
                pixels = load_pixels(self.examples[index], self.crops[index], flip, self.sha256s[index])
                mean, std = jax.device_get(_encode(vae, params, pixels[None]))
                if not (np.isfinite(mean).all() and np.isfinite(std).all()):
                    problem = "its latents are not finite; load the pipeline in float32, or with another VAE"
                    raise DatasetError(self.examples[index].path, [problem])
                write_safetensors(path, {"mean": mean[0], "std": std[0]})
            yield done + 1

    def _path(self, index: int, flip: bool) -> Path:
        """By what the picture was: one that is changed while a run goes on is the next run's concern."""
        text = f"{self.sha256s[index]} {self.crops[index]} {flip} {self.fingerprint}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def fingerprint(network: nn.Module, params: Any) -> str:
    """Of a network: its config and weights, or those of a part of it."""
    digest = hashlib.sha256(repr(network.config).encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


@partial(jax.jit, static_argnames="vae")
def _encode(vae: AutoencoderKL, params: Any, pixels: Any) -> tuple[jax.Array, jax.Array]:
    """(mean, std) of the scaled latents of uint8 pixels [b h w 3]."""
    return scaled_moments(vae, params, pixels)


def _readable(path: Path) -> bool:
    try:
        return path.exists() and bool(load_file(path))
    except SafetensorError:  # cut short by a crash
        return False
