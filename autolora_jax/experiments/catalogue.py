"""Which experiments there are: a table of those that come with the package, and whatever file a user has."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from autolora_jax.config import ConfigError
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.paper.beyond import frontier, frontier_equal, over_gammas, sweep
from autolora_jax.experiments.paper.character import ELSEWHERE, figure2, figure3, figure4, over_lora_scales
from autolora_jax.experiments.paper.map import lora_map
from autolora_jax.experiments.paper.pixel_art import pixel_art_figure, table2
from autolora_jax.experiments.paper.speed import speed
from autolora_jax.experiments.paper.table1 import table1
from autolora_jax.experiments.parts import CONTEXTS, SCALES, scale_grid
from autolora_jax.settings.changes import load_preset

_UNTOLD = "What tells it from Figure 1 is not stated: "
_scales, _gammas = partial(sweep, axis="LoRA scale", what="LoRA scales"), partial(sweep, axis="γ", what="γ")
# Name -> the experiment, of the published models or, in small, of the built-in one; in their order in lists.
EXPERIMENTS: Mapping[str, Callable[[bool], Experiment]] = {
    "table1": table1,
    "table2": table2,
    "figure1": partial(over_lora_scales, name="figure1", said="Its seed is not stated: {seeds}."),
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": partial(pixel_art_figure, name="figure5", shown=slice(0, 4), which="first"),
    "figure6": partial(over_lora_scales, name="figure6", said=_UNTOLD + "more seeds: {seeds}.", seeds=3),
    "figure7": partial(
        over_lora_scales, name="figure7", said=_UNTOLD + "prompts that put the character elsewhere.", prompts=ELSEWHERE
    ),
    "figure8": partial(pixel_art_figure, name="figure8", shown=slice(4, 8), which="next"),
    "frontier": partial(
        frontier, name="frontier", title="Diversity against presence, each method over its own parameter"
    ),
    "frontier_equal": frontier_equal,
    "map": lora_map,
    "speed": speed,
    "sweep": partial(_scales, name="sweep", cells=scale_grid(SCALES)),
    "sweep_contexts": partial(_scales, name="sweep_contexts", cells=scale_grid((0.4, 0.7, 1.0)), prompts=CONTEXTS),
    "sweep_contexts_gamma": partial(
        _gammas, name="sweep_contexts_gamma", cells=over_gammas((1.5, 2.0)), prompts=CONTEXTS
    ),
    "sweep_gamma": partial(_gammas, name="sweep_gamma", cells=over_gammas((1.25, 1.5, 1.75, 2.0))),
}


def names() -> tuple[str, ...]:
    """Of the experiments that come with the package: tables, figures by their numbers, the rest."""
    return tuple(EXPERIMENTS)


def load(name: str, builtin: bool = False) -> Experiment:
    """An experiment by its name, or from a .py file, which is executed. builtin: for the built-in model.

    Raises ConfigError: did you mean; or what is wrong with the file, and in which line.
    """
    if name.endswith(".py"):
        return load_preset(Path(name), Experiment, "get_builtin" if builtin else "get_config")
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no experiment {name!r}: {hint}there are {', '.join(names())}, and .py files")
    return EXPERIMENTS[name](builtin)
