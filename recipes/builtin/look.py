"""What training has come to: drawn pictures, the autoencoder's of them, the base model's; and in figures."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from autolora_jax import CFG, AutoLoRAPipeline
from recipes.builtin import package, stages
from recipes.builtin.drawing import draw_pairs
from recipes.builtin.networks import NETWORKS, SIZE
from recipes.builtin.words import full_caption, sample_scene
from recipes.builtin.world import draw

SEED = 30  # of pictures that no stage is trained on
Pixels = UInt8[np.ndarray, "n h w 3"]


def autoencoded(params: Any, pixels: Pixels) -> Pixels:
    """Pictures through the autoencoder, by the latents' mean."""

    @jax.jit
    def through(params: Any, x: jax.Array) -> jax.Array:
        decoded = NETWORKS["vae"].apply({"params": params}, x / 127.5 - 1)
        assert isinstance(decoded, jax.Array)
        return jnp.clip(decoded * 127.5 + 128, 0, 255).astype(jnp.uint8)

    return np.concatenate([np.asarray(through(params, one[None].astype(np.float32))) for one in pixels])


def fidelity(pixels: Pixels, again: Pixels) -> dict[str, float]:
    """How like the pictures their copies are.

    error: mean absolute difference, pixels in [-1, 1]. sharpness: the mean change between neighbouring pixels, by the
    original's; 1 is as sharp.
    """
    before, after = (x.astype(np.float64) / 127.5 for x in (pixels, again))
    return {"error": float(np.abs(before - after).mean()), "sharpness": _change(after) / _change(before)}


def _change(x: Float[np.ndarray, "n h w 3"]) -> float:
    return float(sum(np.abs(np.diff(x, axis=axis)).mean() for axis in (1, 2)))


def look(folder: Path, out: Path, count: int, w: float, enlarged: int) -> dict[str, float]:
    """A sheet of rows, written to `out`: drawn, autoencoded, and by the base model where there is one. The figures."""
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng, held_out=bool(i % 2)) for i in range(count)]
    captions = [full_caption(scene) for scene in scenes]
    drawn = np.stack([np.asarray(draw(scene, rng, SIZE)) for scene in scenes])
    coder, base = (stages.load(name, folder) for name in ("autoencoder", "base"))
    if coder is None:
        raise FileNotFoundError(f"{folder} has no autoencoder yet; python -m recipes.builtin train")
    rows = [drawn, autoencoded(coder.weights["vae"], drawn)]
    if base:
        rows.append(_imagined({**base.weights, "vae": coder.weights["vae"]}, captions, w))
    sheet = np.concatenate([np.concatenate([*row], axis=1) for row in rows])
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.BICUBIC).save(out)
    print(*captions, sep="\n")
    return fidelity(*rows[:2])


def _imagined(weights: Mapping[str, Any], captions: list[str], w: float) -> Pixels:
    params = dict(weights)
    factor = params.pop("scaling_factor").item()
    with TemporaryDirectory() as folder:
        package.write_model(Path(folder), params, factor)
        pipe = AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:1])
        return draw_pairs(pipe, captions, range(len(captions)), CFG(w), 30, len(captions))
