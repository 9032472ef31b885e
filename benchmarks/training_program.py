"""The library's steps that train LoRAs at the sizes of published models, lowered for devices that are not here."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from autolora_jax.config import SchedulerConfig, UNetConfig
from autolora_jax.models.networks import network_of, param_shapes
from autolora_jax.settings.training import LossConfig, OptimizerConfig
from autolora_jax.sharding import batch_rows, replicated
from autolora_jax.text.sd3 import CLIPS, SD3Join
from autolora_jax.text.sdxl import join
from autolora_jax.training.deltas import choose_layers
from autolora_jax.training.denoiser import DenoiserLoss
from autolora_jax.training.objective import Objective
from autolora_jax.training.optimizer import make_optimizer
from autolora_jax.training.step import State, train_step
from autolora_jax.training.student import StudentLoss
from autolora_jax.weights.families import family_of
from benchmarks.programs import NETWORKS, TEXT_TOKENS, abstract, attention_flop, conditioning, network

TARGETS = "attention", "feed_forward"
CLIP_TOKENS = 77
# Products of [tokens, tokens] an attention layer takes: two forward, two recomputed, five in a fused backward kernel.
ATTENTION_PASSES = (2 + 2 + 5) / 2


def training_network(size: int, model: str, attention: str, depth: int | None = None) -> Any:
    """The denoiser as it is trained, blocks recomputed. depth: at most so many transformer blocks a layer of SDXL's."""
    denoiser = network(size, model, attention).clone(remat=True)
    config = denoiser.config
    if depth is None:
        return denoiser
    if not isinstance(config, UNetConfig):
        raise SystemExit(f"a depth is SDXL's alone, not {model}'s")
    return denoiser.clone(
        config=dataclasses.replace(config, transformer_layers_per_block=tuple(min(depth, n) for n in config.depths))
    )


def trainable_shapes(model: str, denoiser: Any, rank: int, text_encoders: bool = False) -> dict[str, Any]:
    """component -> the float32 {down, up} of the layers that learn."""
    family = family_of(NETWORKS[model])
    learning = {family.denoiser: denoiser, **(_encoders(model) if text_encoders else {})}
    learning = {name: module for name, module in learning.items() if name in (family.denoiser, *CLIPS)}
    targets = {name: (param_shapes(module), module.config) for name, module in learning.items()}
    leaves = {}
    for layer in choose_layers(targets, TARGETS):
        *into, out = layer.kernel
        leaves[f"{layer.component}/{layer.path}/down"] = jax.ShapeDtypeStruct((*into, rank), jnp.float32)
        leaves[f"{layer.component}/{layer.path}/up"] = jax.ShapeDtypeStruct((rank, out), jnp.float32)
    return traverse_util.unflatten_dict(leaves, sep="/")


def _encoders(model: str) -> dict[str, Any]:
    return {
        name: network_of(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        for name, config in NETWORKS[model].items()
        if name.startswith("text_encoder")
    }


def lower_training(model: str, denoiser: Any, mesh: Mesh, batch: int, rank: int, text_encoders: bool = False) -> Any:
    """The lowered step with AdamW, `batch` images a device. text_encoders: both CLIPs learn, captions are encoded."""
    config, family, encoders = denoiser.config, family_of(NETWORKS[model]), _encoders(model)
    unet = isinstance(config, UNetConfig)
    loss = DenoiserLoss(
        name=family.denoiser,
        denoiser=denoiser,
        encoders=tuple(encoders.items()),
        join=join if unet else SD3Join(config.joint_attention_dim, TEXT_TOKENS - CLIP_TOKENS),
        objective=Objective(
            SchedulerConfig() if unet else SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction"),
            LossConfig(),
        ),
        caption_dropout=LossConfig().caption_dropout,
    )
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    trainable = trainable_shapes(model, denoiser, rank, text_encoders)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = State(step, trainable, jax.eval_shape(optimizer.init, trainable), None)
    used = {family.denoiser: denoiser, **(encoders if text_encoders else {})}

    def told(*lead: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what tells of sizes, what tells of the prompt) of so many rows."""
        both = conditioning(config, *lead)
        sizes = {name: both.pop(name) for name in ("time_ids",) if name in both}
        if text_encoders:
            lengths = {name: CLIP_TOKENS if name in CLIPS else TEXT_TOKENS - CLIP_TOKENS for name in encoders}
            return sizes, {name: jax.ShapeDtypeStruct((*lead, n), jnp.int32) for name, n in lengths.items()}
        return sizes, both

    rows = 1, batch * mesh.size  # one micro-batch
    latents = jax.ShapeDtypeStruct((*rows, config.sample_size, config.sample_size, config.in_channels), jnp.float32)
    sizes, prompt = told(*rows)
    draw = jax.ShapeDtypeStruct(rows, jnp.int32)
    pictures = {"mean": latents, "std": latents, "draw": draw, "sizes": sizes, "prompt": prompt}
    frozen = {
        "seed": step,
        "empty_prompt": told()[1],
        "params": {name: param_shapes(module) for name, module in used.items()},
    }
    state, frozen = abstract((state, frozen), replicated(mesh))
    return train_step.lower(loss, optimizer, mesh, state, frozen, abstract(pictures, batch_rows(mesh)))


def lower_distilling(model: str, denoiser: Any, mesh: Mesh, batch: int, rank: int) -> Any:
    """The lowered step with AdamW that a student learns by, `batch` states a device. rank: of the LoRA and added."""
    config, name = denoiser.config, family_of(NETWORKS[model]).denoiser
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    trainable = trainable_shapes(model, denoiser, rank)[name]
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = State(step, trainable, jax.eval_shape(optimizer.init, trainable), None)
    rows = 1, batch * mesh.size  # one micro-batch
    latents = jax.ShapeDtypeStruct((*rows, config.sample_size, config.sample_size, config.in_channels), jnp.float32)
    number = jax.ShapeDtypeStruct(rows, jnp.float32)
    told = conditioning(config, *rows)
    states = {"x": latents, "timestep": number, "target": latents, "strength": number, "told": told}
    none = jax.ShapeDtypeStruct((0,), jnp.float32)
    frozen = {"params": param_shapes(denoiser), "fixed": {}, "scales": none}
    state, frozen = abstract((state, frozen), replicated(mesh))
    return train_step.lower(StudentLoss(denoiser), optimizer, mesh, state, frozen, abstract(states, batch_rows(mesh)))


def training_attention(denoiser: Any, batch: int) -> float:
    """FLOPs of a step's self-attention products."""
    return ATTENTION_PASSES * attention_flop(denoiser.config, denoiser.config.sample_size, batch)
