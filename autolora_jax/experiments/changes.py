"""An experiment, changed: other files for its models and LoRAs, a part of its cells, other settings that all share."""

import dataclasses
import fnmatch
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autolora_jax.config import ConfigError
from autolora_jax.experiments.experiment import Chart, Experiment, Sheet
from autolora_jax.settings import Lora
from autolora_jax.settings.changes import RENAMED, override

SOURCE, VARIANT, LORAS = "model.source", "model.variant", "loras"
SETTINGS = "settings."  # how the names of a job's settings begin


def models(experiment: Experiment) -> list[str]:
    """The models that its cells are drawn with."""
    own = experiment.job.settings.model.source
    return list(dict.fromkeys(str(cell.settings.get(SOURCE, own)) for cell in experiment.cells))


def loras(experiment: Experiment) -> list[str]:
    """The LoRA files that its cells are drawn with."""
    own = experiment.job.settings.loras
    return list(dict.fromkeys(lora.source for cell in experiment.cells for lora in cell.settings.get(LORAS, own)))


def with_models(experiment: Experiment, texts: Sequence[str]) -> Experiment:
    """The experiment with models from elsewhere. texts: PLACE, or NAME=PLACE where it has several.

    Raises ConfigError when it isn't clear which one is meant.
    """
    places = _assigned(experiment, "--model", models(experiment), texts)
    for name, found in places.items():
        if len(found) > 1:
            raise ConfigError(f"--model: {name} is given {len(found)} times; give it once")

    def changed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        if settings.get(SOURCE) not in places:
            return settings
        # The variant is of the published files.
        return {**settings, SOURCE: places[settings[SOURCE]][0], VARIANT: None}

    return _changed(experiment, (SOURCE, VARIANT), changed)


def with_loras(experiment: Experiment, texts: Sequence[str]) -> Experiment:
    """The experiment with LoRAs from elsewhere. texts: FILE[:SCALE], or NAME=FILE[:SCALE] where it has several.

    Several files for one are all loaded. A scale that is not given stays; where cells set it, theirs counts.
    Raises ConfigError when it isn't clear which one is meant.
    """
    files = _assigned(experiment, "--lora", loras(experiment), texts)

    def changed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        if LORAS not in settings:
            return settings
        new = ([_at(old, text) for text in files.get(old.source, [])] or [old] for old in settings[LORAS])
        return {**settings, LORAS: tuple(itertools.chain.from_iterable(new))}

    return _changed(experiment, (LORAS,), changed)


def only(experiment: Experiment, methods: Sequence[str] = (), places: Sequence[float] = ()) -> Experiment:
    """The cells of methods that fit one of these patterns ("SDXL *"), at these places of the axis; (): all.

    Where the reference is not among them, no distance is measured.
    Raises ConfigError for what fits nothing.
    """
    for pattern in methods:
        if not fnmatch.filter(experiment.methods, pattern):
            raise ConfigError(f"--only {pattern!r} fits none of its methods: {', '.join(experiment.methods)}")
    known = sorted({cell.at for cell in experiment.cells if cell.at is not None})
    for place in places:
        if place not in known:
            raise ConfigError(
                f"--at {place:g} is no place of its axis: there are {', '.join(f'{at:g}' for at in known)}"
            )
    cells = tuple(
        cell
        for cell in experiment.cells
        if (not methods or any(fnmatch.fnmatchcase(cell.method, pattern) for pattern in methods))
        and (not places or cell.at is None or cell.at in places)
    )
    left, there = {cell.method for cell in cells}, {(cell.method, cell.at) for cell in cells}

    def shown(sheet: Sheet) -> Sheet:
        return sheet._replace(methods=tuple(method for method in sheet.methods if method in left))

    return dataclasses.replace(
        experiment,
        cells=cells,
        pairs={method: other for method, other in experiment.pairs.items() if {method, other} <= left},
        reference=experiment.reference if experiment.reference in there else None,
        chart=_chart(experiment.chart, left),
        sheets=tuple(shown(sheet) for sheet in experiment.sheets if not sheet.methods or {*sheet.methods} & left),
    )


def _chart(chart: Chart | None, left: set[str]) -> Chart | None:
    """The map of the methods that are left, with the rivals that are."""
    if chart is None:
        return None
    spots = (
        spot._replace(rivals=tuple(rival for rival in spot.rivals if rival in left))
        for spot in chart.spots
        if spot.method in left
    )
    compared = tuple(spot for spot in spots if spot.rivals)
    return chart._replace(spots=compared) if compared else None


def with_settings(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """The experiment with other settings of its job, by the names that `autolora batch --set` knows.

    Raises ConfigError for unknown names, values that can't be, and settings in which its cells differ.
    """
    compared = {RENAMED.get(name, name) for cell in experiment.cells for name in cell.settings}
    for name in changes:
        mine = name.removeprefix(SETTINGS)
        mine = RENAMED.get(mine, mine)
        if name.startswith(SETTINGS) and any(_overlap(mine, theirs) for theirs in compared):
            raise ConfigError(f"--set {name}: {experiment.name} compares that; --only and --at take a part of it")
        if name == "grid" or name.startswith("prompt"):
            raise ConfigError(f"--set {name}: that is the experiment; write a file of your own for another one")
    return dataclasses.replace(experiment, job=override(experiment.job, changes))


def _assigned(experiment: Experiment, flag: str, names: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """What each of the experiment's files is replaced by."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name = next((name for name in names if text.startswith(f"{name}=")), None)
        if name is None and len(names) != 1:
            forms = " ".join(f"{flag} {name}=…" for name in names)
            raise ConfigError(f"{flag} {text}: {experiment.name} has {len(names)} of them; say which: {forms}")
        found.setdefault(name or names[0], []).append(text.removeprefix(f"{name}="))
    return found


def _at(old: Lora, text: str) -> Lora:
    """The LoRA of a text; at the old scale where it gives none."""
    lora = Lora.parse(text)
    bare = lora.source in (text, text.rpartition("@")[0])
    return dataclasses.replace(lora, scale=old.scale) if bare else lora


def _changed(
    experiment: Experiment, names: Sequence[str], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Experiment:
    """With the job's settings of these names, and those of its cells, as a function changes them."""
    cells = tuple(cell._replace(settings=change(cell.settings)) for cell in experiment.cells)
    settings = experiment.job.settings
    mine = change({name: operator.attrgetter(name)(settings) for name in names})
    job = dataclasses.replace(experiment.job, settings=override(settings, mine))
    return dataclasses.replace(experiment, job=job, cells=cells)


def _overlap(one: str, other: str) -> bool:
    """Whether one is a part of the other, or the same."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
