"""`autolora evaluate`: how varied pictures are, and how well they fit their prompts."""

from pathlib import Path
from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported, terminable
from autolora_jax.cli.flags import option

METRICS, MODELS, OUTPUT = "Metrics", "Models", "Output"
INCOMPLETE = 3  # exit code: some pictures could not be measured

EXAMPLES = """[bold]Examples[/]

Diversity (Eq. 8 of the paper) and Vendi score of each prompt's pictures, by DINOv2-giant; the second run is free:

[cyan]autolora evaluate out[/]

Offline, for what the built-in model drew with --compare, apart by guidance:

[cyan]autolora evaluate out --features builtin --group-by prompt,guidance,lora_scales[/]

What autolora batch --format features kept in place of pictures; no model is needed any more:

[cyan]autolora evaluate anna --group-by prompt,guidance[/]

Tar shards in WebDataset's form, and CLIPScore, too:

[cyan]autolora evaluate shards/*.tar --metrics diversity,vendi,clipscore --json table.json[/]

With the scores of a judge: Div-CPS and the like.

[cyan]autolora judge out --question cps --character Anna --out anna.json[/]
[cyan]autolora evaluate out --scores anna.json[/]

[bold]Exit codes[/] 0: all is measured. 3: some pictures can't be read; each is named, the figures are of the others.
"""


def evaluate(
    places: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of pictures (and subfolders), single pictures, or .tar shards; or of the features that "
            "autolora batch kept of pictures. Their prompts are told by the pictures themselves, a JSON file of their "
            "name or a manifest.jsonl.",
            metavar="PLACE",
        ),
    ],
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            rich_help_panel=METRICS,
            help="diversity (0: all alike), vendi (how many different ones: 1 to all), clipscore (0 to 100: do picture "
            "and prompt fit?).",
        ),
    ] = "diversity,vendi",
    scores: Annotated[
        list[Path] | None,
        option(
            "--scores",
            panel=METRICS,
            metavar="FILE",
            help="A report of autolora judge: its scores' means, and their products with diversity. Repeatable.",
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        option(
            "--group-by",
            panel=METRICS,
            default="prompt, where one is known",
            metavar="FIELDS",
            help="What pictures that are compared have in common: prompt, folder, or whatever is told of them, such as "
            "prompt,guidance; none: compare all. The last row averages over groups.",
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", rich_help_panel=METRICS, help="Of the intervals.", metavar="LEVEL")
    ] = 0.95,
    features: Annotated[
        str | None,
        option(
            "--features",
            panel=MODELS,
            default="dinov2-giant, or whose features there are in place of pictures",
            metavar="MODEL",
            help="By whose eyes pictures differ: dinov2-giant (the paper's), -large, -base, -small, clip, builtin (the "
            "built-in model's pictures only; offline), or a folder or hub id of a DINOv2 or CLIP.",
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            "--clip",
            rich_help_panel=MODELS,
            metavar="MODEL",
            help="CLIPScore's: clip (openai/clip-vit-large-patch14), or a folder or hub id.",
        ),
    ] = "clip",
    dtype: Annotated[
        str, typer.Option("--dtype", rich_help_panel=MODELS, help="float32, or bfloat16 for half the memory.")
    ] = "float32",
    batch_size: Annotated[
        int, typer.Option("--batch-size", rich_help_panel=MODELS, help="Pictures a device.", min=1)
    ] = 16,
    cache: Annotated[
        Path | None,
        option(
            "--cache",
            panel=OUTPUT,
            default=".autolora in the first place",
            metavar="DIR",
            help="Where features are kept, by picture and model: what was computed once is not computed again.",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        option("--json", panel=OUTPUT, metavar="FILE", help="Write the table there, too. Replaces an earlier one."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure pictures: how varied are those of a prompt, and how well do they fit it?

    Features are kept as they come, so a run that is stopped goes on where it was. Grids made by autolora are left out.
    """
    with reported(debug, exit_code=2):
        from autolora_jax.cli.evaluating import Wanted

        names = [name.strip() for name in metrics.split(",")]
        wanted = Wanted(names, scores or [], group_by, confidence, features, clip, dtype, batch_size)
    with reported(debug), terminable():
        from autolora_jax.cli.evaluating import measure

        whole = measure(places, wanted, cache, json)
    if not whole:
        raise typer.Exit(INCOMPLETE)
