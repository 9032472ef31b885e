"""The report's page: it shows the results in any browser, inert and alone."""

import base64
import dataclasses
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autolora_jax.experiments import report
from autolora_jax.experiments.findings import compared, outcome
from autolora_jax.experiments.listing import listing
from autolora_jax.experiments.report import PAGE, write_report
from autolora_jax.experiments.results import Results
from tests.browser import visit, wait
from tests.made_up_results import (
    METHODS,
    PAIRS,
    TABLE_1,
    cell,
    results,
    table_1,
    table_2,
    with_gaps,
    without_figures,
    without_intervals,
)

HOSTILE = '</script><img src=x onerror="hacked=1"><script>hacked=1</script> \u2028 ]]> <!-- {{x}} 猫 REPORT-DATA'
CAPTIONS = ("Anna, seed 0: all from the same noise", "Anna, seed 1", HOSTILE)


# ---- the file --------------------------------------------------------------------------------------------------------


def noise(path: Path, width: int, height: int, **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_pictures_are_shrunk_until_the_page_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "LARGEST", 60_000)
    monkeypatch.setattr(report, "TOTAL", 300_000)
    monkeypatch.setattr(report, "SHORTEST", 50)
    large = noise(tmp_path / "a.jpg", 600, 240, comment=b"what it shows", quality=100)
    [alone] = report.inlined([large])
    assert alone["caption"] == "what it shows" and 300 < alone["width"] < 600 and size(alone) <= 60_000
    many = report.inlined([large] * 10)
    assert 200_000 < sum(map(size, many)) <= 300_000
    [small] = report.inlined([noise(tmp_path / "b.png", 60, 40)])
    assert (small["width"], small["height"], small["caption"]) == (60, 40, "b")


def test_a_small_sheet_stays_as_it_is(tmp_path: Path):
    path = noise(tmp_path / "a.jpg", 60, 40, quality=90)
    [found] = report.inlined([path])
    assert base64.b64decode(found["src"].partition(",")[2]) == path.read_bytes()


def size(picture: dict[str, Any]) -> int:
    return len(base64.b64decode(picture["src"].partition(",")[2]))


def test_it_finds_what_lies_in_its_folder(tmp_path: Path):
    folder = tmp_path / "out"
    (folder / "sheets").mkdir(parents=True)
    noise(folder / "sheets" / "sheet-00.jpg", 30, 20)
    for name in ("results.json", "table.md", "frontier.png", "notes.txt"):
        (folder / name).write_text("")
    content = page_data(write_report(table_1(), folder))
    assert content["files"] == ["results.json", "table.md", "frontier.png"] and len(content["sheets"]) == 1
    assert page_data(write_report(table_1(), folder, sheets=(), files=[tmp_path / "x.csv"]))["files"] == ["../x.csv"]
    assert sorted(os.listdir(folder)) == ["frontier.png", "notes.txt", PAGE, "results.json", "sheets", "table.md"]


def test_the_listing_says_what_is_best_decided_and_unknown():
    content = listing(with_gaps(table_1()))
    columns, rows = content["columns"], content["rows"]
    assert [column["name"] for column in columns] == ["method", "LoRA scale", *("here", "paper", "Δ") * 3, "pictures"]
    assert [column["group"] for column in columns][2:11:3] == ["Div ↑", "CPS ↑", "Div-CPS ↑"]
    assert len(rows) == 48 and rows[0][2] == dict(text="–", key=None, detail="", tone="", title="")
    whole = listing(table_1())["rows"]
    for figure in (2, 5, 8):
        known = [row[figure]["key"] for row in whole]
        assert [row[figure]["tone"] == "best" for row in whole] == [round(x, 3) == round(max(known), 3) for x in known]
        differences = [row[figure + 2] for row in whole if row[figure + 2]["key"] is not None]
        assert {each["tone"] for each in differences} <= {"up", "down", "level"}
        assert all((each["tone"] == "up") == each["text"].startswith("▲ +") for each in differences)
    assert content["note"].startswith("Below each number its 95 % interval. Bold: the best of its column. Paper: ")
    assert json.dumps(content, allow_nan=False)


def page_data(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of Table 1 with three sheets."""
    out = tmp_path_factory.mktemp("report") / "a #1 100% 'report'"
    (out / "sheets").mkdir(parents=True)
    for i, caption in enumerate(CAPTIONS):
        noise(out / "sheets" / f"sheet-{i:02}.jpg", 640 + i, 480, comment=caption.encode())
    (out / "table #1.csv").write_text("")
    write_report(table_1(), out, files=[out / "table #1.csv"])
    return out


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    opened = visit(browser, folder / PAGE)
    yield opened
    assert opened.problems == []
    opened.close()


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def test_it_loads_nothing_and_shows_everything(page: Any, folder: Path):
    assert [url for url in page.requests if not url.startswith("data:")] == [(folder / PAGE).as_uri()]
    assert page.title() == texts(page, "h1")[0] == table_1().title
    assert texts(page, "#compared, #outcome") == [compared(table_1()), outcome(table_1())]
    assert texts(page, "#findings .value")[:3] == ["1.171", "12 of 12 higher", "7 of 12 higher"]
    assert texts(page, "#bar nav a") == [
        *("Plots", "Frontier", "Pictures", "Numbers", "Settings", "Meaning", "Assumptions", "Provenance")
    ]
    assert page.locator("#plots svg").count() == 4 and page.locator("#plane svg").count() == 1
    wait(page, "[...document.images].length === 3 && [...document.images].every(image => image.naturalWidth >= 640)")
    assert texts(page, "#frontier-tables h3") == ["Dominated area", "Div at equal CPS"]
    assert page.evaluate("document.querySelector('#files a').href") == (folder / "table #1.csv").as_uri()


def test_it_can_be_read_without_seeing(page: Any):
    levels = page.evaluate("[...document.querySelectorAll('main :is(h1, h2, h3)')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("[...document.images].map(image => image.alt)") == [*CAPTIONS]
    assert page.evaluate("[...document.querySelectorAll('.drawing')].every(each => each.ariaLabel.length > 20)")
    assert page.evaluate("[...document.querySelectorAll('button')].every(b => b.ariaLabel || b.textContent.trim())")
    assert page.evaluate("document.querySelectorAll('th:not([scope])').length") == 0


def column(page: Any, number: int) -> list[float]:
    """A column's numbers, as they stand; NaN where there is none."""
    found = page.evaluate(
        f"[...document.querySelectorAll('#table tbody tr')].map(r => r.cells[{number}].firstChild.data)"
    )
    return [float(re.sub("[^0-9.-]", "", text.replace("−", "-")) or math.nan) for text in found]


def test_the_table_sorts(page: Any):
    heads = texts(page, "#table thead button")
    assert heads == ["method", "LoRA scale", *("here", "paper", "Δ") * 3]
    assert texts(page, "#table tbody th")[::12] == [*METHODS]
    button, head = page.locator("#table thead button").nth(8), page.locator("#table thead tr:last-child th").nth(8)
    button.click()
    assert head.get_attribute("aria-sort") == "descending" and column(page, 8) == sorted(column(page, 8))[::-1]
    assert page.locator("#table tbody td.best").nth(0).text_content().startswith("1.171")
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and column(page, 8) == sorted(column(page, 8))
    page.locator("#table thead button").nth(10).click()
    known = [value for value in column(page, 10) if not math.isnan(value)]
    assert known == sorted(known)[::-1] and len(known) == 24 and not any(map(math.isnan, column(page, 10)[:24]))
    assert page.locator("#table [aria-sort]").count() == 1


def test_differences_say_whether_they_are_decided(page: Any):
    cells = {(cell.method, cell.at): cell for cell in table_1().cells}
    for method, at, tone, glyph in (("AutoLoRA", 0.9, "up", "▲ "), ("AutoLoRA + CFG", 1.1, "level", "")):
        row = page.locator("#table tbody tr").nth(METHODS.index(method) * 12 + [*TABLE_1].index(at))
        cell = row.locator("td").nth(9)
        difference = cells[method, at].differences["Div-CPS"]
        assert tone in cell.get_attribute("class") and cell.get_attribute("title") == f"minus {PAIRS[method]}"
        told = f"{glyph}{difference.value:+.3f}({difference.low:+.3f} … {difference.high:+.3f})"
        assert cell.text_content() == told.replace("-", "−")


def test_a_point_tells_its_numbers(page: Any):
    target = page.locator("#plots svg").nth(1).locator("g:has(> title) use").first
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    place = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    pointed = "([x, y]) => document.elementFromPoint(x, y).closest('g:has(> title)').firstChild.textContent"
    told = ["LoRA, LoRA scale 0.2", "Div: 0.382 (0.374 … 0.389)", "the paper: 0.378"]
    assert page.evaluate(pointed, place).split("\n") == told


def test_pictures_open_and_close_by_keyboard(page: Any):
    first = page.locator("#sheets button").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#zoom").is_visible() and texts(page, "#caption") == [f"1 of 3 · {CAPTIONS[0]}"]
    box = page.locator("#large img").bounding_box()
    assert box["width"] <= 1000 and box["y"] + box["height"] <= 700
    page.keyboard.press("ArrowRight")
    assert texts(page, "#caption") == [f"2 of 3 · {CAPTIONS[1]}"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert texts(page, "#caption")[0].startswith("3 of 3")
    page.keyboard.press("z")
    assert page.locator("#full").get_attribute("aria-pressed") == "true"
    assert page.locator("#large img").bounding_box()["width"] == 642
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()
    assert first.evaluate("button => button === document.activeElement")


def test_copying(page: Any):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy-all")
    wait(page, "document.getElementById('copy-all').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines() == [": ".join(line) for line in table_1().provenance.items()]
    assert texts(page, "#command") == [table_1().provenance["command"]]


def test_light_dark_and_a_phone(browser: Any, folder: Path):
    page = visit(browser, folder / PAGE, viewport={"width": 360, "height": 700}, color_scheme="dark", has_touch=True)
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#light")
    assert dark == "rgb(20, 22, 26)" and page.evaluate(colour) == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('#plots svg').viewBox.baseVal.width") < 360
    assert page.evaluate("document.querySelector('#plots svg').getBoundingClientRect().width") > 300
    page.set_viewport_size({"width": 700, "height": 360})
    wait(page, "document.querySelector('#plots svg').viewBox.baseVal.width > 400")
    assert page.evaluate("document.documentElement.scrollWidth") == 700
    assert page.problems == []
    page.close()


@pytest.mark.slow
def test_a_phone_needs_one_hand(browser: Any, folder: Path):
    page = visit(browser, folder / PAGE, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.locator("#bar").bounding_box()["height"] <= 56
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#sheets button").first.tap()
    assert all(button.bounding_box()["y"] > 700 for button in page.locator("#zoom .row button").all())
    client = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", 300), ("touchMove", 200), ("touchMove", 100), ("touchEnd", None)):
        points = [] if x is None else [{"x": x, "y": 400}]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    wait(page, "document.getElementById('caption').textContent.startsWith('2 of 3')")
    assert page.problems == []
    page.close()


def test_it_prints(page: Any):
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 16
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#bar").is_visible() and page.locator("#table tbody tr").last.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#prompts li").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("#prompts li").is_visible()


def hostile() -> Results:
    results = table_1()
    rename = {method: f"{method} {HOSTILE}" for method in METHODS} | {"": ""}
    figures = {name: f"{name}<b>" for name in results.figures}
    cells = [
        cell._replace(
            method=rename[cell.method],
            against=rename[cell.against],
            settings={**cell.settings, HOSTILE: HOSTILE, "w": f"{cell.at}{HOSTILE}"},
            figures={figures[name]: value for name, value in cell.figures.items()},
            differences={figures[name]: value for name, value in cell.differences.items()},
        )
        for cell in results.cells
    ]
    told = {HOSTILE: HOSTILE, "Div<b>": HOSTILE}
    return dataclasses.replace(
        results,
        title=HOSTILE,
        axis=HOSTILE,
        cells=tuple(cells),
        prompts=(HOSTILE,),
        plots=((HOSTILE, "Div-CPS<b>"),),
        frontier=("Div<b>", "CPS<b>"),
        meaning=told,
        provenance={**told, "command": HOSTILE},
        assumptions=(HOSTILE,),
    )


def test_hostile_texts_are_inert(browser: Any, folder: Path, tmp_path: Path):
    path = write_report(hostile(), tmp_path, sheets=sorted((folder / "sheets").iterdir()))
    template = resources.files("autolora_jax.experiments").joinpath(PAGE).read_text(encoding="utf-8")
    assert path.read_text("utf-8").count("</script") == template.count("</script") == 2
    page = visit(browser, path)
    assert page.evaluate("typeof hacked") == "undefined" and page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('img[onerror], img[src=x], main b').length") == 0
    for selector in ("h1", "#command", "#prompts li", "#assumptions li", "#meaning dd"):
        assert HOSTILE in texts(page, selector)
    assert page.title().startswith("</script><img")
    assert any(HOSTILE in text for text in texts(page, "#table tbody th"))
    page.locator("#sheets button").last.click()
    assert texts(page, "#caption") == [f"3 of 3 · {HOSTILE}"]
    assert page.evaluate("typeof hacked") == "undefined" and page.problems == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { text: 'window.hacked = 1' }))"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("typeof hacked") == "undefined"
    assert any("Content Security Policy" in problem and "img-src data:" in problem for problem in page.problems)
    page.close()


def test_pictures_alone_are_a_report(browser: Any, folder: Path, tmp_path: Path):
    page = visit(
        browser, write_report(without_figures(table_1()), tmp_path, sheets=sorted((folder / "sheets").iterdir()))
    )
    assert texts(page, "#bar nav a") == ["Pictures", "Settings", "Assumptions", "Provenance"]
    assert texts(page, "#compared")[0].startswith("LoRA, AutoLoRA") and page.problems == []
    assert not page.locator("#numbers").is_visible() and page.locator("#sheets img").count() == 3
    page.close()


def test_no_pictures_and_no_axis_are_a_report(browser: Any, tmp_path: Path):
    page = visit(browser, write_report(table_2(), tmp_path))
    assert texts(page, "#bar nav a") == ["Plots", "Numbers", "Settings", "Meaning", "Assumptions", "Provenance"]
    assert page.locator("#plots svg").count() == 4 and texts(page, "#table thead button")[:2] == ["method", "here"]
    assert page.problems == []
    page.close()


def test_what_is_not_known_is_a_dash_and_last(browser: Any, tmp_path: Path):
    page = visit(browser, write_report(with_gaps(table_1()), tmp_path))
    first = page.locator("#table tbody tr").first
    assert first.locator("td").nth(1).text_content() == "–" and first.locator("td").last.text_content() == "0"
    assert page.locator("#table tbody tr").nth(1).locator("td").nth(1).text_content() == "0.364"
    page.locator("#table thead button").nth(2).click()
    assert [math.isnan(value) for value in column(page, 2)] == [False] * 46 + [True] * 2
    page.locator("#table thead button").nth(2).click()
    assert [math.isnan(value) for value in column(page, 2)] == [False] * 46 + [True] * 2
    assert "NaN" not in page.evaluate("document.body.innerText") and page.problems == []
    assert not any(
        "NaN" in str(html) for html in page.evaluate("[...document.querySelectorAll('svg')].map(s => s.outerHTML)")
    )
    page.close()


def test_a_page_without_intervals_speaks_of_none(browser: Any, tmp_path: Path):
    page = visit(browser, write_report(without_intervals(table_1()), tmp_path))
    assert "interval" not in page.evaluate("document.body.innerText") and page.problems == []
    assert texts(page, "#table td small") == [] and "Bold: the best" in texts(page, "#table-note")[0]
    assert texts(page, "#frontier-tables th").count("range") == 0
    page.close()


def test_a_single_row_is_not_called_the_best(browser: Any, tmp_path: Path):
    page = visit(browser, write_report(results(cell("LoRA", 1.0, {"Div": 0.2})), tmp_path))
    assert texts(page, "#table-note") == ["Below each number its 95 % interval. Each cell: 8 pictures."]
    assert page.problems == []
    page.close()


def test_what_is_missing_for_figures_is_said(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "autolora_jax.experiments.plotting"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = visit(browser, write_report(table_1(), tmp_path))
    assert "pip install 'autolora-jax[plots]'" in page.locator("#undrawn").inner_text()
    assert page.locator("#frontier-tables table").count() == 2 and page.locator("#table tbody tr").count() == 48
    assert page.problems == []
    page.close()
