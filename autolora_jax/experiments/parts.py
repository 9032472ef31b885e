"""What the paper's experiments are put together from: models, LoRAs, prompts, ways of guidance, what is not stated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autolora_jax.batch import Job, Settings
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.demo.world import CHARACTER, Scene, full_caption, sample_scene
from autolora_jax.demo.world.style import STYLE
from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.settings import CFG, AutoLoRA, Lora, ModelConfig, NoGuidance, Rule
from autolora_jax.settings.pictures import read_seeds

SDXL = ModelConfig("stabilityai/stable-diffusion-xl-base-1.0", variant="fp16")
PRINCESS = Lora("princess_xl_v2.safetensors")
PIXEL_ART_XL = Lora("pixel-art-xl-v1.1.safetensors")
PIXEL_ART_SD3 = Lora("nerijs/pixel-art-medium-128-v0.1")
# Where files are from that can't be fetched by their name.
ORIGINS: Mapping[str, str] = {
    PRINCESS.source: "All Disney Princess XL LoRA Model from Ralph Breaks the Internet, civitai.com/models/212532",
    PIXEL_ART_XL.source: "Pixel Art XL v1.1, civitai.com/models/120096?modelVersionId=135931",
}
# What a cell of SD3 changes in a job of SDXL.
SD3: Mapping[str, Any] = {
    "model.source": "stabilityai/stable-diffusion-3-medium-diffusers",
    "model.variant": None,
    "loras": (PIXEL_ART_SD3,),
    "scheduler": None,
}
STEPS, SIDE = 30, 1024
BUILTIN_STEPS = 10
BUILTIN_BATCH = 8  # the same in all experiments: programs that one has compiled serve the next

SCALES = tuple(round(0.1 * i, 1) for i in range(2, 14))  # of the LoRA, Table 1
SHOWN_SCALES = (0.4, 0.7, 1.0, 1.3)  # Figures 1, 6 and 7
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

PROMPT = "Anna"
ANNA = Ask("cps", {"character": "Anna", "description": "a princess of Disney's Frozen"})
ZIB = Ask("cps", {"character": CHARACTER, "description": "a round teal creature with one huge eye and two antennae"})
PIXEL_ART = Ask("pc-sa", {"style": STYLE})

# What is in braces is told of each run, see `assumptions`.
SILENT = (
    "The paper states neither steps nor size: {steps}, {size}.",
    "It states no negative prompt: {negative}.",
    "It states no seeds: {seeds}; the noise is {noise}.",
    "Its Algorithm 2 is DDIM; here {solver} draws.",
    "{sd3}",
)
SMALL = (
    "The built-in model stands for SDXL: {size} of a drawn world, {solver}.",
    "It draws with {steps}; the scale of CFG, where it does not run, is 5 as in the paper.",
    "The world's classifier is the judge and its features are those that diversity is measured on: no figure compares "
    "with the paper's in size, only in how it changes.",
)
WEAK_SCALE = 0.5
WEAKER = "The LoRA's scale is {scale}: at 1 every picture of the small model shows the character."
NO_SMALL_SD3 = "There is no small SD3: its cells are missing."


def sdxl_job(prompts: Sequence[str], seeds: int, lora: Lora = PRINCESS) -> Job:
    """A job on SDXL as the paper has it, as far as it says; seeds 0 to `seeds` - 1."""
    return Job(
        prompts=tuple(prompts),
        negative_prompt=None,
        seeds=range(seeds),
        settings=Settings(model=SDXL, loras=(lora,), num_inference_steps=STEPS, scheduler="ddim", size=(SIDE, SIDE)),
    )


def builtin_job(
    prompts: Sequence[str], seeds: int, lora: str = "character", scale: float = 1.0, steps: int = BUILTIN_STEPS
) -> Job:
    """The same on the built-in model. scale: of the LoRA."""
    settings = Settings(
        model=ModelConfig(BUILTIN, dtype="float32"),
        loras=(Lora(f"{BUILTIN}:{lora}", scale),),
        num_inference_steps=steps,
    )
    return Job(prompts=tuple(prompts), seeds=range(seeds), settings=settings, batch_size=BUILTIN_BATCH)


def scale_grid(
    scales: Sequence[float], published: Mapping[tuple[str, float], Mapping[str, float]] | None = None
) -> tuple[Cell, ...]:
    """Table 1's cells: LoRA scales × METHODS. published: (method, scale) -> the paper's figures."""
    known = published or {}
    return tuple(
        Cell(method, scale, {"guidance": rule, "lora_scale": scale}, known.get((method, scale), {}))
        for method, rule in METHODS.items()
        for scale in scales
    )


def curve(method: str, settings: Mapping[str, Any], name: str, values: Sequence[float]) -> tuple[Cell, ...]:
    """A method's cells along one setting, by the name that `--set` knows."""
    return tuple(Cell(method, float(value), {**settings, name: value}) for value in values)


def cfg_scales(values: Sequence[float]) -> tuple[Cell, ...]:
    """Figures 2 and 3: LoRA + CFG and AutoLoRA + CFG, which has the same scale in both its models."""
    plain = curve(LORA_CFG, {"guidance": CFG()}, "guidance.w", values)
    guided = tuple(
        Cell(AUTOLORA_CFG, float(w), {"guidance": AutoLoRA(GAMMA, w1=float(w), w2=float(w))}) for w in values
    )
    return plain + guided


STYLE_PAIRS = {"SDXL AutoLoRA": "SDXL CFG", "SD3 AutoLoRA": "SD3 CFG"}


def side_by_side(sd3: bool = False) -> tuple[Cell, ...]:
    """Table 2's cells, Figures 5 and 8: CFG beside AutoLoRA. sd3: of Stable Diffusion 3, too."""
    rules = {"CFG": CFG(), "AutoLoRA": AutoLoRA(GAMMA)}
    models: dict[str, Mapping[str, Any]] = {**({"SD3": SD3} if sd3 else {}), "SDXL": {}}
    return tuple(
        Cell(f"{model} {name}", None, {**changes, "guidance": rule})
        for model, changes in models.items()
        for name, rule in rules.items()
    )


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


def paper_prompts() -> tuple[str, ...]:
    """The 30 of appendix B."""
    path = Path(__file__).with_name("paper") / "pixel_art_prompts.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def style_captions(count: int) -> tuple[str, ...]:
    """Captions of ordinary scenes, none held out, that call the built-in style LoRA as it was trained."""
    rng = np.random.default_rng(1)
    return tuple(f"{STYLE}, {full_caption(sample_scene(rng))}" for _ in range(count))


def scale_figure(name: str, job: Job, said: str = "", small: bool = False) -> Experiment:
    """Figures 1, 6 and 7: pictures at four LoRA scales. said: what is assumed; small: on the built-in model."""
    return Experiment(
        name=name,
        title=f"Pictures over LoRA scales, LoRA and AutoLoRA, without and with CFG (Figure {name[-1]})",
        job=job,
        cells=scale_grid(SHOWN_SCALES),
        axis="LoRA scale",
        sheets=(Sheet("axis", prompts=len(job.prompts), seeds=len(read_seeds(job.seeds, "seeds"))),),
        assumptions=SMALL if small else (said, *SILENT),
        world=small,
    )


def style_figure(name: str, shown: slice, said: str = "", small: bool = False) -> Experiment:
    """Figures 5 and 8: pixel art. shown: which of Table 2's prompts, seed 0 of each; said: what is assumed.

    small: on the built-in model, without SD3.
    """
    prompts = style_captions(len(paper_prompts())) if small else paper_prompts()
    job = builtin_job(prompts[shown], 1, "style") if small else sdxl_job(prompts[shown], 1, PIXEL_ART_XL)
    return Experiment(
        name=name,
        title=f"Pixel art, CFG beside AutoLoRA (Figure {name[-1]})",
        job=job,
        cells=side_by_side(sd3=not small),
        sheets=(Sheet("cell", prompts=len(job.prompts)),),
        assumptions=(NO_SMALL_SD3, *SMALL) if small else (said, *SILENT),
        world=small,
    )
