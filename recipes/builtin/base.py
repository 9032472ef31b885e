"""The base model: denoiser and both text encoders, trained together from scratch on latents of the world's pictures."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track
from transformers import CLIPTokenizer

from autolora_jax.settings import OptimizerConfig
from autolora_jax.settings.training import LossConfig
from autolora_jax.text.sdxl import ENCODERS, join
from autolora_jax.training.denoiser import DenoiserLoss
from autolora_jax.training.objective import Objective
from recipes.builtin import stages
from recipes.builtin.networks import MERGES, NETWORKS, SCHEDULER, SIZE, fresh
from recipes.builtin.pictures import pictures
from recipes.builtin.stages import Run, Stage
from recipes.builtin.tokenizer import EOS, write_tokenizer
from recipes.builtin.words import caption

NAME = "base"
ROWS = 32
CAPTIONS = 4  # different ones of each picture
PADDING = {"text_encoder": EOS, "text_encoder_2": "!"}  # as SDXL's two tokenizers pad
DROPOUT = 0.1


class Round(NamedTuple):
    """Each learns from pictures of its own. schedule: what the rate does, see training.optimizer.SCHEDULES.

    tokens: how many of a text's 77 the denoiser attends to; captions have up to 20, and what is left are paddings that
    only the last rounds have to get used to. words: whether the text encoders learn too.
    """

    steps: int
    rate: float
    schedule: str = "constant"  # the averaged weights are of use at any time
    tokens: int = 32
    words: bool = True

    @property
    def optimizer(self) -> OptimizerConfig:
        """The rate rises at the beginning of every round, whose optimizer knows nothing yet."""
        return OptimizerConfig(
            learning_rate=self.rate, warmup_steps=100, schedule=self.schedule, weight_decay=1e-2, beta2=0.99
        )


ROUNDS = (
    *[Round(2500, 4e-3)] * 2,
    *[Round(2500, 4e-3, words=False)] * 2,
    Round(2500, 3e-3, tokens=77, words=False),
    Round(4000, 2e-3, "cosine", tokens=77, words=False),
)


class Corpus(NamedTuple):
    """Everything that batches are made of."""

    mean: np.ndarray  # float16 [n h w c], not scaled
    std: np.ndarray
    ids: dict[str, np.ndarray]  # encoder -> [n captions 77]
    empty: dict[str, np.ndarray]  # encoder -> [77]

    @property
    def scaling_factor(self) -> float:
        """That brings the latents to unit variance."""
        return float(1 / np.sqrt(np.var(self.mean, dtype=np.float64) + np.mean(np.square(self.std, dtype=np.float64))))


def corpus(work: Path, vae: Any, count: int, seed: int) -> Corpus:
    """`count` pictures through the autoencoder, with their captions as tokens."""
    drawn = pictures(work / "pictures", count, SIZE, seed=seed)
    path = work / f"latents-{seed}-{count}.npz"
    if not path.exists():
        mean, std = _encode_all(drawn.pixels, vae)
        np.savez(path, mean=mean, std=std)
    latents = np.load(path)
    rng = np.random.default_rng((2, seed))
    texts = [caption(scene, rng) for scene in drawn.scenes for _ in range(CAPTIONS)]
    ids, empty = {}, {}
    for name in ENCODERS:
        folder = work / f"tokenizer-{name}"
        write_tokenizer(folder, PADDING[name], MERGES)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        encode = partial(tokenizer, padding="max_length", max_length=77, return_tensors="np")
        ids[name] = encode(texts).input_ids.astype(np.int16).reshape(count, CAPTIONS, 77)
        empty[name] = encode([""]).input_ids[0].astype(np.int32)
    return Corpus(latents["mean"], latents["std"], ids, empty)


def _encode_all(pixels: np.ndarray, params: Any, rows: int = 50) -> tuple[np.ndarray, np.ndarray]:
    @jax.jit
    def encode(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, logvar = NETWORKS["vae"].apply({"params": params}, x / 127.5 - 1, method="encode")
        return mean.astype(np.float16), jax.numpy.exp(logvar / 2).astype(np.float16)

    parts = []
    for start in track(range(0, len(pixels), rows), "encoding"):
        parts.append(jax.device_get(encode(params, pixels[start : start + rows].astype(np.float32))))
    mean, std = (np.concatenate(side) for side in zip(*parts, strict=True))
    return mean, std


def begin() -> dict[str, Any]:
    """Weights before the first round; the latents' scaling factor joins them when there are latents."""
    return {name: fresh(name, seed) for seed, name in enumerate(("unet", *ENCODERS), start=1)}


def train(work: Path, folder: Path, count: int, rounds: int) -> Stage:
    """The stage after its first `rounds` rounds, of `count` pictures each."""
    time_ids = np.array([SIZE, SIZE, 0, 0, SIZE, SIZE], np.float32)
    loss = DenoiserLoss(
        name="unet",
        denoiser=NETWORKS["unet"],
        encoders=tuple((name, NETWORKS[name]) for name in ENCODERS),
        join=join,
        objective=Objective(SCHEDULER, LossConfig(min_snr_gamma=None)),
        caption_dropout=DROPOUT,
    )

    def prepare(number: int, weights: Any) -> Run:
        coder = stages.load("autoencoder", folder)
        if coder is None:
            raise FileNotFoundError(f"the base model learns the autoencoder's latents, and {folder} has none: train it")
        data = corpus(work, coder.weights["vae"], count, 100 + number)
        factor = np.array([data.scaling_factor], np.float16).astype(np.float32)  # as a stage's file has it
        plan = ROUNDS[number]
        held = {"scaling_factor": weights.get("scaling_factor", factor)}
        factor = held["scaling_factor"]
        known = {} if plan.words else {name: weights[name] for name in ENCODERS}

        def batch_at(step: int) -> dict[str, Any]:
            rng = np.random.default_rng((3, number, step))
            index = rng.integers(len(data.mean), size=ROWS)
            which = rng.integers(CAPTIONS, size=ROWS)
            batch = {
                "mean": data.mean[index].astype(np.float32) * factor,
                "std": data.std[index].astype(np.float32) * factor,
                "sizes": {"time_ids": np.tile(time_ids, (ROWS, 1))},
                "draw": step * ROWS + np.arange(ROWS, dtype=np.int32),
                "prompt": {name: ids[index, which, : plan.tokens].astype(np.int32) for name, ids in data.ids.items()},
            }
            return jax.tree.map(lambda leaf: leaf[None], batch)

        return Run(
            {name: tree for name, tree in weights.items() if name not in {**held, **known}},
            loss,
            {
                "seed": np.int32(2 + number),
                "empty_prompt": {name: ids[: plan.tokens] for name, ids in data.empty.items()},
                "params": known,
            },
            batch_at,
            {**plan._asdict(), "pictures": count},
            decay=0.998,
            whole=lambda trained: {**trained, **known, **held},
        )

    return stages.train(NAME, ROUNDS[:rounds], begin, prepare, work, folder)
