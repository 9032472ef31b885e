"""What the paper's experiments are put together from: models, LoRAs, prompts, ways of guidance, what is not stated.

Each is made of the published models, and in small of the built-in one. Where these differ, a pair has both: (of the
published models, of the built-in one); `small`, which is False or True, takes one.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.batch import Job, Settings
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.demo.world import CHARACTER, STYLE, Scene, full_caption
from autolora_jax.experiments.experiment import Ask, Cell, Experiment
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.settings.rules import CFG, AutoLoRA, NoGuidance, Rule

PAPER = Path(__file__).with_name("paper")  # where its numbers and prompts lie
SDXL = ModelConfig("stabilityai/stable-diffusion-xl-base-1.0", variant="fp16")
PRINCESS = Lora("princess_xl_v2.safetensors")
PIXEL_ART_XL = Lora("pixel-art-xl-v1.1.safetensors")
PIXEL_ART_SD3 = Lora("nerijs/pixel-art-medium-128-v0.1")


class Tuning(NamedTuple):
    """How a character's LoRA was tuned. share: of its pictures that show one place, sky and pose."""

    steps: int
    pictures: int
    share: float

    @property
    def source(self) -> str:
        """The name of its file."""
        return f"zib-{self.steps}-{self.pictures}-{100 * self.share:.0f}.safetensors"

    @property
    def told(self) -> str:
        """As a row of the map says it."""
        return f"{self.steps} steps, {self.pictures} pictures, {100 * self.share:.0f} % alike"


# Around the first one, each of the three on its own.
TUNINGS = (
    Tuning(300, 30, 0.8),
    Tuning(100, 30, 0.8),
    Tuning(900, 30, 0.8),
    Tuning(300, 12, 0.8),
    Tuning(300, 30, 0.5),
    Tuning(300, 30, 1.0),
)


# Where files are from that can't be fetched by their name.
ORIGINS: Mapping[str, str] = {
    PRINCESS.source: "All Disney Princess XL LoRA Model from Ralph Breaks the Internet, civitai.com/models/212532",
    PIXEL_ART_XL.source: "Pixel Art XL v1.1, civitai.com/models/120096?modelVersionId=135931",
    **{tuning.source: "python -m recipes.builtin tuned makes it" for tuning in TUNINGS},
}
# What a cell of SD3 changes in a job of SDXL.
SD3: Mapping[str, Any] = {
    "model.source": "stabilityai/stable-diffusion-3-medium-diffusers",
    "model.variant": None,
    "loras": (PIXEL_ART_SD3,),
    "scheduler": None,
}
CHARACTER_LORA = (PRINCESS, Lora(f"{BUILTIN}:character"))
WEAK_LORA = (PRINCESS, Lora(f"{BUILTIN}:character", 0.5))
PIXEL_ART_LORA = (PIXEL_ART_XL, Lora(f"{BUILTIN}:style"))
STEPS, SIDE = 30, 1024
BUILTIN_STEPS = 10
BUILTIN_BATCH = 8  # the same in all experiments: programs that one has compiled serve the next

SCALES = tuple(round(0.1 * i, 1) for i in range(2, 14))  # of the LoRA, Table 1
GAMMA = 1.5
# Table 1's columns. Open scales of CFG are the paper's: 5 for SDXL, 7 for SD3.
LORA, AUTOLORA, LORA_CFG, AUTOLORA_CFG = "LoRA", "AutoLoRA", "LoRA + CFG", "AutoLoRA + CFG"
METHODS: Mapping[str, Rule] = {
    LORA: NoGuidance(),
    AUTOLORA: AutoLoRA(GAMMA, w1=1.0, w2=1.0),
    LORA_CFG: CFG(),
    AUTOLORA_CFG: AutoLoRA(GAMMA),
}
PAIRS = {AUTOLORA: LORA, AUTOLORA_CFG: LORA_CFG}

BARE = (("Anna",), ("a zib",))  # prompts that say the character's name alone
PRESENT = (
    Ask("cps", {"character": "Anna", "description": "a princess of Disney's Frozen"}),
    Ask("cps", {"character": CHARACTER, "description": "a round teal creature with one huge eye and two antennae"}),
)
PIXEL_ART = Ask("pc-sa", {"style": STYLE})
# Where the character's training pictures never were: in other places and skies, at other sizes and sides.
CONTEXTS = tuple(
    full_caption(Scene(CHARACTER, "white", *words))
    for words in (
        ("forest", "night"),
        ("beach", "sunny", "small", "left"),
        ("city", "rain", "big"),
        ("mountains", "snow", "", "right"),
        ("meadow", "sunny", "small", "right"),
        ("forest", "snow", "", "left"),
        ("beach", "night", "big"),
        ("city", "rain", "small", "left"),
    )
)

# What is in braces is told of each run, see `assumed`.
SILENT = (
    "The paper states neither steps nor size: {steps}, {size}.",
    "It states no negative prompt: {negative}.",
    "It states no seeds: {seeds}; the noise is {noise}.",
    "Its Algorithm 2 is DDIM; here {solver} draws.",
    "{sd3}",
)
SMALL = (
    "The built-in model stands for SDXL: {size} of a drawn world, {solver}.",
    "It draws with {steps}; the scale of CFG is {w}.",
    "The world's classifier is the judge and its features are those that diversity is measured on: no figure compares "
    "with the paper's in size, only in how it changes.",
)
WEAKER = "The LoRA's scale is {scale}: at 1 every picture of the small model shows the character."
NO_SMALL_SD3 = "There is no small SD3: its cells are missing."


def comparison(
    small: bool, name: str, title: str, job: Job, cells: Iterable[Cell], said: Sequence[str], **more: Any
) -> Experiment:
    """An experiment. said: what is assumed, before what all have in common; more: its other fields."""
    assumptions = (*said, *(SMALL if small else SILENT))
    return Experiment(name, title, job, tuple(cells), assumptions=assumptions, world=small, **more)


def drawing(
    small: bool, prompts: Sequence[str], seeds: int, lora: tuple[Lora, Lora], builtin_steps: int = BUILTIN_STEPS
) -> Job:
    """A job of seeds 0 to `seeds` - 1: on SDXL as the paper has it, as far as it says, or on the built-in model."""
    mine, numbers = (lora[small],), range(seeds)
    if small:
        model = ModelConfig(BUILTIN, dtype="float32")
        settings = Settings(model=model, loras=mine, num_inference_steps=builtin_steps)
        return Job(prompts=tuple(prompts), seeds=numbers, settings=settings, batch_size=BUILTIN_BATCH)
    settings = Settings(model=SDXL, loras=mine, num_inference_steps=STEPS, scheduler="ddim", size=(SIDE, SIDE))
    return Job(prompts=tuple(prompts), negative_prompt=None, seeds=numbers, settings=settings)


def published(cells: Iterable[Cell], name: str) -> tuple[Cell, ...]:
    """The cells with the paper's figures of them, by a CSV file of these."""
    with (PAPER / name).open(encoding="utf-8", newline="") as file:
        rows = [(row.pop("method"), row.pop("at"), row) for row in csv.DictReader(file)]
    known = {(method, float(at) if at else None): row for method, at, row in rows}
    return tuple(
        cell._replace(published={name: float(text) for name, text in known[cell.method, cell.at].items()})
        for cell in cells
    )


def scale_grid(scales: Sequence[float]) -> tuple[Cell, ...]:
    """Table 1's cells: METHODS × LoRA scales."""
    return tuple(
        cell for name, rule in METHODS.items() for cell in curve(name, {"guidance": rule}, "lora_scale", scales)
    )


def curve(method: str, settings: Mapping[str, Any], name: str, values: Sequence[float]) -> tuple[Cell, ...]:
    """A method's cells along one setting, by the name that `--set` knows."""
    return tuple(Cell(method, float(value), {**settings, name: value}) for value in values)


def cfg_scales(values: Sequence[float]) -> tuple[Cell, ...]:
    """Figures 2 and 3: LoRA + CFG and AutoLoRA + CFG, which has the same scale in both its models."""
    guided = (Cell(AUTOLORA_CFG, float(w), {"guidance": AutoLoRA(GAMMA, w1=float(w), w2=float(w))}) for w in values)
    return (*curve(LORA_CFG, {"guidance": CFG()}, "guidance.w", values), *guided)


def side_by_side(small: bool) -> tuple[Cell, ...]:
    """Table 2's cells, Figures 5 and 8: CFG beside AutoLoRA, of SDXL and of Stable Diffusion 3, which is not small."""
    models: Mapping[str, Mapping[str, Any]] = {"SDXL": {}} if small else {"SD3": SD3, "SDXL": {}}
    rules = {"CFG": CFG(), "AutoLoRA": AutoLoRA(GAMMA)}
    return tuple(
        Cell(f"{model} {name}", None, {**changes, "guidance": rule})
        for model, changes in models.items()
        for name, rule in rules.items()
    )
