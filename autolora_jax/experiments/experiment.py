"""An experiment: ways of drawing that are compared on the same prompts and seeds, and what is asked of the pictures.

A file of an experiment has two functions, get_config() for the published models and get_builtin() for the built-in one:
the same comparison in small, on any machine.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autolora_jax.batch import Job
from autolora_jax.config import ConfigError
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.demo.classifier import SIZE
from autolora_jax.settings.pictures import STEPS as USUAL_STEPS
from autolora_jax.settings.values import strength_text
from autolora_jax.weights.families import SDXL

STEPS = {"num_inference_steps", "sampler.steps"}  # its name, now and in version 0.1
FEW = 3  # seeds that are named one by one
TRAINED = 1024  # pixels of a side, of SDXL and SD3


class Cell(NamedTuple):
    """A way of drawing: a point of a method's curve, or all there is of it.

    method: as tables and legends call it. at: where on the experiment's axis it stands; None: the method has no axis.
    settings: its changes to the job's settings, by the names that `--set` knows.
    published: the paper's numbers of it, by the names of figures ("Div", "CPS", "Div-CPS", …).
    """

    method: str
    at: float | None
    settings: Mapping[str, Any]
    published: Mapping[str, float] = {}


class Ask(NamedTuple):
    """A question to the judge: a key of judge.QUESTIONS and what it needs to know beside the picture's own prompt."""

    question: str
    parameters: Mapping[str, str] = {}


class Sheet(NamedTuple):
    """Pictures side by side, all from the same prompt and noise along a row or a column.

    by: "cell": every cell is a column, every prompt and seed a row; "axis": values of the axis are columns, methods are
    rows, and every prompt and seed has a sheet of its own. prompts, seeds: how many of the job's are shown, the first
    ones. methods: which ones are shown; (): all.
    """

    by: str = "axis"
    prompts: int = 1
    seeds: int = 1
    methods: tuple[str, ...] = ()


class Spot(NamedTuple):
    """A method's place on a map, and the methods that it is compared with where they are as good at its level.

    row, column: what stands beside it and above it, such as a LoRA's training and a rule; its cells lie side by side.
    """

    method: str
    rivals: tuple[str, ...]
    row: str
    column: str


class Chart(NamedTuple):
    """A map of where methods have more than the best of their rivals at equal `level`, a figure such as "CPS".

    figures: that are drawn, one below the other. falling: those of which less is better.
    """

    level: str
    figures: tuple[str, ...]
    spots: tuple[Spot, ...]
    falling: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A comparison. Raises ConfigError for what can't be meant.

    name: of its file, and what `autolora reproduce` calls it.
    job: prompts, seeds and the settings that all cells share; it has no grid of its own.
    axis: what `Cell.at` is, such as "LoRA scale"; "" where no cell has one.
    asks: what the judge is asked about every picture; () where pictures are only shown, then nothing is measured.
    pairs: method -> the method that it is compared with, picture by picture at the same place of the axis.
    reference: (method, place) of the cell that the others' pictures are compared with, each with the one from the same
        noise: how far they are from it; None: no distance is measured.
    plots: pairs of figures or the axis that are drawn against each other, such as ("LoRA scale", "Div-CPS").
    frontier: (a figure for how varied, one for how well), such as ("Div", "CPS"); (): no frontier.
    chart: a map of what methods have at equal level; None: no map.
    assumptions: what the paper does not say and was chosen here; what flags change stands in braces, see `assumed`.
    world: whether its pictures are of the built-in model's world, whose classifier then is the judge.
    """

    name: str
    title: str
    job: Job
    cells: tuple[Cell, ...]
    axis: str = ""
    asks: tuple[Ask, ...] = ()
    pairs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: tuple[str, float | None] | None = None
    plots: tuple[tuple[str, str], ...] = ()
    frontier: tuple[str, ...] = ()
    chart: Chart | None = None
    sheets: tuple[Sheet, ...] = ()
    assumptions: tuple[str, ...] = ()
    world: bool = False

    def __post_init__(self) -> None:
        if self.job.grid:
            raise ConfigError(f"{self.name}: the job should have no grid; the cells are its settings")
        if not self.cells:
            raise ConfigError(f"{self.name} compares nothing: it should have one or more cells")
        places = [(cell.method, cell.at) for cell in self.cells]
        if twice := [place for place, same in itertools.groupby(sorted(map(str, places))) if len([*same]) > 1]:
            raise ConfigError(f"{self.name}: {twice[0]} occurs twice")
        charted = {name for spot in (self.chart.spots if self.chart else ()) for name in (spot.method, *spot.rivals)}
        if unknown := {*self.pairs, *self.pairs.values(), *charted} - {cell.method for cell in self.cells}:
            raise ConfigError(f"{self.name}: no cell's method is {', '.join(sorted(unknown))}")
        if self.reference and self.reference not in [(cell.method, cell.at) for cell in self.cells]:
            raise ConfigError(f"{self.name}: no cell is the reference, {self.reference}")

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order of the cells."""
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def whole_job(self) -> Job:
        """The job that draws all cells. Its i-th settings are those of the i-th cell."""
        return dataclasses.replace(self.job, grid=[_grid(cell.settings) for cell in self.cells])


def assumed(experiment: Experiment) -> tuple[str, ...]:
    """What the paper does not say and was chosen, as this run has it, for flags change seeds, steps, sizes and scales.

    The experiment's assumptions with {steps}, {size}, … as they are in this run; without those that are empty.
    """
    known = _facts(experiment)
    texts = (re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), each) for each in experiment.assumptions)
    return tuple(filter(None, texts))


def _facts(experiment: Experiment) -> Mapping[str, str]:
    """What stands for a name in braces."""
    job, settings = experiment.job, experiment.job.settings
    own = {name for cell in experiment.cells for name in cell.settings}
    seeds, usual = [*map(str, job.all_seeds)], SIZE if settings.model.source == BUILTIN else TRAINED
    width, height = settings.size or (usual, usual)
    none = "none, as the checkpoint's own pipeline means it (zeros for SDXL)"
    streams = {"jax": "JAX's, so compositions differ from those of other programs"}
    sd3 = "SD3, which is no ε model, has its own flow-matching Euler solver."
    return {
        "steps": "each cell's own steps" if own & STEPS else f"{settings.num_inference_steps or USUAL_STEPS} steps",
        "size": f"{width} × {height} pixels",
        "negative": none if job.negative_prompt is None else f"“{job.negative_prompt}”",
        "seeds": ", ".join(seeds if len(seeds) <= FEW else [*seeds[:FEW], "…"]),
        "count": f"{len(seeds):,}",
        "prompts": f"{len(job.prompts):,}",
        "noise": streams.get(settings.noise, f"{settings.noise}'s"),
        "solver": settings.scheduler or "the checkpoint's own solver",
        "scale": ", ".join(f"{x:g}" if isinstance(x, float) else strength_text(x) for x in settings.scales()),
        "sd3": sd3 if "model.source" in own else "",
        "w": _scale_of_cfg(experiment),
    }


def _scale_of_cfg(experiment: Experiment) -> str:
    """In words; open ones are the paper's of SDXL, which the built-in model's family is."""
    rules = [cell.settings.get("guidance") or experiment.job.settings.rule() for cell in experiment.cells]
    scales = {getattr(rule, name) for rule in rules for name in rule.SCALES} - {1.0}  # 1: none
    if scales <= {None, SDXL.guidance_scale}:
        return f"{SDXL.guidance_scale:g} as in the paper"
    return f"{scales.pop():g}" if len(scales) == 1 else "each cell's own"


def _grid(settings: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    return {name: [value] for name, value in settings.items()}
