"""`autolora merge`."""

from typing import Any

from autolora_jax.display import Display
from autolora_jax.lora import write_merged
from autolora_jax.settings.programs.merge import Merge
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.folder_writing import require_known
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.orbax_folder import require_new
from autolora_jax.weights.writing import require_writable


def run(asked: Merge) -> None:
    """Writes the merged model, and says where it is."""
    require_known(asked.format, asked.dtype)
    require_new(asked.out)
    require_writable(asked.out.parent)
    checkpoint = open_checkpoint(asked.source, **asked.files())
    targets = targets_of(checkpoint.networks)
    scaled: list[Any] = [(read_lora(lora.source, targets), lora.scale) for lora in asked.loras]
    with Display() as display:
        write_merged(checkpoint, scaled, asked.out, asked.format, asked.dtype, display.row("Merge"))
    print(asked.out)
