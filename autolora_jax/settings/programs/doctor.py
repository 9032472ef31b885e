"""What `autolora doctor` can be asked for."""

import dataclasses

from autolora_jax.settings.fields import setting
from autolora_jax.settings.programs.program import Compiling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(Compiling):
    """Say what this machine has: versions, devices, memory, caches; what would be slow or fail, and what to do.

    Nothing is downloaded, compiled or changed. Exit code 1: something does not work.
    """

    json: bool = setting(False, "Print JSON.")

    EXAMPLES = """[bold]Examples[/]

[cyan]autolora doctor[/]

For a bug report, or a script:

[cyan]autolora doctor --json > doctor.json[/]
"""
