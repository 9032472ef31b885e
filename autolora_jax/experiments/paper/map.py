"""Beyond the paper: when AutoLoRA helps, over how a LoRA was tuned and how it is drawn with.

python -m recipes.builtin tuned --model out/model --out tuned
cd tuned && autolora reproduce map
"""

from collections.abc import Iterator
from typing import NamedTuple

from autolora_jax.demo.world import CHARACTER, CONTEXT, PLACE_PHRASES, PLACES
from autolora_jax.experiments.experiment import Ask, Cell, Chart, Experiment, Spot
from autolora_jax.experiments.parts import GAMMA, PRESENT, TUNINGS, Tuning, comparison, drawing
from autolora_jax.settings import Lora
from autolora_jax.settings.rules import CFG, AutoLoRA, NoGuidance, Rule

STEPS = 16
PICTURES = 256  # a cell, at least
SCALES = (0.6, 0.8, 1.0)
WEIGHTS = (1.0, 3.0, 5.0)  # w; 1: no CFG
STRONG = 2.0  # γ
# Places are told and everything else is free, so that both can be seen: whether a picture is what was asked for, and
# how varied the rest is.
PROMPTS = tuple(f"a {CHARACTER} {PLACE_PHRASES[place][0]}" for place in PLACES if place != CONTEXT.place)


class Way(NamedTuple):
    """A rule, and the steps that it is drawn in."""

    told: str
    rule: Rule
    steps: int = STEPS

    @property
    def evaluations(self) -> int:
        """Of a picture."""
        return self.steps * sum(map(bool, self.rule.coefficients().values()))


def _plain(w: float) -> Rule:
    return NoGuidance() if w == 1 else CFG(w)


def _with(what: str, w: float) -> str:
    return what if w == 1 else f"{what}, w {w:g}"


PLAIN = (
    *(Way(_with("LoRA", w), _plain(w)) for w in WEIGHTS),
    *(Way(f"{_with('LoRA', w)}, {2 * STEPS} steps", _plain(w), 2 * STEPS) for w in WEIGHTS[:2]),
)
AUTO = (
    *(Way(_with(f"γ {GAMMA:g}", w), AutoLoRA(GAMMA, w1=w, w2=w)) for w in WEIGHTS),
    *(Way(_with(f"γ {STRONG:g}", w), AutoLoRA(STRONG, w1=w, w2=w)) for w in WEIGHTS[:2]),
)


def lora_map(small: bool) -> Experiment:
    """AutoLoRA beside the best plain LoRA of the same file at no less presence and no more evaluations; of the built-in
    model in any case."""
    return comparison(
        True,
        name="map",
        title="When AutoLoRA helps: beside the best plain LoRA at equal presence and evaluations",
        job=drawing(True, PROMPTS, -(-PICTURES // len(PROMPTS)), (_lora(TUNINGS[0]),) * 2, STEPS),
        cells=[cell for tuning in TUNINGS for way in (*PLAIN, *AUTO) for cell in _cells(tuning, way)],
        said=[
            "Chosen before these pictures were drawn: tunings, scales, γ, w and steps. A plain LoRA is compared with "
            "AutoLoRA where it takes no more evaluations: without CFG also in twice the steps.",
        ],
        axis="LoRA scale",
        asks=(PRESENT[True], Ask("surroundings"), Ask("training context"), Ask("variety")),
        chart=Chart(
            level="CPS",
            figures=("All right", "Training context", "Div", "Div sky", "Div size", "Div side"),
            spots=tuple(_spots()),
            falling=("Training context",),
        ),
    )


def _spots() -> Iterator[Spot]:
    for tuning in TUNINGS:
        for way in AUTO:
            rivals = tuple(_method(tuning, plain) for plain in PLAIN if plain.evaluations <= way.evaluations)
            yield Spot(_method(tuning, way), rivals, tuning.told, way.told)


def _cells(tuning: Tuning, way: Way) -> Iterator[Cell]:
    for scale in SCALES:
        changes = {"loras": (_lora(tuning),), "lora_scale": scale, "guidance": way.rule}
        yield Cell(_method(tuning, way), scale, {**changes, "num_inference_steps": way.steps})


def _lora(tuning: Tuning) -> Lora:
    return Lora(tuning.source)


def _method(tuning: Tuning, way: Way) -> str:
    return f"{way.told} ({tuning.told})"
