"""`autolora info`."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from autolora_jax.cli.console import show
from autolora_jax.display import Display
from autolora_jax.pictures import read_settings
from autolora_jax.settings.programs.info import Info
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.files import OnBytes
from autolora_jax.weights.inspect import Description, describe
from autolora_jax.weights.verify import verify

BAR_FROM = 200e6  # bytes of a file whose hash takes long enough for a bar


def run(asked: Info) -> int:
    """Prints what a file is. 1: it would not load."""
    if Path(asked.file).suffix.lower() == ".png":
        print(json.dumps(read_settings(Path(asked.file)), indent=None if asked.json else 2, ensure_ascii=False))
        return 0
    description = _described(asked.file, asked.model)
    if asked.hash:
        description = _with_bar("Hash", description, description.hashed)
    if asked.verify:
        description = _with_bar("Verify", description, partial(verify, description))
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


def _with_bar(row: str, description: Description, read: Callable[[OnBytes | None], Description]) -> Description:
    """What reading a file comes to; with a bar where that takes long."""
    path = Path(description.path)
    if path.is_file() and path.stat().st_size < BAR_FROM:
        return read(None)
    with Display() as display:
        return read(lambda done, all: display.update(row, done // 1_000_000, all // 1_000_000, "MB of the file read"))
