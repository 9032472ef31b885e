"""The program `autolora`, one file per command. Nothing here imports JAX before a command runs: --help is instant."""

from autolora_jax.cli.main import app, main

__all__ = ["app", "main"]
