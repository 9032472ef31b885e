"""`autolora merge`."""

from pathlib import Path
from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported
from autolora_jax.cli.flags import option
from autolora_jax.cli.lora_output import compute_on_host
from autolora_jax.cli.model_flags import MODEL, TextEncodersFrom, Tokenizer, Variant

OUTPUT = "Output"  # panel in --help

EXAMPLES = """[bold]Examples[/]

[cyan]autolora merge sd_xl_base_1.0.safetensors pixel-art-xl.safetensors:0.9 --out pixel-art-sdxl[/]

Two LoRAs, in the form that loads fastest here:

[cyan]autolora merge MODEL style.safetensors:0.7 character.safetensors --out merged --format orbax --dtype bfloat16[/]

What came out is a model:

[cyan]autolora generate pixel-art-sdxl --prompt "a cute corgi"[/]
"""


def merge(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Single .safetensors, diffusers or converted folder, hub id, 'builtin'."),
    ],
    loras: Annotated[
        list[str],
        typer.Argument(metavar="LORA[:SCALE]", help="LoRA files, folders or hub ids, and their strengths (1)."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="New folder. It appears when all is written, or not at all.",
            rich_help_panel=OUTPUT,
        ),
    ],
    form: Annotated[
        str,
        option(
            "--format",
            panel=OUTPUT,
            default="diffusers",
            help="diffusers, a folder that diffusers and autolora load; or orbax, which loads faster here.",
        ),
    ] = "diffusers",
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            panel=OUTPUT,
            default="as stored",
            help="float32, float16 or bfloat16 of the new weights. Sums are taken in float32 and rounded once.",
        ),
    ] = None,
    variant: Variant = None,
    tokenizer: Tokenizer = None,
    text_encoders_from: TextEncodersFrom = None,
    revision: Annotated[
        str | None, option("--revision", panel=MODEL, help="Branch, tag or commit of a hub repository.")
    ] = None,
    cache_dir: Annotated[
        str | None, option("--cache-dir", panel=MODEL, default="the hub's own", help="Where hub files are kept.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a model with LoRAs merged into its weights: W + Σ scale · ΔW, of every network and kind of LoRA.

    It draws what the model draws with these LoRAs, in any program; their scales are fixed, and AutoLoRA has no base.

    Layer by layer: a diffusers folder takes the memory of a layer, the Orbax form that of the largest network.
    """
    compute_on_host()
    with reported(debug):
        from autolora_jax.cli.progress import Display
        from autolora_jax.lora import write_merged
        from autolora_jax.presets import Lora
        from autolora_jax.weights.checkpoint import open_checkpoint
        from autolora_jax.weights.folder_writing import require_known
        from autolora_jax.weights.lora.files import read_lora, targets_of
        from autolora_jax.weights.orbax_folder import require_new
        from autolora_jax.weights.writing import require_writable

        require_known(form, dtype)
        require_new(out)
        require_writable(out.parent)
        checkpoint = open_checkpoint(
            model,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            tokenizer=tokenizer,
            text_encoders=text_encoders_from,
        )
        targets = targets_of(checkpoint.networks)
        scaled = [(read_lora(lora.source, targets), lora.scale) for lora in map(Lora.parse, loras)]
        with Display() as display:
            write_merged(
                checkpoint,
                scaled,
                out,
                form,
                dtype,
                lambda done, total, what: display.update("Merge", done, total, what),
            )
        print(out)
