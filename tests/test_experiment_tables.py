"""Tables of an experiment's results: the same numbers as Markdown, CSV and LaTeX, whatever methods are called."""

import math
import re
from pathlib import Path

import pandas
import pytest

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.frontier import write_frontier
from autolora_jax.experiments.markup import Table, best, latex_text, markdown_text, number, span
from autolora_jax.experiments.results import LABELS, Results, heading, label, ordered
from autolora_jax.experiments.tables import records, tables, write_tables
from tests.made_up_results import about, cell, results, table_1, table_2, without_intervals

NAN = math.nan
UNKNOWN = Interval(NAN, NAN, NAN)
NASTY = r"100% #1_{γ}^~ & <b>|`\$x*[y](z)"


def texts(table: Table) -> list[list[str]]:
    return [[name, *(f"{each.text} {each.detail}".strip() for each in entries)] for name, entries in table.rows]


def strong(table: Table) -> list[list[bool]]:
    return [[entry.strong for entry in entries] for _, entries in table.rows]


@pytest.fixture
def small() -> Results:
    """Two methods along an axis, the second one compared with the first; a cell and some figures are missing."""
    return results(
        cell("LoRA", 1.0, {"CPS": 4.0, "Div": 0.2, "mood": 1.0}, published={"Div": 0.25}),
        cell("LoRA", 0.5, {"CPS": 3.0, "Div": UNKNOWN, "mood": 2.0}),
        cell(
            "Auto",
            1.0,
            {"CPS": Interval(4.5, NAN, NAN), "Div": 0.25},
            against="LoRA",
            differences={"CPS": Interval(0.5, 0.1, 0.9), "Div": Interval(0.05, -0.05, 0.15)},
            evaluations=120,
        ),
    )


def test_methods_stand_side_by_side_along_the_axis(small: Results):
    measured, differences = tables(small)
    assert (measured.corner, measured.groups) == ("LoRA scale", (("LoRA", 3), ("Auto", 2)))
    assert measured.columns == ("Div ↑", "CPS ↑", "mood", "Div ↑", "CPS ↑")
    assert texts(measured) == [
        ["0.5", "–", "3.000 ± 0.010", "2.000 ± 0.010", "–", "–"],
        ["1", "0.200 ± 0.010 (0.250)", "4.000 ± 0.010", "1.000 ± 0.010", "0.250 ± 0.010", "4.500"],
    ]
    # The best of a column, where there are several and more is known to be better.
    assert strong(measured) == [[False] * 5, [False, True, False, False, False]]
    assert differences.groups == (("Auto − LoRA", 2),)
    assert texts(differences) == [["1", "+0.050 (−0.050 … +0.150)", "+0.500 (+0.100 … +0.900)"]]
    assert strong(differences) == [[False, True]]


def test_rows_are_methods_without_an_axis():
    measured, differences = tables(table_2())
    assert (measured.corner, measured.groups) == ("method", ())
    assert measured.columns == ("Div ↑", "PC ↑", "SA ↑", "Div-PC ↑", "Div-SA ↑")
    assert [name for name, _ in measured.rows] == ["SD3 CFG", "SD3 AutoLoRA", "SDXL CFG", "SDXL AutoLoRA"]
    assert texts(measured)[1][1] == "0.195 ± 0.004 (0.197)"
    assert [sum(column) for column in zip(*strong(measured), strict=True)] == [1] * 5
    assert [name for name, _ in differences.rows] == ["SD3 AutoLoRA − SD3 CFG", "SDXL AutoLoRA − SDXL CFG"]


def test_rows_are_cells_where_methods_share_no_places():
    apart = [cell(f"by {name}", place, {"CPS": place}) for name in "abc" for place in ("abc".index(name) + 0.25, 9.0)]
    (table,) = tables(results(*apart))
    assert table.groups == (("by a", 1), ("by b", 1), ("by c", 1))  # half of it is filled: still side by side
    (table,) = tables(results(*(each for each in apart if each.at != 9)))
    assert table.groups == () and texts(table)[1] == ["by b 1.25", "1.250 ± 0.010"]
    (table,) = tables(results(*apart, cell("none", None, {"CPS": 10.0})))
    assert table.corner == "method, LoRA scale"
    assert texts(table)[-1] == ["none", "10.000 ± 0.010"] and strong(table)[-1] == [True]


def test_wide_tables_are_split():
    figures = {name: 1.0 for name in ("Vendi", "CPS", "Div", "Div-CPS", "CLIPScore")}
    found = tables(results(*(cell(f"method {i}", at, figures) for i in range(4) for at in (1.0, 2.0))))
    assert [table.title for table in found] == ["Measured: Div, CPS, Div-CPS", "Measured: Vendi, CLIPScore"]
    assert [len(table.columns) for table in found] == [12, 8]
    assert len(tables(table_1())) == 2


def test_best_is_by_what_is_shown():
    assert best([1.0, 1.0004, 0.5, NAN]) == [True, True, False, False]
    assert best([1.0, 1.0]) == best([1.0, NAN]) == [False, False] and best([]) == []


def test_numbers():
    assert [number(value) for value in (1.23456, -0.0004, -2.0, NAN)] == ["1.235", "0.000", "−2.000", "–"]
    assert [number(value, signed=True) for value in (0.5, -0.0004, -2.0)] == ["+0.500", "+0.000", "−2.000"]


def test_labels():
    assert label("Div") == "Diversity ↑ (Eq. 8)" and heading("Div-CPS") == "Div-CPS ↑"
    assert label("LoRA scale") == heading("LoRA scale") == "LoRA scale"
    assert ordered(["mood", "CPS", "Div", "CPS"]) == ("Div", "CPS", "mood")
    assert all("↑" in text for text in LABELS.values())
    assert (span([3, 3]), span([5, 3]), span([])) == ("3", "3 – 5", "–")


def test_csv_is_read_back_by_pandas(small: Results, tmp_path: Path):
    for given in (small, table_1()):
        _, path, _ = write_tables(given, tmp_path)
        read = pandas.read_csv(path, keep_default_na=False, na_values=[""])
        assert len(read) == len(records(given)) == sum(len({*c.figures, *c.published}) for c in given.cells)
        rows = {(row.method, row.at, row.figure): row for row in read.itertuples()}
        for each in given.cells:
            for figure, interval in each.figures.items():
                row = rows[each.method, each.at, figure]
                expected = (*interval, *each.differences.get(figure, UNKNOWN), each.published.get(figure, NAN))
                found = (row.value, row.low, row.high, row.difference, row.difference_low, row.difference_high)
                assert (*found, row.published) == pytest.approx(expected, abs=0, rel=0, nan_ok=True)  # all digits
                assert (row.pictures, row.evaluations) == (each.pictures, each.evaluations)
                assert (row.against if each.against else "") == each.against


def test_published_figures_need_not_be_measured(tmp_path: Path):
    (table,) = tables(results(cell("LoRA", None, {}, published={"Div": 0.3})))
    assert texts(table) == [["LoRA", "– (0.300)"]]


def test_markdown_says_what_the_figures_are(small: Results, tmp_path: Path):
    path, _, _ = write_tables(small, tmp_path / "new" / "folder")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# A small experiment\n\n- pictures a cell: 8\n- prompts: 1\n- seeds: 8\n- model: sdxl\n")
    assert "- Div: Eq. 8 of the paper\n" in text and "- 30 steps of Euler\n" in text
    assert "| 1 | 0.200 ± 0.010 (0.250) | **4.000** ± 0.010 | 1.000 ± 0.010 |" in text
    assert "| 1 | +0.050 (−0.050 … +0.150) | **+0.500** (+0.100 … +0.900) |" in text
    assert (
        "± is half of the 95 % interval." in text
        and "with the 95 % interval. Bold: 0" in text
        and "In brackets: the paper's number" in text
    )


def test_no_interval_is_told_where_there_is_none(tmp_path: Path):
    for given in (without_intervals(table_1()), without_intervals(table_2())):
        text = write_tables(given, tmp_path)[0].read_text(encoding="utf-8")
        text += "".join(
            path.read_text(encoding="utf-8") for path in write_frontier(given, tmp_path) if path.suffix == ".md"
        )
        assert "interval" not in text and "±" not in text and "nan" not in text.lower() and "range" not in text
    frontier = write_frontier(table_1(), tmp_path)[0].read_text(encoding="utf-8")
    assert "| range |" in frontier and "The range is the area when every figure" in frontier


def nasty() -> Results:
    cells = (cell(NASTY, None, {NASTY: 1.0, "Div": about(0.1)}), cell("plain", None, {"Div": 0.2}))
    return results(*cells, title=NASTY, axis=NASTY, meaning={NASTY: "two\nlines"}, provenance={"command": NASTY})


def test_names_survive_markdown(tmp_path: Path):
    path, _, _ = write_tables(nasty(), tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]  # as a renderer splits them
    assert {len(row) for row in cells} == {2, 3}
    unescaped = re.sub(r"\\([\\`*|<>$\[\]_])", r"\1", lines[0].removeprefix("# "))
    assert unescaped == NASTY
    assert any(line.endswith("two lines") for line in lines)
    assert markdown_text("1. a") == r"\1. a" and markdown_text("snake_case _it_") == r"snake_case \_it\_"


def test_latex_escapes():
    assert latex_text(r"50% & #1_a {x} $5") == r"50\% \& \#1\_a \{x\} \$5"
    assert (
        latex_text("\\~^<>|")
        == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
    )
    assert latex_text("γ = 1.5 ± 2 ↑ − λ") == r"$\gamma$ = 1.5 $\pm$ 2 $\uparrow$ $-$ $\lambda$"
    assert latex_text("Zięba e\u0301 中") == "Zięba é U+4E2D"  # a font for that is not there


@pytest.mark.parametrize("which", ["small", "nasty", "table 1", "table 2"])
def test_latex_is_well_formed(which: str, small: Results, tmp_path: Path):
    given = {
        "small": lambda: small,
        "nasty": nasty,
        "table 1": table_1,
        "table 2": table_2,
    }[which]()
    _, _, path = write_tables(given, tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    code = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in lines)
    plain = re.sub(r"\\[\\{}%&#_$]", "", code)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert not re.search(r"[^\x00-ž…]", code)
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", code):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack and code.count(r"\toprule") == code.count(r"\bottomrule") == code.count(r"\caption{") >= 1
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", code, re.DOTALL):
        for row in re.findall(r"^(.*) \\\\$", body, re.MULTILINE):
            wide = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + 1 + wide == len(columns)
    assert latex_text(given.title) in code and re.search(r"; (8|480|512) pictures a cell\.", code)


def test_a_single_cell_and_none_at_all(tmp_path: Path):
    (table,) = tables(results(cell("LoRA", 1.0, {"Div": 0.2})))
    assert texts(table) == [["1", "0.200 ± 0.010"]] and strong(table) == [[False]] and "Bold" not in table.note
    assert tables(results(cell("LoRA", 1.0, {}))) == ()
    assert len(write_tables(results(cell("LoRA", 1.0, {})), tmp_path)) == 3
