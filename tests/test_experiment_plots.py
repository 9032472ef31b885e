"""Plots of an experiment's results: which are drawn, what is on them, and that nothing lies on anything."""

import dataclasses
import importlib
import itertools
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.plotting import NARROW, drawings, page_figures, write_figures
from autolora_jax.experiments.plotting.canvas import Mark, label_points, looks, new_figure
from autolora_jax.experiments.plotting.panels import against, along_axis, beside
from autolora_jax.experiments.report import values
from tests.made_up_results import about, cell, results, table_1, table_2

NAN = math.nan


def test_one_file_for_each_plot_that_can_be_drawn(tmp_path: Path):
    plots = (("LoRA scale", "Div"), ("Div", "CPS"), ("LoRA scale", "Vendi"), ("LoRA scale", "mood"))
    names = ["plot-div-by-lora-scale.png", "plot-cps-by-div.png", "plot-overview.png", "frontier.png"]
    cells = (cell("LoRA $a", at, {"Div": at, "CPS": 1.0, "mood": Interval(NAN, NAN, NAN)}) for at in (0.5, 1.0))
    paths = write_figures(results(*cells, plots=plots), tmp_path / "new")
    assert [path.name for path in paths] == names
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 1000 and len(set(image.convert("L").getdata())) > 10
    assert write_figures(results(cell("LoRA", 1.0, {}), plots=plots), tmp_path) == []


def test_nothing_global_changes(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    write_figures(results(cell("LoRA", None, {"Div": 0.2})), tmp_path)
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == []


def test_curves_are_the_results():
    given = results(
        cell("LoRA", 1.0, {"Div": about(0.2, 0.05)}, published={"Div": 0.3}),
        cell("LoRA", 0.5, {"Div": Interval(0.1, NAN, NAN)}),
        cell("LoRA", 0.7, {"Div": Interval(NAN, NAN, NAN)}),
        cell("base", None, {"Div": 0.4}),
        cell("alone", 1.0, {"Div": 0.6}),
        cell("none", 1.0, {"CPS": 0.5}),
    )
    _, (axes,) = new_figure(1, 1, 4.0, 3.0)
    along_axis(axes, given, "Div")
    assert axes.get_legend_handles_labels()[1] == ["LoRA", "base", "alone"]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["LoRA"].get_xydata().tolist() == [[0.5, 0.1], [1.0, 0.2]]
    assert [*lines["base"].get_ydata()] == [0.4, 0.4]  # a level line
    assert lines["alone"].get_xydata().tolist() == [[1.0, 0.6]]
    paper = next(line for line in axes.lines if line.get_markerfacecolor() == "white")
    assert paper.get_xydata().tolist() == [[1.0, 0.3]] and paper.get_color() == lines["LoRA"].get_color()
    assert axes.get_xlabel() == "LoRA scale"


def test_figures_against_each_other():
    given = results(
        cell("LoRA", 1.0, {"Div": 0.2, "CPS": 4.0}, published={"Div": 0.3, "CPS": 4.5}),
        cell("LoRA", 0.5, {"Div": 0.4, "CPS": 1.0}, published={"Div": 0.3}),
        cell("LoRA", 0.7, {"Div": 0.4}),
        cell("base", None, {"Div": 0.1, "CPS": 0.5}),
    )
    _, (axes,) = new_figure(1, 1, 4.0, 3.0)
    marks = against(axes, given, "Div", "CPS", {"base": "the base"})
    assert [mark[:3] for mark in marks] == [(0.4, 1.0, "0.5"), (0.2, 4.0, "1"), (0.1, 0.5, "base")]
    assert axes.get_legend_handles_labels()[1] == ["LoRA", "the base"]
    assert axes.get_xlabel() == "Diversity ↑ (Eq. 8)"


def test_methods_beside_each_other():
    _, (axes,) = new_figure(1, 1, 4.0, 3.0)
    beside(
        axes, results(cell("a $1", None, {"Div": 0.2}), cell("b", None, {"CPS": 1.0}, published={"Div": 0.3})), "Div"
    )
    assert [text.get_text() for text in axes.get_yticklabels()] == [r"a \$1", "b"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top


def test_looks_are_told_apart():
    names = [f"method {i}" for i in range(20)]
    assert len({*looks(names).values()}) == 20
    assert len({look.colour for look in looks(names[:7]).values()}) == 7
    assert looks(names)["method 3"] == looks(names[:4])["method 3"]


def test_labels_lie_on_no_label_and_no_point():
    rng = np.random.default_rng(0)
    marks = [Mark(*rng.random(2), f"{i}", "#000000") for i in range(60)]
    figure, (axes,) = new_figure(1, 1, 4.0, 3.0)
    axes.plot([mark.x for mark in marks], [mark.y for mark in marks], "o", markersize=3)
    label_points(axes, marks)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 15 < len(boxes) <= 60 and axes.texts[0].get_text() == "0"  # the first ones first
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    places = axes.transData.transform([mark[:2] for mark in marks])
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_the_papers_tables_are_drawn(tmp_path: Path):
    for given in (table_1(), table_2()):
        names = [each.name for each in drawings(given)]
        assert names.count("plot-overview") == 1 and "plot-difference-in-div-" in "".join(names)
        assert len(write_figures(dataclasses.replace(given, plots=given.plots[-1:], frontier=()), tmp_path)) >= 3


def test_matplotlib_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    """Without it the other modules are importable, and what to install is said, on the page as well."""
    loaded = [name for name in sys.modules if name.startswith(("matplotlib", "autolora_jax.experiments.plotting"))]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = results(cell("LoRA", None, {"Div": 0.2}))
    with pytest.raises(ModuleNotFoundError, match=r"autolora-jax\[plots\]") as caught:
        importlib.import_module("autolora_jax.experiments.plotting")
    assert caught.value.name == "matplotlib"
    page = values(given)
    assert page["drawings"] == [] and "pip install 'autolora-jax[plots]'. Then the same command" in page["undrawn"]


def test_differences_are_drawn_as_such():
    given = results(
        cell("LoRA", 0.5, {"Div": 0.1}),
        cell("Auto", 0.5, {"Div": 0.3}, against="LoRA", differences={"Div": about(0.2, 0.05)}, published={"Div": 0.9}),
        cell("Auto", 1.0, {"Div": 0.2}, against="LoRA", differences={"Div": Interval(-0.1, NAN, NAN)}),
    )
    (_, *_), (drawn, *_) = drawings(given), [each for each in drawings(given) if "difference" in each.name]
    (axes,) = drawn.draw(6.4, "").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["Auto − LoRA"].get_xydata().tolist() == [[0.5, 0.2], [1.0, -0.1]]
    assert lines["Auto − LoRA"].get_color() == looks(given.methods)["Auto"].colour  # in every figure the same
    assert axes.get_ylabel() == "Difference in Div"
    assert not [line for line in axes.lines if line.get_markerfacecolor() == "white"]  # the paper has no differences


def test_a_page_has_the_same_figures_as_the_files():
    """As SVG that the page's colours and fonts' absence do not change, for wide and for narrow screens."""
    given = table_1()
    figures = page_figures(given)
    assert [each["about"] for each in figures] == [each.about for each in drawings(given) if each.more]
    assert "All figures" not in [each["about"] for each in figures]  # every one of them has a plot of its own
    assert page_figures(given) == figures  # byte for byte
    for each in figures:
        for kind in ("wide", "narrow"):
            root = ElementTree.fromstring(each[kind])
            assert root.tag.endswith("}svg") and not root.findall(".//{*}style") and not root.findall(".//{*}text")
            assert not re.search(r"#(0072b2|d55e00|009e73|cc79a7|ffffff|666666|dddddd)", each[kind])
            assert "var(--m3)" in each[kind]
            referred = {*re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', each[kind])}
            assert {a or b for a, b in referred} >= {found.get("id") for found in root.iter() if found.get("id")}
        assert float(ElementTree.fromstring(each["narrow"]).get("width").removesuffix("pt")) == NARROW * 72
    assert "var(--paper)" in figures[0]["wide"]
    told = [title.text for title in ElementTree.fromstring(figures[0]["wide"]).iterfind(".//{*}title")]
    assert "LoRA, LoRA scale 0.2\nDiv-CPS: 0.004 (0.004 … 0.004)\nthe paper: 0.004" in told and len(told) == 48


def test_hostile_names_stay_text():
    name = '"><script>x</script> --> &amp; $\\frac$'
    figure = page_figures(results(cell(name, 1.0, {"Div": 0.2}), plots=(("LoRA scale", "Div"),)))[0]
    root = ElementTree.fromstring(figure["wide"])
    assert not root.findall(".//{*}script")
    assert next(title.text for title in root.iterfind(".//{*}g/{*}title")).startswith(f"{name}, LoRA")
