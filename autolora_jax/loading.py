"""A checkpoint's networks on the devices: which dtype each has, and where each lies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from autolora_jax.models.attention import default_implementation
from autolora_jax.models.networks import network_of
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.progress import OnProgress, Progress
from autolora_jax.sharding import replicated, weight_placement
from autolora_jax.text import STAGES, TextStage
from autolora_jax.weights.checkpoint import Checkpoint
from autolora_jax.weights.families import Family

T5_PLACES = ("device", "host")


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
    text_encoder_3: str | None = "device",
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
    attention = default_implementation(mesh.devices.flat[0].platform, dtype)
    # SDXL's VAE overflows in half precision, and costs little next to the sampler.
    dtypes = dict.fromkeys(configs, dtype) | ({"vae": jnp.dtype("float32")} if configs["vae"].force_upcast else {})
    networks: dict[str, Any] = {
        name: network_of(
            config,
            dtype=dtypes[name],
            param_dtype=dtypes[name],
            **({"attention": attention} if name == family.denoiser else {}),
        )
        for name, config in configs.items()
    }
    split, everywhere = weight_placement(mesh), replicated(mesh)
    places = dict.fromkeys(networks, split) | {"vae": everywhere} | on_host
    params = {}
    for i, component in enumerate(networks):
        if on_progress:
            on_progress(Progress("load", i, len(networks), component))
        params[component] = checkpoint.load(component, dtypes[component], places[component])
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
