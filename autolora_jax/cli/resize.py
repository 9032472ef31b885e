"""`autolora resize`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported, say
from autolora_jax.cli.flags import option
from autolora_jax.cli.lora_output import (
    FILE,
    RANKS,
    ConvRank,
    MaxError,
    Out,
    compute_on_host,
    require_new,
    resized,
    save,
)

EXAMPLES = """[bold]Examples[/]

[cyan]autolora resize style.safetensors --out style-r8.safetensors --rank 8[/]

As few ranks as every layer can do with, to miss at most 5 % of its change:

[cyan]autolora resize style.safetensors --out style-small.safetensors --max-error 0.05[/]
"""


def resize(
    lora: Annotated[
        str, typer.Argument(metavar="LORA", help="A .safetensors file, a folder that holds one, or a hub id.")
    ],
    out: Out,
    rank: Annotated[
        int | None,
        option("--rank", panel=RANKS, default="with --max-error the layer's own", help="Ranks of every layer."),
    ] = None,
    max_error: MaxError = None,
    conv_rank: ConvRank = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            panel=FILE,
            help="Its base model, if that has another size than the published SDXL, SD3 and SD3.5: folder or hub id.",
        ),
    ] = None,
    dialect: Annotated[
        str | None, option("--dialect", panel=FILE, default="the file's own", help="kohya or peft.")
    ] = None,
    save_dtype: Annotated[
        str | None,
        option("--save-dtype", panel=FILE, default="the file's own", help="float32, float16 or bfloat16."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Lower a LoRA's ranks: a smaller file that loads and draws faster, as near to it as that many ranks can be.

    Every layer gets the nearest change of lower rank, and you are told how much is missing. No base model is read.

    LoHa, LoKr and whole differences become plain LoRA.

    In kohya's dialect SD3's q, k and v are one module, which takes the ranks of all three: --dialect peft keeps them.
    """
    compute_on_host()
    with reported(debug, exit_code=2):
        from autolora_jax.lora import Truncation

        truncation = Truncation(rank, max_error, conv_rank)
    with reported(debug):
        from autolora_jax.cli.progress import Display
        from autolora_jax.lora import resize as resize_lora
        from autolora_jax.weights.families import family_of
        from autolora_jax.weights.lora.base_model import read_alone
        from autolora_jax.weights.lora.metadata import listing
        from autolora_jax.weights.lora.source import find_lora

        path = find_lora(lora)
        own_dialect, own_dtype = _own(path)
        dialect, save_dtype = dialect or own_dialect, save_dtype or own_dtype
        require_new(out, dialect, save_dtype)
        networks, file = read_alone(path, model)
        with Display() as display:
            trees, fits = resize_lora(
                file, truncation, lambda done, total, what: display.update("Resize", done, total, what)
            )
        say(listing(str(path), fits.rows()))
        save(out, trees, dialect, resized(file, fits), networks[family_of(networks).denoiser], save_dtype)


def _own(path: Path) -> tuple[str, str]:
    """(dialect, dtype) of a LoRA file, of those that are written: the nearest ones."""
    from autolora_jax.weights.files import FLOATS, open_tensors
    from autolora_jax.weights.lora.dialects import PEFT, naming_style
    from autolora_jax.weights.lora.export import DTYPES

    with open_tensors(path) as file:
        [(dtype, _)] = Counter(info.dtype for info in file.tensors.values()).most_common(1) or [("F32", 0)]
        name = FLOATS[dtype].name if dtype in FLOATS else ""
        return "peft" if PEFT in naming_style(file.tensors) else "kohya", name if name in DTYPES else "float32"
