"""A few cells to look at: Figure 1 of the paper in small."""

from PIL import Image

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo.world import CHARACTER, full_caption
from autolora_jax.grid import comparison_grid
from recipes.builtin.drawing import draw_pairs
from recipes.builtin.sweep.cells import CFG_SCALES, CONTEXTS, GAMMA, IN_CONTEXT, Cell

SCALES = (0.4, 0.7, 1.0, 1.3)  # as in the paper's figure


def sheet(pipe: AutoLoRAPipeline, steps: int, batch: int) -> Image.Image:
    """One picture of "a zib" and of every context, LoRA + CFG beside AutoLoRA + CFG at four scales, from one noise."""
    prompts = [f"a {CHARACTER}", *map(full_caption, CONTEXTS)]
    columns = []
    for scale in SCALES:
        for gamma in (1.0, GAMMA):
            cell = Cell(IN_CONTEXT, scale, gamma, CFG_SCALES[-1])
            pixels = draw_pairs(pipe, prompts, range(len(prompts)), cell.rule, steps, batch, lora_scale=scale)
            columns.append((f"{cell.method}, scale {scale:g}", [Image.fromarray(picture) for picture in pixels]))
    return comparison_grid(columns, prompts)
