"""`autolora extract`."""

from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported, say
from autolora_jax.cli.flags import option
from autolora_jax.cli.lora_output import (
    RANKS,
    ConvRank,
    Dialect,
    MaxError,
    Out,
    SaveDtype,
    compute_on_host,
    extracted,
    require_new,
    save,
)
from autolora_jax.cli.model_flags import Variant

EXAMPLES = """[bold]Examples[/]

[cyan]autolora extract sd_xl_base_1.0.safetensors tuned.safetensors --out tuned-lora.safetensors --rank 64[/]

As many ranks as every layer needs to miss at most 10 % of its change:

[cyan]autolora extract BASE TUNED --out lora.safetensors --max-error 0.1 --rank 128 --save-dtype float16[/]

For diffusers:

[cyan]autolora extract BASE TUNED --out lora.safetensors --dialect peft[/]
"""
RANK, CEILING = 32, 128  # what --rank is if it is not given: without, with --max-error


def extract(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="The model that was tuned: single .safetensors, diffusers or converted folder, hub id."
        ),
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="What came out of it, in any of these forms.")],
    out: Out,
    rank: Annotated[
        int | None,
        option("--rank", panel=RANKS, default=f"{RANK}; with --max-error {CEILING}", help="Ranks of every layer."),
    ] = None,
    max_error: MaxError = None,
    conv_rank: ConvRank = None,
    dialect: Dialect = "kohya",
    save_dtype: SaveDtype = "float32",
    variant: Variant = None,
    debug: Debug = False,
) -> None:
    """Make a LoRA of the difference between a base model and one that was tuned from it.

    Every layer's change is replaced by the nearest one of that rank, and you are told how much is missing.

    Changed biases, norms, embeddings and the VAE, which such a LoRA does not hold, are measured and left out.

    Tensor by tensor, on the CPU: SDXL takes some 2 GB of memory and five minutes of one core.
    """
    compute_on_host()
    with reported(debug, exit_code=2):
        from autolora_jax.lora import Truncation

        usual = RANK if max_error is None else CEILING
        truncation = Truncation(usual if rank is None else rank, max_error, conv_rank)
    with reported(debug):
        require_new(out, dialect, save_dtype)
        from autolora_jax.cli.progress import Display
        from autolora_jax.lora import extract as extract_lora
        from autolora_jax.weights.checkpoint import open_checkpoint

        before, after = (open_checkpoint(source, variant=variant) for source in (base, tuned))
        with Display() as display:
            trees, found = extract_lora(
                before, after, truncation, lambda done, total, what: display.update("Compare", done, total, what)
            )
        say(str(found))
        family, networks = before.family, before.networks
        save(out, trees, dialect, extracted(found, family, out), networks[family.denoiser], save_dtype)
