"""What a job will take, before anything is loaded: counts from the plan, FLOPs from the traced networks."""

import time
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autolora_jax.batch.draw import Draw
from autolora_jax.batch.formats import FORMATS, TEXT, open_features
from autolora_jax.batch.plan import Batch, Plan
from autolora_jax.batch.recipe import Recipe
from autolora_jax.batch.storage import Storage
from autolora_jax.batch.work import check_place, enter, find_record
from autolora_jax.config import JsonConfig, MMDiTConfig
from autolora_jax.models.networks import network_of, param_shapes
from autolora_jax.models.vae import decode_sliced
from autolora_jax.settings.jobs import Job

CLIP_TOKENS = 77


class Estimate(NamedTuple):
    """What is planned and what it takes. todo: pictures to be drawn, of batches with `padding` rows too many."""

    pictures: int
    duplicates: int
    finished: int
    todo: int
    batches: int
    padding: int
    programs: int  # to be compiled, at most
    evaluations: int  # of the denoiser
    flop: float  # of denoiser and decoder, padding included
    bytes: float  # of the files


def estimate(job: Job, plan: Plan, storage: Storage, rows: int, retry: bool = False) -> tuple[Estimate, list[Batch]]:
    """What is left of a job, and its batches. Nothing is written. Raises ConfigError, StorageError."""
    features = open_features(job.output, plan)
    check_place(storage, job.output, features)
    record, _ = find_record(storage, plan, rows, retry)
    batches = enter(job, plan, storage, record, features).todo
    items = np.concatenate([np.arange(0), *(batch.items for batch in batches)])
    counts = np.bincount(plan.recipes_of(items), minlength=len(plan.recipes))
    drawn = [plan.recipes[int(plan.recipes_of(batch.items[:1])[0])] for batch in batches]
    pixels = sum(int(n) * recipe.size[0] * recipe.size[1] for n, recipe in zip(counts, plan.recipes, strict=True))
    programs = {
        (
            recipe.load.model.config,
            bool(recipe.scales),
            recipe.size,
            recipe.masked,
            recipe.drawing.skip is None,
            segment.paired,
        )
        for recipe in drawn
        for segment in recipe.segments
        if segment.branches
    }
    told = Estimate(
        pictures=len(plan),
        duplicates=plan.duplicates,
        finished=len(plan) - plan.duplicates - len(items),
        todo=len(items),
        batches=len(batches),
        padding=len(batches) * rows - len(items),
        programs=len(programs),
        evaluations=sum(int(n) * recipe.evaluations for n, recipe in zip(counts, plan.recipes, strict=True)),
        flop=rows * sum(picture_flop(recipe) for recipe in drawn),
        bytes=pixels * FORMATS[job.output.format].bytes_per_pixel
        + len(items) * (TEXT + 4 * (features.size if features else 0)),
    )
    return told, batches


class Calibration(NamedTuple):
    """prepare: seconds until the first batch was drawn, beyond those of the second. flop_rate: a second."""

    prepare: float
    flop_rate: float

    def seconds(self, told: Estimate) -> float:
        """How long what is left will take, if every program is as slow to prepare as the first."""
        return told.flop / self.flop_rate + self.prepare * told.programs


def calibrate(plan: Plan, batch: Batch, draw: Draw) -> Calibration:
    """What one batch takes, drawn twice and thrown away."""
    rows = plan.rows(batch)

    def seconds() -> float:
        begun = time.monotonic()
        draw(rows, batch).wait()
        return time.monotonic() - begun

    first, second = seconds(), seconds()
    return Calibration(max(0.0, first - second), batch.rows * picture_flop(rows[0].recipe) / second)


def picture_flop(recipe: Recipe) -> float:
    """Floating point operations of a picture: the denoiser's evaluations and the decoder."""
    model, (width, height) = recipe.load.model, recipe.size
    latent = model.canvas.latent_shape((width, height))[:2]
    denoiser = model.networks[model.family.denoiser]
    tokens = CLIP_TOKENS * recipe.drawing.prompt_chunks
    if isinstance(denoiser, MMDiTConfig):
        tokens += recipe.drawing.max_sequence_length if "text_encoder_3" in model.networks else 0
    return recipe.evaluations * _denoiser_flop(denoiser, latent, tokens) + _decoder_flop(model.networks["vae"], latent)


@lru_cache(maxsize=64)
def _denoiser_flop(config: JsonConfig, latent: tuple[int, int], tokens: int) -> float:
    network: Any = network_of(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention="xla")
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    conditioning: dict[str, Any]
    if isinstance(network.config, MMDiTConfig):
        conditioning = {
            "encoder_hidden_states": shape((1, tokens, network.config.joint_attention_dim)),
            "pooled_projections": shape((1, network.config.pooled_projection_dim)),
        }
    else:
        pooled = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
        conditioning = {
            "encoder_hidden_states": shape((1, tokens, network.config.cross_attention_dim)),
            "text_embeds": shape((1, pooled)),
            "time_ids": shape((1, 6)),
        }
    x, t = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, *latent, network.config.in_channels), (1,)))
    return _flop(
        lambda params, x, t, told: network.apply({"params": params}, x, t, **told), network, x, t, conditioning
    )


@lru_cache(maxsize=64)
def _decoder_flop(config: JsonConfig, latent: tuple[int, int]) -> float:
    vae: Any = network_of(config, dtype=jnp.float32, param_dtype=jnp.float32, attention="xla")
    z = jax.ShapeDtypeStruct((1, *latent, vae.config.latent_channels), jnp.float32)
    return _flop(lambda params, z: decode_sliced(vae, params, z), vae, z)


def _flop(function: Any, network: Any, *inputs: Any) -> float:
    """As XLA counts those of the traced, not compiled, program: seconds for the largest networks."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # every backend counts in its own way, or not at all
        cost: Any = jax.jit(function).lower(param_shapes(network), *inputs).cost_analysis()
    return float(cost["flops"])
