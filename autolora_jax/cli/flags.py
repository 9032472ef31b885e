"""Flags that are changes to a run's settings: how they look in --help, and how they become the settings."""

from collections.abc import Iterable
from typing import Any

import typer


def option(*names: str, panel: str, help: str, default: str = "", metavar: str | None = None) -> Any:
    """default: what the help says it is. The default itself is the config's."""
    note = f" [dim]\\[default {default}][/dim]" if default else ""
    return typer.Option(*names, help=help + note, rich_help_panel=panel, show_default=False, metavar=metavar)


def assignments(texts: Iterable[str]) -> dict[str, str]:
    """The changes of several `--set NAME=VALUE`. Raises ValueError for one without =."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r} should be NAME=VALUE, such as model.dtype=float32")
        changes[name.strip()] = value.strip()
    return changes
