"""`autolora convert`."""

from autolora_jax.cli.progress import Display
from autolora_jax.settings.programs.convert import Convert
from autolora_jax.weights.folder_writing import convert_checkpoint


def run(asked: Convert) -> None:
    """Converts a checkpoint, and says where it is."""
    with Display() as display:
        path = convert_checkpoint(
            asked.source,
            asked.out,
            asked.dtype,
            **asked.files(),
            on_progress=lambda done, total, what: display.update("Convert", done, total, what),
        )
    print(path)
