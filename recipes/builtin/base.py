"""The base model: denoiser and both text encoders, trained together from scratch on latents of the world's pictures."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track
from transformers import CLIPTokenizer

from autolora_jax.demo.world import caption
from autolora_jax.settings import OptimizerConfig
from autolora_jax.settings.training import LossConfig
from autolora_jax.sharding import data_mesh
from autolora_jax.text.sdxl import ENCODERS, join
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.denoiser import DenoiserLoss
from autolora_jax.training.loop import fit
from autolora_jax.training.objective import Objective
from autolora_jax.training.optimizer import make_optimizer
from autolora_jax.training.step import State, initial_state
from recipes.builtin.console import Console
from recipes.builtin.networks import MERGES, NETWORKS, SCHEDULER, SIZE, fresh
from recipes.builtin.pictures import pictures
from recipes.builtin.tokenizer import EOS, write_tokenizer

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=300, weight_decay=1e-2, beta2=0.99)
CAPTIONS = 4  # different ones of each picture
PADDING = {"text_encoder": EOS, "text_encoder_2": "!"}  # as SDXL's two tokenizers pad
DROPOUT = 0.1


class Corpus(NamedTuple):
    """Everything that batches are made of."""

    mean: np.ndarray  # [n h w c], not scaled
    std: np.ndarray
    ids: dict[str, np.ndarray]  # encoder -> [n captions 77]
    empty: dict[str, np.ndarray]  # encoder -> [77]

    @property
    def scaling_factor(self) -> float:
        """That brings the latents to unit variance."""
        return float(1 / np.sqrt(np.var(self.mean) + np.mean(self.std**2)))


def corpus(work: Path, vae: Any, count: int) -> Corpus:
    """The first `count` pictures through the autoencoder, with their captions as tokens."""
    drawn = pictures(work / "pictures", count, SIZE)
    path = work / f"latents-{count}.npz"
    if not path.exists():
        mean, std = _encode_all(drawn.pixels, vae)
        np.savez(path, mean=mean, std=std)
    latents = np.load(path)
    rng = np.random.default_rng(2)
    texts = [caption(scene, rng) for scene in drawn.scenes for _ in range(CAPTIONS)]
    ids, empty = {}, {}
    for name in ENCODERS:
        folder = work / f"tokenizer-{name}"
        write_tokenizer(folder, PADDING[name], MERGES)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        encode = partial(tokenizer, padding="max_length", max_length=77, return_tensors="np")
        ids[name] = encode(texts).input_ids.astype(np.int32).reshape(count, CAPTIONS, 77)
        empty[name] = encode([""]).input_ids[0].astype(np.int32)
    return Corpus(latents["mean"], latents["std"], ids, empty)


def _encode_all(pixels: np.ndarray, params: Any, rows: int = 50) -> tuple[np.ndarray, np.ndarray]:
    @jax.jit
    def encode(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, logvar = NETWORKS["vae"].apply({"params": params}, x / 127.5 - 1, method="encode")
        return mean, jax.numpy.exp(logvar / 2)

    parts = []
    for start in track(range(0, len(pixels), rows), "encoding"):
        parts.append(jax.device_get(encode(params, pixels[start : start + rows].astype(np.float32))))
    mean, std = (np.concatenate(side) for side in zip(*parts, strict=True))
    return mean, std


def train(work: Path, data: Corpus, steps: int, rows: int) -> State:
    """The trained state of {"unet", "text_encoder", "text_encoder_2"}; `.average` are the weights to use."""
    mesh = data_mesh()
    scale = np.float32(data.scaling_factor)
    time_ids = np.array([SIZE, SIZE, 0, 0, SIZE, SIZE], np.float32)

    def batch_at(step: int) -> dict[str, Any]:
        rng = np.random.default_rng((3, step))
        index = rng.integers(len(data.mean), size=rows)
        which = rng.integers(CAPTIONS, size=rows)
        batch = {
            "mean": data.mean[index] * scale,
            "std": data.std[index] * scale,
            "sizes": {"time_ids": np.tile(time_ids, (rows, 1))},
            "draw": step * rows + np.arange(rows, dtype=np.int32),
            "prompt": {name: ids[index, which] for name, ids in data.ids.items()},
        }
        return jax.tree.map(lambda leaf: leaf[None], batch)

    loss = DenoiserLoss(
        name="unet",
        denoiser=NETWORKS["unet"],
        encoders=tuple((name, NETWORKS[name]) for name in ENCODERS),
        join=join,
        objective=Objective(SCHEDULER, LossConfig(min_snr_gamma=None)),
        caption_dropout=DROPOUT,
    )
    optimizer = make_optimizer(OPTIMIZER, steps)
    trainable = {name: fresh(name, seed) for seed, name in enumerate(("unet", *ENCODERS), start=1)}
    state = initial_state(trainable, optimizer, average=True)
    frozen = {"seed": np.int32(2), "empty_prompt": data.empty, "params": {}}
    settings = {"steps": steps, "rows": rows, "pictures": len(data.mean)}
    with Checkpoints(work / "base", settings) as checkpoints, Console("base") as console:
        return fit(
            loss,
            optimizer,
            state,
            frozen,
            batch_at,
            steps,
            mesh,
            decay=0.999,
            checkpoints=checkpoints,
            save_every=500,
            on_step=console.show,
        )
