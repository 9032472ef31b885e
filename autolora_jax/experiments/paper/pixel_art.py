"""Pixel art, CFG beside AutoLoRA, SDXL and Stable Diffusion 3: Table 2, Figures 5 and 8 of arXiv 2410.03941.

autolora reproduce table2 --lora pixel-art-xl-v1.1.safetensors=FILE --judge MODEL
autolora reproduce figure5 --lora pixel-art-xl-v1.1.safetensors=FILE

Table 2 is 1,920 pictures at 1024², in four programs. `--only 'SDXL *'` leaves SD3 out. The numbers in table2.csv are
the paper's, and so are the prompts in pixel_art_prompts.txt.
"""

import numpy as np

from autolora_jax.demo.world import STYLE, full_caption, sample_scene
from autolora_jax.experiments.experiment import Experiment, Sheet
from autolora_jax.experiments.parts import (
    NO_SMALL_SD3,
    PAPER,
    PIXEL_ART,
    PIXEL_ART_LORA,
    comparison,
    drawing,
    published,
    side_by_side,
)

SEEDS = (16, 4)
PAIRS = {"SDXL AutoLoRA": "SDXL CFG", "SD3 AutoLoRA": "SD3 CFG"}


def table2(small: bool) -> Experiment:
    """Diversity, prompt correspondence and style adherence over 30 prompts."""
    cells = side_by_side(small)
    fewer = (
        f"Captions of {{prompts}} scenes of the world, {{count}} pictures of each; the paper has {SEEDS[0]} of each."
    )
    soft = "Its style LoRA draws rounded blocks rather than pixels (the autoencoder is soft): SA is small in any case."
    return comparison(
        small,
        name="table2",
        title="Pixel art: CFG and AutoLoRA, SDXL and Stable Diffusion 3 (Table 2)",
        job=drawing(small, prompts(small), SEEDS[small], PIXEL_ART_LORA),
        cells=cells if small else published(cells, "table2.csv"),
        said=[fewer, soft, NO_SMALL_SD3] if small else [],
        asks=(PIXEL_ART,),
        pairs={cell.method: PAIRS[cell.method] for cell in cells if cell.method in PAIRS},
        plots=(("Div", "PC"), ("Div", "SA")),
        sheets=(Sheet("cell", prompts=4),),
    )


def pixel_art_figure(small: bool, name: str, shown: slice, which: str) -> Experiment:
    """Figures 5 and 8: seed 0 of some of Table 2's prompts."""
    job = drawing(small, prompts(small)[shown], 1, PIXEL_ART_LORA)
    chosen = f"Which pictures it shows is not stated: seed {{seeds}} of the {which} four prompts of Table 2."
    return comparison(
        small,
        name=name,
        title=f"Pixel art, CFG beside AutoLoRA (Figure {name[-1]})",
        job=job,
        cells=side_by_side(small),
        said=[NO_SMALL_SD3 if small else chosen],
        sheets=(Sheet("cell", prompts=len(job.prompts)),),
    )


def prompts(small: bool) -> list[str]:
    """The 30 of appendix B, or as many captions of ordinary scenes that call the built-in style LoRA as in training."""
    told = (PAPER / "pixel_art_prompts.txt").read_text(encoding="utf-8").splitlines()
    rng = np.random.default_rng(1)
    return [f"{STYLE}, {full_caption(sample_scene(rng))}" for _ in told] if small else told
