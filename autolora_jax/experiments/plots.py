"""An experiment's results as pictures: those that it asks for, and an overview of all figures."""

import math
import re
from pathlib import Path

from autolora_jax.experiments.labels import ordered
from autolora_jax.experiments.results import Results


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Writes a PNG for each of results.plots whose figures were measured, and plot-overview.png of all figures.

    Raises OSError, and ModuleNotFoundError where matplotlib is missing.
    """
    from autolora_jax.experiments.plotting import plot_overview, plot_pair  # matplotlib is an extra

    folder.mkdir(parents=True, exist_ok=True)
    written = [
        plot_pair(results, x, y, folder / f"plot-{_slug(y)}-by-{_slug(x)}.png")
        for x, y in dict.fromkeys(results.plots)
        if _measured(results, x, y)
    ]
    if figures := [name for name in ordered(results.figures) if _measured(results, name)]:
        written.append(plot_overview(results, figures, folder / "plot-overview.png"))
    return written


def _measured(results: Results, *names: str) -> bool:
    """Whether some cell has all of these figures; what is the axis is no figure."""
    figures = {*names} - {results.axis}
    return any(
        all(name in cell.figures and math.isfinite(cell.figures[name].value) for name in figures)
        for cell in results.cells
    )


def _slug(text: str) -> str:
    """As part of a file's name."""
    return "-".join(re.findall(r"\w+", text.lower()))
