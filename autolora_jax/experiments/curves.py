"""Beyond the paper: every way of guidance as a curve over its own parameter, at equal steps or equal evaluations."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from autolora_jax import guidance
from autolora_jax.batch import Job
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.experiments.parts import GAMMA, SILENT, SMALL
from autolora_jax.settings import CFG, AutoGuidance, AutoLoRA, NoGuidance, PersonalizationGuidance, Rule
from autolora_jax.weights.families import SDXL

W = SDXL.guidance_scale
STRENGTHS = (1.5, 3.0, 5.0, 7.0, 10.0)  # of classifier-free guidance
GAMMAS = (1.25, 1.5, 1.75, 2.0, 2.5)
OMEGAS = (0.0, 0.2, 0.4, 0.6, 0.8)
OMEGA = 0.5
# What was chosen, for both models.
CHOSEN = (
    f"Beyond the paper: methods and values were chosen here. CFG's scale is {W:g}, γ {GAMMA} and ω {OMEGA} where "
    "they don't run; the LoRA's own scale is that of the job.",
    "AutoGuidance with the base model as the bad one (Eq. 5) is AutoLoRA without CFG (Eq. 6): one curve.",
)


class Curve(NamedTuple):
    """A method: a name that says which parameter runs, its values, the rule at one; None: the LoRA's scale runs."""

    method: str
    values: Sequence[float] | None
    rule: Callable[[float], Rule]


def _auto(gamma: float, start: float = 0.0, stop: float = 1.0) -> Rule:
    return AutoLoRA(gamma, w1=W, w2=W, start=start, stop=stop)


# As many values each: a dominated area grows with the number of points. AutoGuidance, Eq. 5, with the base as the bad
# model is AutoLoRA without CFG, Eq. 6.
CURVES = (
    Curve("LoRA, scale", None, lambda _: NoGuidance()),
    Curve("LoRA + CFG, scale", None, lambda _: CFG(W)),
    Curve("AutoLoRA + CFG, scale", None, lambda _: _auto(GAMMA)),
    Curve("LoRA + CFG, w", STRENGTHS, CFG),
    Curve("AutoGuidance = AutoLoRA, γ", GAMMAS, AutoGuidance),
    Curve("AutoLoRA + CFG, γ", GAMMAS, _auto),
    Curve("AutoLoRA + CFG, first half, γ", GAMMAS, functools.partial(_auto, stop=0.5)),
    Curve("AutoLoRA + CFG, middle half, γ", GAMMAS, functools.partial(_auto, start=0.25, stop=0.75)),
    Curve("Personalization, ω", OMEGAS, lambda omega: PersonalizationGuidance(W, omega)),
    Curve("Personalization, w", STRENGTHS, lambda w: PersonalizationGuidance(w, OMEGA)),
)


def frontier(
    name: str, title: str, job: Job, scales: Sequence[float], ask: Ask, said: Sequence[str], budget: int = 0
) -> Experiment:
    """All curves on one job. scales: of the LoRA, where that runs; elsewhere it is the job's.

    said: what else was chosen. budget: evaluations of the network that every picture takes; 0: all take the same steps.
    """
    cells = tuple(_cell(curve, float(at), budget) for curve in CURVES for at in curve.values or scales)
    small = job.settings.model.source == BUILTIN
    return Experiment(
        name=name,
        title=title,
        job=job,
        cells=cells,
        axis="its parameter",
        asks=(ask,),
        plots=(("Div", "CPS"),),
        frontier=("Div", "CPS"),
        sheets=tuple(Sheet("axis", methods=(curve.method,)) for curve in CURVES),
        assumptions=(*said, *CHOSEN, *(SMALL if small else SILENT)),
        world=small,
    )


def equal_steps(rule: Rule, budget: int) -> int:
    """The number of steps at which a rule takes exactly so many evaluations of the network.

    Raises ValueError when there is none.
    """
    for steps in range(1, budget + 1):
        if guidance.evaluations(guidance.plan(rule, 1, steps).segments) == budget:
            return steps
    raise ValueError(f"{rule} takes {budget} evaluations at no number of steps")


def _cell(curve: Curve, at: float, budget: int) -> Cell:
    rule = curve.rule(at)
    scale = {"lora_scale": at} if curve.values is None else {}
    steps = {"num_inference_steps": equal_steps(rule, budget)} if budget else {}
    return Cell(curve.method, at, {"guidance": rule, **scale, **steps})
