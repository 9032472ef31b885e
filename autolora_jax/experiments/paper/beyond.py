"""Beyond the paper: every way of guidance as a curve over its own parameter, and Table 1 in many small pictures.

autolora reproduce frontier --lora princess_xl_v2.safetensors --judge MODEL
autolora reproduce sweep
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from autolora_jax import guidance
from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.experiments.parts import (
    AUTOLORA,
    AUTOLORA_CFG,
    BARE,
    CHARACTER_LORA,
    CONTEXTS,
    GAMMA,
    LORA,
    LORA_CFG,
    METHODS,
    PAIRS,
    PRESENT,
    WEAK_LORA,
    WEAKER,
    comparison,
    curve,
    drawing,
)
from autolora_jax.settings.rules import CFG, AutoGuidance, AutoLoRA, NoGuidance, PersonalizationGuidance, Rule
from autolora_jax.weights.families import SDXL

W = SDXL.guidance_scale
STRENGTHS = (1.5, 3.0, 5.0, 7.0, 10.0)  # of classifier-free guidance
GAMMAS = (1.25, 1.5, 1.75, 2.0, 2.5)
OMEGAS = (0.0, 0.2, 0.4, 0.6, 0.8)
OMEGA = 0.5
SCALES = ((0.4, 0.6, 0.8, 1.0, 1.2), (0.3, 0.4, 0.5, 0.6, 0.8))  # of the LoRA, where that runs
SEEDS = (128, 16)
# What was chosen, for both models.
CHOSEN = (
    f"Beyond the paper: methods and values were chosen here. CFG's scale is {W:g}, γ {GAMMA} and ω {OMEGA} where "
    "they don't run; the LoRA's own scale is that of the job.",
    "AutoGuidance with the base model as the bad one (Eq. 5) is AutoLoRA without CFG (Eq. 6): one curve.",
)
SWEPT = 256  # pictures a cell of a sweep
SWEEP_STEPS = 16


class Curve(NamedTuple):
    """A method: a name that says which parameter runs, its values, the rule at one; None: the LoRA's scale runs."""

    method: str
    values: Sequence[float] | None
    rule: Callable[[float], Rule]

    def cell(self, at: float, budget: int) -> Cell:
        rule = self.rule(at)
        scale = {"lora_scale": at} if self.values is None else {}
        steps = {"num_inference_steps": equal_steps(rule, budget)} if budget else {}
        return Cell(self.method, at, {"guidance": rule, **scale, **steps})


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


def frontier(small: bool, name: str, title: str, said: Sequence[str] = (), budget: int = 0) -> Experiment:
    """All curves on one job: what each way of guidance offers of diversity and of presence.

    Diversity is only comparable at equal presence: without CFG the plain LoRA is more varied, but misses the character.
    So every method is a curve, of as many settings as any other. 6,400 pictures at 1024².
    budget: evaluations of the network that every picture takes; 0: all take the same steps.
    """
    return comparison(
        small,
        name=name,
        title=title,
        job=drawing(small, BARE[small], SEEDS[small], WEAK_LORA),
        cells=[curve.cell(float(at), budget) for curve in CURVES for at in curve.values or SCALES[small]],
        said=[*said, *([WEAKER] if small else []), *CHOSEN],
        axis="its parameter",
        asks=(PRESENT[small],),
        plots=(("Div", "CPS"),),
        frontier=("Div", "CPS"),
        sheets=tuple(Sheet("axis", methods=(curve.method,)) for curve in CURVES),
    )


def frontier_equal(small: bool) -> Experiment:
    """AutoLoRA with CFG takes four evaluations a step, CFG two: here the cheaper methods have more steps instead."""
    budget = 36 if small else 120
    what = "." if small else ", what AutoLoRA with CFG takes in 30 steps."
    title = "Diversity against presence at equal network evaluations"
    return frontier(small, "frontier_equal", title, [f"{budget} evaluations a picture{what}"], budget)


def equal_steps(rule: Rule, budget: int) -> int:
    """The number of steps at which a rule takes exactly so many evaluations of the network.

    Raises ValueError when there is none.
    """
    for steps in range(1, budget + 1):
        if guidance.evaluations(guidance.plan(rule, 1, steps).segments) == budget:
            return steps
    raise ValueError(f"{rule} takes {budget} evaluations at no number of steps")


def over_gammas(gammas: Sequence[float]) -> tuple[Cell, ...]:
    """γ at the LoRA's own scale, without and with CFG; what it is at 1, the LoRA alone, stands beside."""
    plain = (Cell(method, None, {"guidance": METHODS[method]}) for method in (LORA, LORA_CFG))
    curves = (
        curve(method, {"guidance": METHODS[method]}, "guidance.gamma", gammas) for method in (AUTOLORA, AUTOLORA_CFG)
    )
    return (*plain, *(cell for cells in curves for cell in cells))


def sweep(
    small: bool, name: str, axis: str, what: str, cells: Sequence[Cell], prompts: Sequence[str] = BARE[True]
) -> Experiment:
    """What AutoLoRA does to the built-in model's character LoRA, in many pictures; of that model in any case.

    The LoRA was tuned on pictures of one place and sky. So it is asked how present the character is, how varied
    pictures are, and how often they drag that place along; of prompts that ask for others, also how much of them is
    drawn.
    """
    elsewhere = prompts is CONTEXTS
    where = f": {len(prompts)} prompts that put the character elsewhere than its training did" if elsewhere else ""
    return comparison(
        True,
        name=name,
        title=f"The built-in model over {what}{where}",
        job=drawing(True, prompts, SWEPT // len(prompts), CHARACTER_LORA, SWEEP_STEPS),
        cells=cells,
        said=[],
        axis=axis,
        asks=(PRESENT[True], Ask("training context"), Ask("variety"), *([Ask("surroundings")] if elsewhere else [])),
        pairs=PAIRS,
        plots=(("Div", "CPS"), *((axis, figure) for figure in ("Div", "CPS", "Div-CPS"))),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis", prompts=len(prompts)),),
    )
