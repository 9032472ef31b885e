"""`autolora info`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported


def info(
    file: Annotated[
        str, typer.Argument(help="Checkpoint or LoRA file, model folder, or a PNG from autolora generate.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a file is, what of it would load and what would not, without loading it. Exit code 1: it would not."""
    with reported(debug):
        if Path(file).suffix.lower() == ".png":
            from autolora_jax.pictures import read_settings

            print(json.dumps(read_settings(Path(file)), indent=None if as_json else 2, ensure_ascii=False))
            return
        from autolora_jax.weights.inspect import describe

        description = describe(file)
        print(json.dumps({**_plain(description), "loads": description.loads}) if as_json else description)
    if not description.loads:
        raise typer.Exit(1)


def _plain(value: Any) -> Any:
    """A description as JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
