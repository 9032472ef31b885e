"""A checkpoint's networks on the devices: which dtype each has, and where each lies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from autolora_jax.config import ConfigError, VAEConfig
from autolora_jax.models.attention import default_implementation
from autolora_jax.models.int8 import quantized
from autolora_jax.models.layers import HIGH
from autolora_jax.models.networks import network_of
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.progress import OnProgress, Progress
from autolora_jax.settings.model import T5_PLACES
from autolora_jax.sharding import replicated, weight_placement
from autolora_jax.text import STAGES, TextStage
from autolora_jax.weights.checkpoint import Checkpoint
from autolora_jax.weights.families import Family
from autolora_jax.weights.placing import as_it_is


class Parts(NamedTuple):
    """What a pipeline is made of."""

    family: Family
    denoiser: nn.Module
    vae: AutoencoderKL
    text: TextStage
    params: Mapping[str, Mapping[str, Any]]  # by component


def load_parts(
    checkpoint: Checkpoint,
    dtype: jnp.dtype,
    mesh: jax.sharding.Mesh,
    vae_dtype: jnp.dtype | None = None,
    text_encoder_3: str | None = "device",
    int8: str | None = None,
    on_progress: OnProgress | None = None,
) -> Parts:
    """The networks of a checkpoint with their weights, placed tensor by tensor; see from_pretrained for the rest."""
    if text_encoder_3 not in (*T5_PLACES, None):
        raise ValueError(f"text_encoder_3={text_encoder_3!r}: use 'device', 'host' or None")
    if text_encoder_3 is None:
        checkpoint = checkpoint.without("text_encoder_3")
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    on_host = {"text_encoder_3": host} if text_encoder_3 == "host" else {}
    family, configs = checkpoint.family, checkpoint.networks
    platform = mesh.devices.flat[0].platform
    check_platform(platform, dtype, vae_dtype)
    own = {
        family.denoiser: {"attention": default_implementation(platform, dtype)},
        "vae": vae_settings(configs["vae"], dtype, vae_dtype),
    }
    networks: dict[str, Any] = {
        name: network_of(config, **{"dtype": dtype, "param_dtype": dtype} | own.get(name, {}))
        for name, config in configs.items()
    }
    split, everywhere = weight_placement(mesh), replicated(mesh)
    places = dict.fromkeys(networks, split) | {"vae": everywhere} | on_host
    in_8_bits: dict[str, tuple[str, ...]] = {"t5": ("text_encoder_3",), "denoiser": (family.denoiser,)}
    in_8_bits["both"] = in_8_bits["t5"] + in_8_bits["denoiser"]
    if int8 == "t5" and "text_encoder_3" not in networks:
        raise ConfigError(f"int8='t5': {family.name} has no T5 here; give 'denoiser', or leave it out")
    kept = dict.fromkeys(in_8_bits.get(int8 or "", ()), quantized)
    params = {}
    for i, component in enumerate(networks):
        if on_progress:
            on_progress(Progress("load", i, len(networks), component))
        params[component] = checkpoint.load(
            component, networks[component].param_dtype, places[component], kept.get(component, as_it_is)
        )
    if on_progress:
        on_progress(Progress("load", len(networks), len(networks)))
    text = STAGES[family.name](
        checkpoint.tokenizers,
        {name: networks[name] for name in checkpoint.encoders},
        {name: params[name] for name in checkpoint.encoders},
        checkpoint.force_zeros_for_empty_prompt,
        networks[family.denoiser].config.joint_attention_dim,
        mesh,
        streamed={name: mesh.local_devices[0] for name in on_host if name in checkpoint.encoders},
    )
    return Parts(family, networks[family.denoiser], networks["vae"], text, params)


def check_platform(platform: str, *dtypes: jnp.dtype | None) -> None:
    """Raises ConfigError for a compute dtype that devices of this platform do not have."""
    if platform == "tpu" and jnp.dtype("float16") in dtypes:
        raise ConfigError("a TPU's matrix units do not take float16; use dtype bfloat16 or float32")


def vae_settings(config: VAEConfig, dtype: jnp.dtype, vae_dtype: jnp.dtype | None) -> dict[str, Any]:
    """How the VAE computes beside networks of this dtype. vae_dtype: what was asked for, None for the usual.

    That is the cheapest that keeps 99.9 % of 8-bit values within a level of float32's through as many layers as SDXL's
    has (tests/test_precision.py): one pass of a TPU keeps 97 % there, and 99.99 % in the built-in model's.
    """
    usual = jnp.dtype("float32") if config.force_upcast else dtype
    chosen = usual if vae_dtype is None else vae_dtype
    faster = vae_dtype is None and chosen != dtype
    return {"dtype": chosen, "param_dtype": chosen, **({"precision": HIGH} if faster else {})}
