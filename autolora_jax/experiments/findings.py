"""What came out, in words: sentences that follow from the numbers and say how sure they are.

A paired difference is decided where its interval excludes 0; else it may be chance.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.frontier import frontiers
from autolora_jax.experiments.markup import DIGITS, number
from autolora_jax.experiments.results import CellResult, Results, ordered

PRODUCT = "Div-"  # how the names of the paper's products begin
SIGNS = {1: "up", 0: "level", -1: "down"}


class Finding(NamedTuple):
    """label: what it is about. value: the short answer. text: the long one. tone: of SIGNS, or "" """

    label: str
    value: str
    text: str
    tone: str = ""


def headlines(results: Results) -> tuple[str, ...]:
    """The figures that the comparison is about: the products, else what is plotted first, else the first one."""
    figures = ordered(results.figures)
    products = tuple(name for name in figures if name.startswith(PRODUCT))
    plotted = tuple(y for _, y in results.plots if y in figures)
    return products or plotted[:1] or figures[:1]


def sign(difference: Interval) -> int | None:
    """1 or -1 where the whole interval is above or below 0, 0 where it is not; None where it is not known."""
    if not difference.sure:
        return None
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def advantage(difference: Interval, falling: bool = False) -> int | None:
    """`sign`, turned where less is better."""
    found = sign(difference)
    return -found if found and falling else found


def compared(results: Results) -> str:
    """A sentence: which methods, where, on what, how many pictures there are."""
    methods = _listed(results.methods) if len(results.methods) <= 5 else f"{len(results.methods)} methods"
    places = results.places
    along = f" at {len(places)} values of {results.axis} ({places[0]:g} to {places[-1]:g})" if len(places) > 1 else ""
    one = len(results.prompts) == 1
    what = f"the prompt “{results.prompts[0]}”" if one else f"{len(results.prompts)} prompts"
    seeds = "the same seed" if results.seeds == 1 else f"the same {results.seeds} seeds"
    there, wanted = sum(cell.pictures for cell in results.cells), _wanted(results)
    count = f"{wanted:,}" if there == wanted else f"{there:,} of {wanted:,}"
    return f"{methods}{along}, each with {seeds} of {what if one else f'each of {what}'}: {count} pictures."


def outcome(results: Results) -> str:
    """A sentence or two: what is best, and whether that is more than chance. "" where nothing was measured."""
    for figure in headlines(results):
        if cells := _known(results, figure):
            best = max(cells, key=lambda cell: cell.figures[figure].value)
            value = best.figures[figure]
            told = f"The highest {figure} is {_with_interval(results, value)}, of {place(results, best)}."
            return f"{told} {_duel(results, figure, best)}".strip()
    return ""


def findings(results: Results) -> tuple[Finding, ...]:
    """The best, the paired differences, the paper: a short answer each."""
    figures = headlines(results)
    return (
        *(found for figure in figures for found in _best(results, figure)),
        *(found for figure in figures for found in _pairs(results, figure)),
        *_charted(results),
        *_frontiers(results),
        *_paper(results),
        *_unmeasured(results),
    )


def place(results: Results, cell: CellResult) -> str:
    """A cell as a sentence names it."""
    return cell.method if cell.at is None else f"{cell.method} at {results.axis} {cell.at:g}"


def _known(results: Results, figure: str) -> list[CellResult]:
    return [cell for cell in results.cells if cell.has(figure)]


def _said(value: float, *, signed: bool = False) -> str:
    """As tables show it; with more digits where it is so small that these would not tell it from 0."""
    small = value != 0 and math.isfinite(value)
    return number(value, signed=signed, digits=max(DIGITS, -math.floor(math.log10(abs(value)))) if small else DIGITS)


def _sure(results: Results, interval: Interval, *, signed: bool = False) -> str:
    """Its interval; "" where it has none."""
    low, high = (_said(part, signed=signed) for part in interval[1:])
    return f"{100 * results.confidence:g} % interval {low} to {high}" if interval.sure else ""


def _with_interval(results: Results, interval: Interval) -> str:
    """A figure and, in brackets, how sure it is, where that is known."""
    known = _sure(results, interval)
    return f"{_said(interval.value)} ({known})" if known else _said(interval.value)


def _duel(results: Results, figure: str, best: CellResult) -> str:
    """How the best cell stands to the one it is paired with, at the same place; else to the best other method."""
    for cell in results.cells:
        if cell.at != best.at or figure not in cell.differences:
            continue
        found, other = cell.differences[figure], cell.against
        if cell.method != best.method:
            found, other = Interval(-found.value, -found.high, -found.low), cell.method
        if (known := sign(found)) is None or best.method not in (cell.method, cell.against):
            continue
        there = "" if best.at is None else " there"
        more = f"{_said(abs(found.value))} {'more' if found.value >= 0 else 'less'} than {other}{there}"
        ending = "includes 0, so it may be chance" if known == 0 else "excludes 0"
        told = f"Over the same prompts and seeds that is {more}; the {_sure(results, found, signed=True)} {ending}."
        costs = {each.method: each.evaluations for each in results.cells if each.at == best.at}
        if best.evaluations != (cost := costs.get(other, best.evaluations)):
            told += f" It takes {best.evaluations} network evaluations a picture, {other} {cost}."
        return told
    others = [cell for cell in _known(results, figure) if cell.method != best.method]
    if not others:
        return ""
    second = max(others, key=lambda cell: cell.figures[figure].value)
    value, first = second.figures[figure], best.figures[figure]
    met = f"; the intervals {'do not overlap' if value.high < first.low else 'overlap'}"
    ending = met if value.sure and first.sure else ""
    return f"Next is {place(results, second)} with {_with_interval(results, value)}{ending}."


def _best(results: Results, figure: str) -> Iterator[Finding]:
    cells = _known(results, figure)
    if len(cells) > 1:
        best = max(cells, key=lambda cell: cell.figures[figure].value)
        value = best.figures[figure]
        text = ", ".join(filter(None, (place(results, best), _sure(results, value))))
        yield Finding(f"Best {figure}", _said(value.value), text, "best")


def _pairs(results: Results, figure: str) -> Iterator[Finding]:
    """Every pair of methods: where the difference is decided."""
    pairs: dict[tuple[str, str], list[CellResult]] = {}
    for cell in results.cells:
        if figure in cell.differences and sign(cell.differences[figure]) is not None:
            pairs.setdefault((cell.method, cell.against), []).append(cell)
    for (method, against), cells in pairs.items():
        found = [cell.differences[figure] for cell in cells]
        label, signs = f"{figure}: {method} − {against}", [sign(each) for each in found]
        if len(cells) == 1:
            where = f"at {results.axis} {cells[0].at:g}, " if cells[0].at is not None else ""
            includes = "includes 0: may be chance" if signs[0] == 0 else "excludes 0"
            text = f"{where}paired; the {_sure(results, found[0], signed=True)} {includes}"
            yield Finding(label, _said(found[0].value, signed=True), text, SIGNS[signs[0] or 0])
            continue
        counts = {"higher": signs.count(1), "lower": signs.count(-1), "undecided": signs.count(0)}
        most = max(counts, key=lambda word: counts[word] if word != "undecided" else 0)
        most = most if counts[most] else "undecided"
        rest = [f"{count} {word}" for word, count in counts.items() if count and word != most]
        side = {"higher": "is above 0", "lower": "is below 0", "undecided": "includes 0"}[most]
        rule = f"the paired difference's {100 * results.confidence:g} % interval {side} there"
        tone = SIGNS[(counts["higher"] > counts["lower"]) - (counts["higher"] < counts["lower"])]
        yield Finding(label, f"{counts[most]} of {len(signs)} {most}", "; ".join((rule, *rest)), tone)


def _charted(results: Results) -> Iterator[Finding]:
    """Of each figure of the map: at how many of its cells there is more than rivals have, as much, or less."""
    if results.chart is None:
        return
    level, figures, _, falling = results.chart
    for name in figures:
        won = [advantage(cell.beyond[name], name in falling) for cell in results.cells if name in cell.beyond]
        if won:
            counts = {"better": won.count(1), "level": won.count(0), "worse": won.count(-1)}
            alone = f"; at {won.count(None)} no rival comes up to its {level}" if None in won else ""
            text = ", ".join(f"{word} at {count}" for word, count in counts.items()) + alone
            tone = SIGNS[(counts["better"] > counts["worse"]) - (counts["better"] < counts["worse"])]
            yield Finding(f"{name} at equal {level}", f"{counts['better']} of {len(won)}", text, tone)


def _frontiers(results: Results) -> Iterator[Finding]:
    """Which method dominates the most of the plane of the two figures."""
    found = sorted(frontiers(results), key=lambda each: -each.area)
    if len(found) > 1:
        others = ", ".join(f"{each.method} {_said(each.area)}" for each in found[1:4])
        rest = " …" if len(found) > 4 else ""
        label = f"Largest area of {' and '.join(results.frontier)}"
        yield Finding(label, _said(found[0].area), f"{found[0].method}; then {others}{rest}")


def _paper(results: Results) -> Iterator[Finding]:
    """How the paper's numbers stand to ours."""
    both = [
        (cell.figures[name], value)
        for cell in results.cells
        for name, value in cell.published.items()
        if name in cell.figures and not math.isnan(cell.figures[name].low + cell.figures[name].high)
    ]
    if not both:
        return
    inside = sum(ours.low <= value <= ours.high for ours, value in both)
    text = "of the paper's numbers lie in our intervals"
    for figure in headlines(results)[:1]:
        same = [ours * papers > 0 for ours, papers in _both_differences(results, figure)]
        if same:
            text += f"; the sign of the difference in {figure} is the paper's at {sum(same)} of {len(same)}"
    yield Finding("Agreement with the paper", f"{inside} of {len(both)}", text)


def _both_differences(results: Results, figure: str) -> Iterator[tuple[float, float]]:
    """(ours, the paper's) of each pair of cells."""
    published = {(cell.method, cell.at): cell.published.get(figure, math.nan) for cell in results.cells}
    for cell in results.cells:
        if figure in cell.differences:
            papers = published[cell.method, cell.at] - published.get((cell.against, cell.at), math.nan)
            if not math.isnan(papers + cell.differences[figure].value):
                yield cell.differences[figure].value, papers


def _unmeasured(results: Results) -> Iterator[Finding]:
    wanted = _wanted(results)
    measured = sum(cell.pictures for cell in results.cells)
    if results.figures and measured < wanted:
        yield Finding("Not measured", f"{wanted - measured:,}", f"of {wanted:,} pictures have no figures", "down")


def _wanted(results: Results) -> int:
    """Pictures that all cells would have."""
    return len(results.cells) * len(results.prompts) * results.seeds


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
