"""The sweep's two plots: presence against diversity along the LoRA scale, and what γ does."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autolora_jax.evaluation import Interval
from recipes.builtin.sweep.cells import AUTOLORA, BLOCKS, GAMMA, GAMMA_SCALE, LORA
from recipes.builtin.sweep.figures import AGREEMENT, DIVERSITY, DRAGGED, PRESENCE, PRODUCT
from recipes.builtin.sweep.tables import METHODS, TITLES, Results

COLOURS = {LORA: "tab:blue", AUTOLORA: "tab:red", f"{LORA} + CFG": "tab:blue", f"{AUTOLORA} + CFG": "tab:red"}
LINES = {method: "-" if "CFG" in method else ":" for method in METHODS}
MARKED = (0.2, 0.4, 0.7, 1.0, 1.3)  # LoRA scales that are written beside their points
LEGEND_COLUMNS = 3  # that fit below a panel
GAMMA_COLOURS = {
    PRESENCE: "tab:green",
    DIVERSITY: "tab:purple",
    PRODUCT: "tab:orange",
    AGREEMENT: "tab:blue",
    DRAGGED: "tab:brown",
}


def write_plots(out: Path, results: Results) -> None:
    """Writes presence_diversity.png and gamma.png."""
    blocks = [block for block in BLOCKS if results.table(block)]
    figure, axes = _panels(blocks, "presence of the character", "diversity")
    for block, panel in zip(blocks, axes, strict=True):
        for method in METHODS:
            _curve(panel, results, block, method)
    _save(figure, axes, out / "presence_diversity.png")

    figure, axes = _panels(blocks, "γ (1: the LoRA alone)", f"at LoRA scale {GAMMA_SCALE:g}")
    for block, panel in zip(blocks, axes, strict=True):
        for w, found in results.gammas(block).items():
            for name, colour in GAMMA_COLOURS.items():
                if all(name in figures for figures in found.values()):
                    points = [figures[name] for figures in found.values()]
                    label = f"{name}{'' if w == 1 else ' + CFG'}"
                    style = {"color": colour, "capsize": 2, "label": label, "linestyle": ":" if w == 1 else "-"}
                    panel.errorbar([*found], _values(points), _errors(points), **style)  # type: ignore[arg-type]
    _save(figure, axes, out / "gamma.png")


def _curve(panel: Axes, results: Results, block: str, method: str) -> None:
    """A method's points, joined along the LoRA scale."""
    table = {scale: methods[method] for scale, methods in results.table(block).items() if method in methods}
    if not table:
        return
    x, y = ([figures[name] for figures in table.values()] for name in (PRESENCE, DIVERSITY))
    label = f"{method}{f', γ = {GAMMA:g}' if method.startswith(AUTOLORA) else ''}"
    line, colour = LINES[method], COLOURS[method]
    panel.errorbar(_values(x), _values(y), _errors(y), _errors(x), f"o{line}", color=colour, ms=3, lw=1, label=label)
    for scale, at_x, at_y in zip(table, _values(x), _values(y), strict=True):
        if scale in MARKED:
            panel.annotate(f"{scale:g}", (at_x, at_y), (3, 3), textcoords="offset points", fontsize=7, color=colour)


def _panels(blocks: list[str], x: str, y: str) -> tuple[Figure, list[Axes]]:
    figure, axes = pyplot.subplots(1, len(blocks), figsize=(6.5 * len(blocks), 5), squeeze=False, layout="constrained")
    for block, panel in zip(blocks, axes[0], strict=True):
        panel.set(xlabel=x, ylabel=y, title=TITLES[block].replace("`", '"'))
        panel.grid(alpha=0.3)
    return figure, [*axes[0]]


def _save(figure: Figure, axes: list[Axes], path: Path) -> None:
    """Writes the figure with a legend of its last panel, which has all curves."""
    figure.legend(
        *axes[-1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=LEGEND_COLUMNS * len(axes),
        fontsize="small",
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _values(points: list[Interval]) -> np.ndarray:
    return np.array([p.value for p in points])


def _errors(points: list[Interval]) -> np.ndarray:
    """[2 n], distances down and up; the value may lie outside of its interval by a hair."""
    return np.array([[max(p.value - p.low, 0), max(p.high - p.value, 0)] for p in points]).T
