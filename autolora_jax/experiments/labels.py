"""What figures are called where people read them, and in which order they stand.

A figure has a short name ("Div", "CPS", "Div-CPS") in results, files and columns; its label explains it on an axis. All
that are named here are the better the higher they are. Any other figure goes by its name, last and without a direction.
"""

from collections.abc import Iterable

UP = "↑"
LABELS = {
    "Div": f"Diversity {UP} (Eq. 8)",
    "CPS": f"Character presence score (CPS) {UP}",
    "PC": f"Prompt correspondence (PC) {UP}",
    "SA": f"Style adherence (SA) {UP}",
    "Div-CPS": f"Diversity × CPS {UP}",
    "Div-PC": f"Diversity × PC {UP}",
    "Div-SA": f"Diversity × SA {UP}",
    "Surroundings": f"Surroundings as the prompt says {UP}",
    "All right": f"All as the prompt says {UP}",
    "Vendi": f"Vendi score {UP}",
    "CLIPScore": f"CLIPScore {UP}",
    "Div-CLIPScore": f"Diversity × CLIPScore {UP}",
}


def label(figure: str) -> str:
    """For an axis or a panel of a plot; what is no known figure, such as an experiment's axis, is its own label."""
    return LABELS.get(figure, figure)


def heading(figure: str) -> str:
    """For a column: the name, with an arrow where more is better."""
    return f"{figure} {UP}" if more_is_better(figure) else figure


def more_is_better(figure: str) -> bool:
    """False also where that is not known."""
    return figure in LABELS


def ordered(figures: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the paper's order, then the others in theirs."""
    order = {name: place for place, name in enumerate(LABELS)}
    return tuple(sorted(dict.fromkeys(figures), key=lambda name: order.get(name, len(order))))
