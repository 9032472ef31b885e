"""Tables and texts as Markdown and as LaTeX."""

import re
import unicodedata
from collections.abc import Iterator, Mapping

from autolora_jax.experiments.layout import Entry, Table

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


def markdown_text(text: str) -> str:
    """Reads as it is, on one line, in a table as well."""
    text = re.sub(r"([\\`*|<>$\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([#+-]|\d+[.)])(?=\s|$)", r"\\\1", text)


def markdown_table(table: Table) -> Iterator[str]:
    """Lines of it; groups stand in the heads of their columns, for Markdown's have one line."""
    groups = [name for name, columns in table.groups for _ in range(columns)] or [""] * len(table.columns)
    heads = [f"{group}: {column}" if group else column for group, column in zip(groups, table.columns, strict=True)]
    yield _line([table.corner, *heads])
    yield "|---" * (len(heads) + 1) + "|"
    for name, entries in table.rows:
        yield _line([name]).removesuffix(" |") + "".join(f" | {_markdown_entry(entry)}" for entry in entries) + " |"


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
    yield from (r"\bottomrule", r"\end{tabular}%", "}", f"\\end{{{kind}}}")


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
