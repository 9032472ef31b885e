"""`autolora` itself: its commands, --version."""

import os
from typing import Annotated

import typer

from autolora_jax import __version__
from autolora_jax.cli.batch import EXAMPLES as BATCH_EXAMPLES
from autolora_jax.cli.batch import batch
from autolora_jax.cli.convert import convert
from autolora_jax.cli.evaluate import EXAMPLES as EVALUATE_EXAMPLES
from autolora_jax.cli.evaluate import evaluate
from autolora_jax.cli.extract import EXAMPLES as EXTRACT_EXAMPLES
from autolora_jax.cli.extract import extract
from autolora_jax.cli.gallery import EXAMPLES as GALLERY_EXAMPLES
from autolora_jax.cli.gallery import gallery
from autolora_jax.cli.generate import EXAMPLES, generate
from autolora_jax.cli.info import EXAMPLES as INFO_EXAMPLES
from autolora_jax.cli.info import info
from autolora_jax.cli.judge import EXAMPLES as JUDGE_EXAMPLES
from autolora_jax.cli.judge import judge
from autolora_jax.cli.merge import EXAMPLES as MERGE_EXAMPLES
from autolora_jax.cli.merge import merge
from autolora_jax.cli.reproduce import EXAMPLES as REPRODUCE_EXAMPLES
from autolora_jax.cli.reproduce import reproduce
from autolora_jax.cli.resize import EXAMPLES as RESIZE_EXAMPLES
from autolora_jax.cli.resize import resize
from autolora_jax.cli.train import EXAMPLES as TRAIN_EXAMPLES
from autolora_jax.cli.train import train
from autolora_jax.cli.warmup import EXAMPLES as WARMUP_EXAMPLES
from autolora_jax.cli.warmup import warmup

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing: none is needed

app = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="AutoLoRA guidance for LoRA-tuned SDXL and SD3: the diversity of the base model, the subject of the LoRA.",
    epilog="Start with [cyan]autolora generate --help[/]; to make a LoRA, [cyan]autolora train --help[/].",
)
app.command(epilog=EXAMPLES)(generate)
app.command(epilog=TRAIN_EXAMPLES)(train)
app.command(epilog=BATCH_EXAMPLES)(batch)
app.command(epilog=GALLERY_EXAMPLES)(gallery)
app.command(epilog=EVALUATE_EXAMPLES)(evaluate)
app.command(epilog=JUDGE_EXAMPLES)(judge)
app.command(epilog=REPRODUCE_EXAMPLES)(reproduce)
app.command(epilog=WARMUP_EXAMPLES)(warmup)
app.command()(convert)
app.command(epilog=INFO_EXAMPLES)(info)
app.command(epilog=MERGE_EXAMPLES)(merge)
app.command(epilog=EXTRACT_EXAMPLES)(extract)
app.command(epilog=RESIZE_EXAMPLES)(resize)


def _version(asked: bool) -> bool:
    if asked:
        print(f"autolora-jax {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script's entry."""
    app(prog_name="autolora")
