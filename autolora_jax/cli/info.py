"""`autolora info`."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported, show
from autolora_jax.cli.flags import option
from autolora_jax.cli.model_flags import MODEL

if TYPE_CHECKING:
    from autolora_jax.weights.inspect import Description

EXAMPLES = """[bold]Examples[/]

[cyan]autolora info pixel-art-xl.safetensors[/]

Whether it fits a model, and how many of its layers it changes:

[cyan]autolora info pixel-art-xl.safetensors --model stabilityai/stable-diffusion-xl-base-1.0[/]

Its trigger words alone, for a script:

[cyan]autolora info pixel-art-xl.safetensors --json --no-hash | jq -r '.lora.trigger_words[]'[/]
"""
BAR_FROM = 200e6  # bytes of a file whose hash takes long enough for a bar


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Checkpoint or LoRA file, model folder, a PNG from autolora generate; of LoRAs also hub ids.",
        ),
    ],
    model: Annotated[
        str | None,
        option("--model", panel=MODEL, help="Of a LoRA: say whether it fits this model, too. Folder, file or hub id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the whole header.")] = False,
    with_hash: Annotated[
        bool,
        typer.Option("--hash/--no-hash", help="The sha256 of a file, for which all of it is read: 7 GB take a while."),
    ] = True,
    debug: Debug = False,
) -> None:
    """Say what a file is, what of it would load and what would not, without loading it. Exit code 1: it would not.

    Of a LoRA: its dialect, the model it was made for, kinds, ranks and alphas, trigger words, how it was trained.
    """
    with reported(debug):
        if Path(file).suffix.lower() == ".png":
            from autolora_jax.pictures import read_settings

            print(json.dumps(read_settings(Path(file)), indent=None if as_json else 2, ensure_ascii=False))
            return
        description = _described(file, model)
        if with_hash:
            description = _hashed(description)
        if as_json:
            found = {**_plain(description), "loads": description.loads, "autov2": description.autov2}
            print(json.dumps(found, ensure_ascii=False))
        elif sys.stdout.isatty():
            show(description.path, description.rows(), red=("can't be",))
        else:
            print(description)
    if not description.loads:
        raise typer.Exit(1)


def _described(file: str, model: str | None) -> "Description":
    from autolora_jax.weights.checkpoint import open_checkpoint
    from autolora_jax.weights.inspect import describe

    description = describe(file, open_checkpoint(model).networks if model else None)
    if model and description.lora is None and description.loads:
        raise ValueError(f"--model is for LoRAs, and {file} is a {description.kind}; leave it out")
    return description


def _hashed(description: "Description") -> "Description":
    from autolora_jax.cli.progress import Display

    path = Path(description.path)
    if not path.is_file() or path.stat().st_size < BAR_FROM:
        return description.hashed()
    with Display() as display:
        return description.hashed(
            lambda done, total: display.update("Hash", done // 1_000_000, total // 1_000_000, "MB of the file read")
        )


def _plain(value: Any) -> Any:
    """A description as JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
