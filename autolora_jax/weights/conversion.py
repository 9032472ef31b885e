"""Converting a checkpoint to the Orbax form, component by component."""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from autolora_jax.weights import orbax_folder
from autolora_jax.weights.checkpoint import Checkpoint, PathOrId, open_checkpoint
from autolora_jax.weights.diffusers_folder import INDEX, make_index
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.networks import Networks, shapes_of
from autolora_jax.weights.rules import flat_shapes

DTYPES = ("bfloat16", "float32", "float16")


def convert_checkpoint(
    source: PathOrId,
    out: PathOrId,
    dtype: str = "bfloat16",
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: PathOrId | None = None,
    tokenizer: PathOrId | None = None,
    text_encoders: PathOrId | None = None,
    networks: Networks | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes `source` as a folder that open_checkpoint restores straight onto devices; returns its path.

    source, variant, revision, cache_dir, tokenizer, text_encoders, networks: as for open_checkpoint.
    dtype: one of DTYPES, of the stored weights. A VAE that overflows in half precision (force_upcast) stays float32.
    on_progress: called with (components done, components, the one that comes next or "").
    `out` appears when all is written, or not at all. Raises WeightsError or ConfigError.
    """
    if dtype not in DTYPES:
        raise WeightsError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}")
    out = Path(out)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    with orbax_folder.new_folder(out) as part:
        checkpoint = open_checkpoint(
            source,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            tokenizer=tokenizer,
            text_encoders=text_encoders,
            networks=networks,
        )
        components = list(checkpoint.networks)
        dtypes = dict.fromkeys(components, dtype)
        if checkpoint.networks["vae"].force_upcast:
            dtypes["vae"] = "float32"
        orbax_folder.require_space(out, _bytes(checkpoint, dtypes))
        for folder in checkpoint.tokenizers.values():
            shutil.copytree(folder, part / folder.name)
        scheduler = checkpoint.scheduler
        orbax_folder.write_json(part / INDEX, _index(checkpoint))
        orbax_folder.write_json(part / "scheduler" / "scheduler_config.json", scheduler.to_dict())
        source_files: dict[str, dict[str, int]] = {}
        for i, component in enumerate(components):
            if on_progress:
                on_progress(i, len(components), component)
            orbax_folder.write_json(part / component / "config.json", checkpoint.networks[component].to_dict())
            # The tree has no name here: it must be gone before the next component is loaded.
            orbax_folder.write_component(part / component, checkpoint.load(component, dtypes[component], host))
            source_files[component] = checkpoint.weights[component].sources()
        orbax_folder.write_manifest(part, str(source), source_files, dtypes)
    if on_progress:
        on_progress(len(components), len(components), "")
    return out


def _bytes(checkpoint: Checkpoint, dtypes: Mapping[str, str]) -> int:
    """Size of all parameters in these dtypes."""
    shapes = {c: flat_shapes(shapes_of(config)).values() for c, config in checkpoint.networks.items()}
    return sum(math.prod(shape) * jnp.dtype(dtypes[c]).itemsize for c in shapes for shape in shapes[c])


def _index(checkpoint: Checkpoint) -> dict[str, Any]:
    zeros = checkpoint.force_zeros_for_empty_prompt
    return make_index(checkpoint.family, checkpoint.networks, zeros, checkpoint.scheduler)
