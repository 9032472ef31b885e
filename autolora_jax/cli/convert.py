"""`autolora convert`."""

from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported


def convert(
    source: Annotated[str, typer.Argument(help="Single .safetensors file, diffusers folder or hub id.")],
    out: Annotated[str, typer.Argument(help="New folder. It appears when all is written, or not at all.")],
    dtype: Annotated[
        str,
        typer.Option(
            help="bfloat16, float16 or float32: what the weights are stored in; a VAE that overflows in half precision "
            "stays float32.",
            show_default=True,
        ),
    ] = "bfloat16",
    variant: Annotated[str | None, typer.Option(help="'fp16' takes the *.fp16.safetensors files.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Where hub files are kept. Default: the hub's own cache.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id with tokenizer/, tokenizer_2/, …, for a single file offline.")
    ] = None,
    text_encoders_from: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder, file or hub id with the text encoders that a single file of SD3 leaves out: CLIP, T5.",
        ),
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
                revision=revision,
                cache_dir=cache_dir,
                tokenizer=tokenizer,
                text_encoders=text_encoders_from,
                on_progress=lambda done, total, what: display.update("Convert", done, total, what),
            )
        print(path)
