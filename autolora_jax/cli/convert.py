"""`autolora convert`."""

from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported


def convert(
    source: Annotated[str, typer.Argument(help="Single .safetensors file, diffusers folder or hub id.")],
    out: Annotated[str, typer.Argument(help="New folder. It appears when all is written, or not at all.")],
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16 or float32: what the weights are stored in.", show_default=True)
    ] = "bfloat16",
    variant: Annotated[str | None, typer.Option(help="'fp16' takes the *.fp16.safetensors files.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id with tokenizer/ and tokenizer_2/, for a single file offline.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint once, so that it loads faster and straight onto the devices.

    Tensor by tensor: it needs the memory of the largest network at most. The folder is a MODEL for autolora generate.
    """
    with reported(debug):
        from autolora_jax.cli.progress import Display
        from autolora_jax.weights.conversion import convert_checkpoint

        with Display() as display:
            path = convert_checkpoint(
                source,
                out,
                dtype,
                variant=variant,
                tokenizer=tokenizer,
                on_progress=lambda done, total, what: display.update("Convert", done, total, what),
            )
        print(path)
