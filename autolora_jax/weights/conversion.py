"""Converting a checkpoint to the Orbax form, component by component."""

from collections.abc import Callable
from pathlib import Path

from autolora_jax.weights import orbax_folder
from autolora_jax.weights.checkpoint import PathOrId, open_checkpoint
from autolora_jax.weights.folder_writing import (
    CONVERTED,
    dtypes_for,
    require_known,
    require_space,
    stored_leaves,
    write_folder,
)
from autolora_jax.weights.networks import Networks


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
    dtype: one of folder_writing.DTYPES. A VAE that overflows in half precision (force_upcast) stays float32.
    on_progress: called with (components done, components, the one that comes next or "").
    `out` appears when all is written, or not at all. Raises WeightsError or ConfigError.
    """
    require_known(CONVERTED, dtype)
    out = Path(out)
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
        dtypes = dtypes_for(checkpoint, dtype)
        require_space(out, checkpoint, dtypes)
        write_folder(
            part,
            checkpoint,
            CONVERTED,
            dtypes,
            lambda component: stored_leaves(checkpoint, component, dtypes[component]),
            str(source),
            on_progress,
        )
    return out
