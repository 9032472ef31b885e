"""Numbers, tables and texts as people read them: as Markdown, as LaTeX; and as CSV, for programs."""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax import files
from autolora_jax.evaluation import Interval

DIGITS = 3  # the paper's
NOTHING = "–"
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
LATEX: Mapping[str, str] = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{sign: f"U+{ord(sign):04X}" for sign in "ĦħĸĿŀŉŦŧ"},  # holes in T1
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "∞": r"$\infty$", "∅": r"$\emptyset$"},
    **{"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$"},
    **{
        unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}"): f"$\\{name}$"
        for name in GREEK.split()
    },
}
NARROW = 5  # columns that have room for details in their line
LAST = "ž"  # letter that T1, pdfLaTeX's encoding of Latin, holds


class Entry(NamedTuple):
    """A place of a table: its text, what is said smaller beside it, whether it stands out."""

    text: str
    detail: str = ""
    strong: bool = False


class Table(NamedTuple):
    """corner: what the rows' names are. groups: what stands above the columns, and above how many; (): nothing."""

    title: str
    note: str
    corner: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]

    def explained(self, strong: str) -> "Table":
        """With a note of what it means to stand out, where something does."""
        some = any(entry.strong for _, entries in self.rows for entry in entries)
        return self._replace(note=f"{self.note} {strong}".strip()) if some else self


def number(value: float, *, signed: bool = False, digits: int = DIGITS) -> str:
    """As tables show it."""
    shown = round(value, digits) + 0.0  # not −0
    return NOTHING if math.isnan(value) else f"{shown:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def between(interval: Interval, *, signed: bool = False) -> str:
    """Its bounds, as tables show them; "" where it has none."""
    low, high = (number(part, signed=signed) for part in interval[1:])
    return f"({low} … {high})" if interval.sure else ""


def span(values: Iterable[int]) -> str:
    """The lowest and the highest of them, or the one they all are."""
    known = {*values}
    return NOTHING if not known else str(max(known)) if len(known) == 1 else f"{min(known)} – {max(known)}"


def best(values: Sequence[float]) -> list[bool]:
    """Which are the highest as far as they are shown; none where there is nothing to choose from."""
    shown = [round(value, DIGITS) for value in values]
    known = {value for value in shown if not math.isnan(value)}
    return [len(known) > 1 and value == max(known) for value in shown]


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes files of these names into a folder, which need not exist. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        files.write(folder / name, text)
    return [folder / name for name in texts]


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Numbers have all their digits; None and NaN are empty."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(
        ["" if part is None or part != part else part for part in row] for row in rows
    )
    return content.getvalue()


def markdown_text(text: str) -> str:
    """Reads as it is, on one line, in a table as well."""
    text = re.sub(r"([\\`*|<>$\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([#+-]|\d+[.)])(?=\s|$)", r"\\\1", text)


def markdown_table(table: Table) -> Iterator[str]:
    """A section of it; groups stand in the heads of their columns, for Markdown's have one line."""
    yield f"## {markdown_text(table.title)}\n\n{markdown_text(table.note)}\n"
    groups = [name for name, columns in table.groups for _ in range(columns)] or [""] * len(table.columns)
    heads = [f"{group}: {column}" if group else column for group, column in zip(groups, table.columns, strict=True)]
    yield _line([table.corner, *heads])
    yield "|---" * (len(heads) + 1) + "|"
    for name, entries in table.rows:
        yield _line([name]).removesuffix(" |") + "".join(f" | {_markdown_entry(entry)}" for entry in entries) + " |"
    yield ""


def latex_text(text: str) -> str:
    """Reads as it is; a sign that pdfLaTeX has no font for is its number, as U+1F431."""
    return "".join(map(_latex_sign, " ".join(unicodedata.normalize("NFC", text).split())))


def latex_table(table: Table, caption: str) -> Iterator[str]:
    """Lines of a float, over both columns of a page where it has many; then details stand below what they belong to."""
    kind, wide = ("table*", True) if len(table.columns) > NARROW else ("table", False)
    yield f"\\begin{{{kind}}}"
    yield r"\centering"
    yield f"\\caption{{{latex_text(caption)}}}\\smallskip"
    yield r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    yield f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}"
    yield r"\toprule"
    yield from _latex_groups(table)
    yield _latex_row([latex_text(table.corner), *map(latex_text, table.columns)])
    yield r"\midrule"
    for name, entries in table.rows:
        yield _latex_row([latex_text(name), *(_latex_entry(entry, wide) for entry in entries)])
    yield from (r"\bottomrule", r"\end{tabular}%", "}", f"\\end{{{kind}}}", "")


def _line(texts: list[str]) -> str:
    return f"| {' | '.join(map(markdown_text, texts))} |"


def _markdown_entry(entry: Entry) -> str:
    text = markdown_text(entry.text)
    return " ".join(filter(None, (f"**{text}**" if entry.strong else text, markdown_text(entry.detail))))


def _latex_sign(sign: str) -> str:
    return LATEX.get(sign) or (sign if sign <= LAST and sign.isprintable() else f"U+{ord(sign):04X}")


def _latex_groups(table: Table) -> Iterator[str]:
    """The line of the groups, and a rule below each."""
    if table.groups:
        yield _latex_row(["", *(f"\\multicolumn{{{n}}}{{c}}{{{latex_text(name)}}}" for name, n in table.groups)])
        ends = [1 + sum(n for _, n in table.groups[: i + 1]) for i in range(len(table.groups))]
        rules = (f"{end - n + 1}-{end}" for (_, n), end in zip(table.groups, ends, strict=True))
        yield "".join(f"\\cmidrule(lr){{{rule}}}" for rule in rules)


def _latex_entry(entry: Entry, below: bool) -> str:
    text, detail = latex_text(entry.text), latex_text(entry.detail)
    text = f"\\textbf{{{text}}}" if entry.strong else text
    if below and detail:
        return f"\\shortstack[r]{{\\strut {text}\\\\{{\\tiny {detail}}}}}"
    return f"{text} {{\\scriptsize {detail}}}" if detail else text


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
