"""Converting a checkpoint to the Orbax form, component by component."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from autolora_jax.weights import orbax_folder
from autolora_jax.weights.checkpoint import PathOrId, open_checkpoint
from autolora_jax.weights.diffusers_folder import INDEX, make_index
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.networks import COMPONENTS

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
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes `source` as a folder that open_checkpoint restores straight onto devices; returns its path.

    source, variant, revision, cache_dir, tokenizer: as for open_checkpoint.
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
            source, variant=variant, revision=revision, cache_dir=cache_dir, tokenizer=tokenizer
        )
        for name, folder in zip(("tokenizer", "tokenizer_2"), checkpoint.tokenizers, strict=True):
            shutil.copytree(folder, part / name)
        scheduler = checkpoint.scheduler
        orbax_folder.write_json(part / INDEX, make_index(checkpoint.force_zeros_for_empty_prompt, scheduler))
        orbax_folder.write_json(part / "scheduler" / "scheduler_config.json", scheduler.to_dict())
        dtypes: dict[str, str] = {}
        source_files: dict[str, dict[str, int]] = {}
        for i, component in enumerate(COMPONENTS):
            if on_progress:
                on_progress(i, len(COMPONENTS), component)
            keep = component == "vae" and checkpoint.vae.force_upcast
            dtypes[component] = "float32" if keep else dtype
            params = checkpoint.load(component, dtypes[component], host)
            orbax_folder.write_json(part / component / "config.json", checkpoint.config(component).to_dict())
            orbax_folder.write_component(part / component, params)
            source_files[component] = checkpoint.weights[component].sources()
        orbax_folder.write_manifest(part, str(source), source_files, dtypes)
    if on_progress:
        on_progress(len(COMPONENTS), len(COMPONENTS), "")
    return out
