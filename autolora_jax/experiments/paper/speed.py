"""Beyond the paper: what a picture's evaluations of the network buy, by every way to AutoLoRA that there is.

autolora reproduce speed
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.experiments.parts import CONTEXTS, GAMMA, PRESENT, comparison, drawing
from autolora_jax.experiments.results import EVALUATIONS
from autolora_jax.settings import Lora
from autolora_jax.settings.rules import CFG, AutoLoRA, NoGuidance, Rule

W = 3.0  # at 5 the built-in model's pictures break
SCALE = 0.7  # of the LoRA: at 1 every picture shows the character
PICTURES = 256  # a cell
STEPS = (4, 8, 16, 30)
EXACT = "AutoLoRA"
LORA = Lora(f"{BUILTIN}:character", SCALE)


class Way(NamedTuple):
    """A method: its rule, the steps that it is drawn in, what else it changes in the job."""

    method: str
    rule: Rule
    steps: Sequence[int] = STEPS
    changes: Mapping[str, Any] = {}

    def cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(self.method, float(n), {"guidance": self.rule, **self.changes, "num_inference_steps": n})
            for n in self.steps
        )


def _auto(w: float = W, **more: Any) -> Rule:
    return AutoLoRA(GAMMA, w1=w, w2=w, **more)


WAYS = (
    Way(EXACT, _auto()),
    Way("LoRA + CFG", CFG(W)),
    Way("LoRA", NoGuidance()),
    Way("AutoLoRA without CFG (Eq. 6)", _auto(1.0)),
    Way("AutoLoRA, first half", _auto(stop=0.5)),
    Way("AutoLoRA, base every 2nd step", _auto(refresh_base=2)),
    Way("AutoLoRA, base every 4th step", _auto(refresh_base=4), STEPS[1:]),
    Way("AutoLoRA, ∅ every 2nd, base every 4th step", _auto(refresh_base=4, refresh_uncond=2), STEPS[1:]),
    Way("distilled AutoLoRA", NoGuidance(), STEPS[1:], {"loras": (Lora(f"{BUILTIN}:character-autolora"),)}),
    Way(
        "AutoLoRA distilled in 8 steps",
        NoGuidance(),
        (8,),
        {
            "loras": (Lora(f"{BUILTIN}:character-autolora-8"),),
            "scheduler": "euler",
            "timestep_spacing": "trailing",
        },
    ),
)


def speed(small: bool) -> Experiment:
    """Quality against evaluations, of the built-in model's character LoRA, in places where its training never was; of
    that model in any case.

    Every way of guidance is drawn in few steps and in many, from the same noise; the reference is exact AutoLoRA in 30.
    """
    steps = max(STEPS)
    return comparison(
        True,
        name="speed",
        title="What AutoLoRA costs and gives: quality against evaluations of the network",
        job=drawing(True, CONTEXTS, PICTURES // len(CONTEXTS), (LORA, LORA), steps),
        cells=[cell for way in WAYS for cell in way.cells()],
        said=[f"γ is {GAMMA}, the LoRA's scale {SCALE}: chosen, as CFG's, before these pictures were drawn."],
        axis="steps",
        asks=(PRESENT[True], Ask("surroundings"), Ask("variety")),
        reference=(EXACT, float(steps)),
        plots=tuple((EVALUATIONS, figure) for figure in ("All right", "CPS", "Div", "Distance")),
        sheets=(Sheet("axis", prompts=2),),
    )
