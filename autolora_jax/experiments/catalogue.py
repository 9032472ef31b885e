"""Which experiments there are: the files of `experiments/paper`, and whatever file of that kind a user has."""

import difflib
import re
from pathlib import Path

from autolora_jax.config import ConfigError
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.settings import load_preset

FOLDER = Path(__file__).with_name("paper")
ORDER = ("table", "figure", "frontier", "sweep")


def names() -> tuple[str, ...]:
    """Of the experiments that come with the package: tables, figures by their numbers, the rest."""
    found = (path.stem for path in FOLDER.glob("[!_]*.py"))
    return tuple(sorted(found, key=_place))


def load(name: str, builtin: bool = False) -> Experiment:
    """An experiment by its name, or from a .py file, which is executed. builtin: for the built-in model.

    Raises ConfigError: did you mean; or what is wrong with the file, and in which line.
    """
    if not name.endswith(".py") and name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no experiment {name!r}: {hint}there are {', '.join(names())}, and .py files")
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    return load_preset(path, Experiment, "get_builtin" if builtin else "get_config")


def _place(name: str) -> tuple[int, int, str]:
    kind, number = re.fullmatch(r"([a-z_]+?)(\d*)", name).groups()  # type: ignore[union-attr]
    first = kind.partition("_")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), int(number or 0), name)
