"""The command line, run in this process."""

from typing import Any

from typer.testing import CliRunner, Result

from autolora_jax.cli import app


def autolora(*arguments: Any) -> Result:
    """`autolora` with these arguments."""
    return CliRunner().invoke(app, [str(a) for a in arguments])
