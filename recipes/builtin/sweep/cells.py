"""What is compared: LoRA scales x {LoRA, AutoLoRA} x {without CFG, with CFG}, and γ, on the same prompts and noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autolora_jax.demo.world import CHARACTER, Scene, full_caption
from autolora_jax.guidance import AutoLoRA

SCALES = tuple(round(0.1 * i, 1) for i in range(2, 14))
GAMMA = 1.5  # the paper's
GAMMAS = (1.25, 1.5, 1.75, 2.0)
GAMMA_SCALE = 1.0  # LoRA scale at which γ is varied
CFG_SCALES = (1.0, 5.0)  # without, and the paper's for SDXL
LORA, AUTOLORA = "LoRA", "AutoLoRA"


@dataclass(frozen=True)
class Cell:
    """One kind of picture. gamma 1 is the LoRA alone, w 1 is without classifier-free guidance; scale: of the LoRA."""

    block: str
    scale: float
    gamma: float
    w: float

    @property
    def name(self) -> str:
        return f"{self.block} scale {self.scale:g} gamma {self.gamma:g} cfg {self.w:g}"

    @property
    def method(self) -> str:
        """Column of Table 1: "LoRA", "AutoLoRA", "LoRA + CFG" or "AutoLoRA + CFG"."""
        return (LORA if self.gamma == 1 else AUTOLORA) + (" + CFG" if self.w != 1 else "")

    @property
    def rule(self) -> AutoLoRA:
        """With γ = 1 the base's branches fall away, with w = 1 those without a prompt."""
        return AutoLoRA(gamma=self.gamma, w1=self.w, w2=self.w)

    @property
    def evaluations(self) -> int:
        """Of the network, a step and picture."""
        return (1 if self.gamma == 1 else 2) * (1 if self.w == 1 else 2)


class Shot(NamedTuple):
    """One picture to draw, in every cell of its block. group: number of its prompt."""

    prompt: str
    seed: int
    scene: Scene | None  # None: the prompt says nothing but the character
    group: int


# Where the LoRA's training pictures never were: in every other place and sky, at other sizes and sides.
CONTEXTS = tuple(
    Scene(CHARACTER, "white", *words)
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
ALONE, IN_CONTEXT = "alone", "contexts"
BLOCKS = (ALONE, IN_CONTEXT)


def shots(block: str, count: int) -> list[Shot]:
    """`count` pictures with seeds 0, 1, …: all "a zib", or the contexts in turn."""
    if block == ALONE:
        return [Shot(f"a {CHARACTER}", seed, None, 0) for seed in range(count)]
    return [
        Shot(full_caption(scene), seed, scene, seed % len(CONTEXTS))
        for seed in range(count)
        for scene in (CONTEXTS[seed % len(CONTEXTS)],)
    ]


def table_cells(block: str, scales: Sequence[float] = SCALES, ws: Sequence[float] = CFG_SCALES) -> list[Cell]:
    """The cells of Table 1."""
    return [Cell(block, scale, gamma, w) for scale in scales for w in ws for gamma in (1.0, GAMMA)]


def gamma_cells(block: str, gammas: Sequence[float] = GAMMAS, ws: Sequence[float] = CFG_SCALES) -> list[Cell]:
    """γ at the LoRA's own scale; γ = 1 is the LoRA alone."""
    return [Cell(block, GAMMA_SCALE, gamma, w) for w in ws for gamma in (1.0, *gammas)]
