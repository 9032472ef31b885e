"""A folder of pictures as a LoRA run's batches: latents from the cache, prompts embedded or as token ids."""

import hashlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.settings.training import DataConfig, TrainConfig
from autolora_jax.text import Prompts, Sizes, TextSettings
from autolora_jax.text.stage import ANY_SIZE, same_text
from autolora_jax.training.buckets import Plan, assign_all, make_buckets
from autolora_jax.training.cache import LatentCache, fingerprint
from autolora_jax.training.dataset import Example, read_folder
from autolora_jax.training.hashes import sha256s
from autolora_jax.training.progress import OnTrain, TrainProgress

# Captions' embeddings are kept up to here (0.3 MB each for SDXL in bfloat16, 2.7 MB for SD3); with more, the text
# encoders run in every step.
MOST_EMBEDDED = 2**31  # bytes
HASHES = "pictures.json"  # beside the latents
BUCKET_STEP = 64  # of SDXL's buckets; of smaller models' the VAE's factor
Prompt = Mapping[str, np.ndarray]


class TrainingData(NamedTuple):
    """All that batches are made of."""

    examples: tuple[Example, ...]
    latents: LatentCache
    prompts: Mapping[str, Prompt]  # caption, "" among them -> one row of a batch's "prompt"
    embedded: bool  # whether prompts are what the denoiser reads, or token ids
    tell_sizes: Callable[[Sizes], Prompt]  # what the denoiser is told of a crop: one row of a batch's "sizes"

    def plan(self, config: TrainConfig, devices: int) -> Plan:
        """Which pictures each step sees; its micro-batches share a bucket."""
        rows = config.gradient_accumulation_steps * config.batch_size * devices
        return Plan(self.examples, self.latents.crops, rows, config.seed)

    def batches(self, config: TrainConfig, devices: int) -> Callable[[int], dict[str, Any]]:
        """step -> batch of the loss, leaves [accumulation, rows, ...]; a function of the step alone."""
        plan = self.plan(config, devices)
        rows = plan.batch_size
        shape = config.gradient_accumulation_steps, rows // config.gradient_accumulation_steps

        def row(index: int, flip: bool, draw: int) -> dict[str, Any]:
            return {
                **self.latents.load(index, flip),
                "sizes": self.tell_sizes(self.latents.crops[index].sizes(flip)),
                "prompt": self.prompts[self.examples[index].caption],
                "draw": np.int32(draw),
            }

        def batch_at(step: int) -> dict[str, Any]:
            indices = plan.batch_at(step).indices
            flips = np.random.default_rng((config.seed, 1, step)).random(rows) < 0.5 * config.data.flip
            chosen = zip(indices, flips, strict=True)
            together = [row(index, bool(flip), step * rows + k) for k, (index, flip) in enumerate(chosen)]
            return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*shape, *np.shape(leaves[0])), *together)

        return batch_at

    def digest(self, by_size: bool = False) -> str:
        """Of the pictures' names, contents, captions and crops.

        by_size: with sizes in place of contents, as checkpoints of version 0.1 have it.
        """
        sizes = (e.path.stat().st_size for e in self.examples)
        held = sizes if by_size else self.latents.sha256s
        rows = [
            (e.path.name, content, e.caption, e.repeats, crop)
            for e, content, crop in zip(self.examples, held, self.latents.crops, strict=True)
        ]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def open_data(
    pipe: AutoLoRAPipeline, folder: str | PathLike[str], cache: Path, config: TrainConfig, tell: OnTrain
) -> TrainingData:
    """Lists the pictures, encodes what the cache lacks, and the captions. Raises DatasetError, WeightsError."""
    examples = read_folder(
        folder, caption_extension=config.data.caption_extension, default_caption=config.data.default_caption
    )
    crops = assign_all(
        examples,
        _buckets(pipe, config.data),
        upscale=config.data.upscale,
        place="random" if config.data.crop == "random" else "center",
        seed=config.seed,
    )
    hashes = sha256s([example.path for example in examples], cache.with_name(HASHES))
    latents = LatentCache(cache, examples, crops, fingerprint(pipe.vae, pipe.params["vae"]), hashes)
    flips = (False, True) if config.data.flip else (False,)
    for done in latents.fill(pipe.vae, pipe.params["vae"], flips):
        tell(TrainProgress("latents", done, len(examples) * len(flips)))

    captions = dict.fromkeys(["", *(example.caption for example in examples)])
    size = sum(array.nbytes for array in _embed(pipe, "").values())
    embedded = not config.lora.text_encoders and len(captions) * size <= MOST_EMBEDDED
    make = _embed if embedded else _tokenize
    prompts: dict[str, Prompt] = {}
    for caption in captions:
        prompts[caption] = make(pipe, caption)
        tell(TrainProgress("captions", len(prompts), len(captions)))

    def tell_sizes(sizes: Sizes) -> Prompt:
        return {name: rows[1] for name, rows in pipe.text.of_sizes(TextSettings((sizes, sizes))).items()}

    return TrainingData(examples, latents, prompts, embedded, tell_sizes)


def _buckets(pipe: AutoLoRAPipeline, config: DataConfig) -> tuple[tuple[int, int], ...]:
    factor = pipe.vae.config.factor
    trained = pipe.denoiser.config.sample_size * factor
    factor *= pipe.denoiser.config.patch_size
    resolution = config.resolution or trained
    step = BUCKET_STEP if trained >= 8 * BUCKET_STEP and resolution % BUCKET_STEP == 0 else factor
    return make_buckets(resolution, step=step, max_aspect=config.max_aspect)


def _embed(pipe: AutoLoRAPipeline, caption: str) -> Prompt:
    """What the denoiser reads, in its compute dtype."""
    text, nothing = same_text(caption), np.zeros((1, 0), np.float32)
    encoded = pipe.text.conditioning(Prompts([text], [text], ANY_SIZE, {"base": nothing}))["base"]
    told = {name: array[0, 1] for name, array in encoded.items() if name not in pipe.text.of_sizes(ANY_SIZE)}
    # Tokens as the denoiser computes them; the pooled vector is small.
    return {
        name: np.asarray(array, pipe.denoiser.dtype if array.ndim == 2 else np.float32) for name, array in told.items()
    }


def _tokenize(pipe: AutoLoRAPipeline, caption: str) -> Prompt:
    return {name: rows[0] for name, rows in pipe.text.tokenize(same_text(caption)).items()}
