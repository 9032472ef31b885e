"""The program `autolora`, one file per command. Nothing here imports JAX before a command runs: --help is instant."""

import os
from typing import Annotated

import typer

from autolora_jax import __version__
from autolora_jax.cli.flags import command
from autolora_jax.cli.stopping import answered, leaving
from autolora_jax.settings.programs import PROGRAMS

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing: none is needed

app = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="AutoLoRA guidance for LoRA-tuned SDXL and SD3: the diversity of the base model, the subject of the LoRA.",
    epilog="Start with [cyan]autolora generate --help[/]; to make a LoRA, [cyan]autolora train --help[/].",
)
for program in PROGRAMS:
    app.command(epilog=program.EXAMPLES or None)(command(program))


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
    try:
        with answered():
            app(prog_name="autolora")
    except SystemExit as e:
        leaving(e.code)
        raise
