"""What command lines are made of: a class for each program, whose docstring, fields and examples are its --help.

`cli.<name>.run` does what an object of the class asks for.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.changes import load_preset, override
from autolora_jax.settings.fields import Checked, setting
from autolora_jax.settings.model import MODEL
from autolora_jax.settings.values import Texts

RUN, PRESETS = "Run", "Presets"  # panels of --help
MORE = 75  # EX_TEMPFAIL: stopped, the same command goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program(Checked):
    """A program's options. A field `settings` holds those that presets, config.json and `--set` know."""

    EXAMPLES: ClassVar[str] = ""
    STOPPED: ClassVar[int | None] = None  # exit code when Ctrl-C or SIGTERM came, where it is not the shells' own
    ENVIRONMENT: ClassVar[Mapping[str, str]] = {}  # variables that are set, unless they are, before JAX is imported

    @classmethod
    def configured(cls, kind: Any, options: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
        """Its settings, of this kind: a preset's, or the usual ones, changed by `--set` and then by flags.

        options: of this program, as far as they are given. changes: to the settings, by their dotted names.
        Raises ConfigError.
        """
        changes = {**assignments(options.get("set_", ())), **changes}
        preset = load_preset(options["config"], kind) if options.get("config") else None
        return override(kind.start(changes, preset), changes)

    def check(self) -> None:
        """Raises ConfigError for options that don't fit together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiling(Program):
    """A program that runs networks."""

    compilation_cache: str | None = setting(
        None,
        "Where compiled programs are kept, so that the next run need not compile them: a folder, a bucket's URL, or "
        "'off'; else autolora-jax/programs in your cache folder. AUTOLORA_COMPILATION_CACHE says it for all runs.",
        panel=MODEL,
        metavar="PLACE",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configured(Compiling):
    """A program whose settings a preset may hold."""

    config: Path | None = setting(
        None,
        "Preset (.py) or the config.json of an earlier run; flags change it. A .py is a program and is executed: use "
        "only presets that you trust.",
        panel=PRESETS,
        metavar="FILE",
    )
    set_: Texts = setting(
        (),
        "Change any setting by its name in config.json: --set model.dtype=float32. Flags win over it.",
        flag="--set",
        panel=PRESETS,
        metavar="NAME=VALUE",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Large(Compiling):
    """A program that draws large jobs."""

    PANEL: ClassVar[str] = RUN
    STOPPED: ClassVar[int | None] = MORE

    set_: Texts = setting(
        (),
        "Change what all pictures share: --set settings.num_inference_steps=28. Flags win over it.",
        flag="--set",
        panel=PRESETS,
        metavar="NAME=VALUE",
    )
    retry: bool = setting(False, "Draw also what failed before, or came out not finite.")
    calibrate: bool = setting(False, "(--dry-run) Draw a batch to estimate the time, and drop it.")


def assignments(texts: Iterable[str]) -> dict[str, str]:
    """The changes of several `--set NAME=VALUE`. Raises ConfigError for one without =."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} should be NAME=VALUE, such as model.dtype=float32")
        changes[name.strip()] = value.strip()
    return changes
