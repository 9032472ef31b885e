"""`autolora convert`."""

from autolora_jax.display import Display
from autolora_jax.settings.programs.convert import Convert
from autolora_jax.weights.folder_writing import convert_checkpoint


def run(asked: Convert) -> None:
    """Converts a checkpoint, and says where it is."""
    with Display() as display:
        files, on_progress = asked.files(), display.row("Convert")
        path = convert_checkpoint(asked.source, asked.out, asked.dtype, **files, on_progress=on_progress)
    print(path)
