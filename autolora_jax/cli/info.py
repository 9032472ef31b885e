"""`autolora info`."""

import json
import sys
from pathlib import Path

from autolora_jax.cli.console import show
from autolora_jax.cli.progress import Display
from autolora_jax.pictures import read_settings
from autolora_jax.settings.programs.info import Info
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.inspect import Description, describe

BAR_FROM = 200e6  # bytes of a file whose hash takes long enough for a bar


def run(asked: Info) -> int:
    """Prints what a file is. 1: it would not load."""
    if Path(asked.file).suffix.lower() == ".png":
        print(json.dumps(read_settings(Path(asked.file)), indent=None if asked.json else 2, ensure_ascii=False))
        return 0
    description = _described(asked.file, asked.model)
    if asked.hash:
        description = _hashed(description)
    if asked.json:
        found = {**vars(description), "loads": description.loads, "autov2": description.autov2}
        print(json.dumps(found, default=vars, ensure_ascii=False))
    elif sys.stdout.isatty():
        show(description.path, description.rows(), red=("can't be",))
    else:
        print(description)
    return 0 if description.loads else 1


def _described(file: str, model: str | None) -> Description:
    description = describe(file, open_checkpoint(model).networks if model else None)
    if model and description.lora is None and description.loads:
        raise ValueError(f"--model is for LoRAs, and {file} is a {description.kind}; leave it out")
    return description


def _hashed(description: Description) -> Description:
    path = Path(description.path)
    if not path.is_file() or path.stat().st_size < BAR_FROM:
        return description.hashed()
    with Display() as display:
        return description.hashed(
            lambda done, total: display.update("Hash", done // 1_000_000, total // 1_000_000, "MB of the file read")
        )
