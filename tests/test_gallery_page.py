"""The page of a job's pictures, in a browser where there is one."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autolora_jax.batch import Job, OutputConfig, gallery, read_manifest
from autolora_jax.batch.gallery.page import FOLDER
from autolora_jax.batch.storage import Folder
from autolora_jax.settings import Lora
from autolora_jax.settings.fields import told as told_of
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.programs import Generate
from autolora_jax.settings.rules import to_dict
from tests.batch_jobs import draw_all
from tests.browser import visit as visit_file
from tests.browser import wait
from tests.gallery_jobs import HOSTILE, JOB, PICTURES, SEED, drawn_at, rows_of
from tests.programs import autolora


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_at(tmp_path_factory.mktemp("gallery"))


@pytest.fixture
def page(browser: Any, drawn: Path) -> Iterator[Any]:
    opened = visit(browser, drawn)
    yield opened
    assert opened.problems == []
    opened.close()


def visit(browser: Any, out: Path) -> Any:
    """The page, when its data is there."""
    opened = visit_file(browser, out / "index.html")
    wait(opened, "document.getElementById('count').textContent.includes(' of ')")
    return opened


# ---- the page --------------------------------------------------------------------------------------------------------


def count(page: Any) -> str:
    return page.locator("#count").text_content().partition(" pictures")[0]


def test_a_page_from_a_file_shows_pictures(page: Any):
    assert count(page) == f"{PICTURES} of {PICTURES}"
    wait(page, "[...document.images].length > 0 && [...document.images].every(i => i.naturalWidth === 16)")
    assert page.evaluate("document.images[0].src").startswith("file://")
    assert page.title() == "a job's #1 100%"


def test_hostile_prompts_are_text(page: Any):
    assert page.evaluate("typeof hacked") == "undefined"
    page.fill("#prompt", "ONERROR 猫")
    wait(page, "document.getElementById('count').textContent.startsWith('12 of')")
    page.locator(".tile").first.click()
    assert page.locator("#facts dd").first.text_content() == HOSTILE
    assert page.evaluate("document.querySelectorAll('img[onerror], img[src=x]').length") == 0
    assert page.evaluate("document.scripts.length") == 1
    words = shlex.split(page.evaluate("command(at(current))"))
    assert words[:3] == ["autolora", "generate", "fake"] and f"--prompt={HOSTILE}" in words and "--lora=a:0.5" in words
    assert page.evaluate("typeof hacked") == "undefined"


def test_the_policy_stops_scripts_that_are_not_the_pages(page: Any):
    page.evaluate("canvas.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.wait_for_timeout(100)
    assert page.evaluate("typeof hacked") == "undefined"
    assert any("Content Security Policy" in text for text in page.problems)
    page.problems.clear()


def test_filters(page: Any):
    assert page.locator("#filters summary").all_text_contents() == ["LoRA scale", "γ"]
    page.click("summary[data-name=gamma]")
    page.click("label:has-text('1.7')")
    assert count(page) == f"{PICTURES // 2} of {PICTURES}"
    assert page.evaluate("[...shown].every(i => value('gamma', i) === 1.2)")
    page.fill("#seeds", "1")
    wait(page, "document.getElementById('count').textContent.startsWith('6 of')")
    page.fill("#seeds", "0-1")
    wait(page, "document.getElementById('count').textContent.startsWith('12 of')")
    page.fill("#prompt", "a dog")
    wait(page, "document.getElementById('count').textContent.startsWith('4 of')")
    page.fill("#prompt", "nothing has this")
    wait(page, "document.getElementById('count').textContent.startsWith('0 of')")
    assert page.locator(".tile").count() == 0
    assert page.locator("#nothing p").text_content() == (
        "No picture fits: the words “nothing has this” and seeds 0-1 and the chosen γ."
    )
    page.click("#reset")
    assert count(page) == f"{PICTURES} of {PICTURES}" and not page.locator("#nothing").is_visible()


def test_comparing_sets_one_seed_side_by_side(page: Any, drawn: Path):
    page.click("#compare")
    assert page.locator("#count").text_content() == f"{PICTURES} of {PICTURES} pictures · 9 rows · 4 columns"
    assert page.locator(".head").first.text_content() == "LoRA scale 0.5, γ 1.2"
    rows = {row["key"]: row for row in read_manifest(drawn)}
    for row in range(9):
        cells = [rows[key] for key in page.evaluate(f"[0, 1, 2, 3].map(c => keys[at({row} * columns + c)])")]
        assert len({(cell["prompt"], cell["seed"]) for cell in cells}) == 1
        told = [(cell["lora_scales"], cell["gamma"]) for cell in cells]
        assert told == [([0.5], 1.2), ([0.5], 1.7), ([1.0], 1.2), ([1.0], 1.7)]


def test_keys_move_and_open(page: Any):
    page.focus("#view")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("columns")
    assert page.get_attribute("#view", "aria-activedescendant") == f"p{columns}"
    page.keyboard.press("Enter")
    assert page.locator("#dialog").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("current") == columns + 1
    shown = page.evaluate("[...document.querySelectorAll('#facts dd')].map(d => d.textContent)")
    assert page.evaluate("keys[at(current)]") in shown
    wait(page, "document.querySelector('#large img').naturalWidth > 0")
    page.keyboard.press("Escape")
    assert not page.locator("#dialog").is_visible()
    page.keyboard.press("End")
    assert page.evaluate("current") == PICTURES - 1
    assert page.get_attribute(f"#p{PICTURES - 1}", "aria-label").startswith(f"a dog, seed {SEED}, LoRA scale 1")


def test_the_copied_command_draws_the_same(page: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Generate] = []
    monkeypatch.setattr("autolora_jax.cli.generate.run", lambda told: asked.append(told))
    rows = read_manifest(drawn)
    for line in page.evaluate("keys.map((_, i) => command(i))"):
        program, command, *words = shlex.split(line)
        assert (program, command) == ("autolora", "generate")
        assert autolora(command, *words).exit_code == 0
    for row, found in zip(rows, (told.settings for told in asked), strict=True):
        assert (found.prompts, found.negative_prompt) == ((row["prompt"],), row["negative_prompt"])
        assert [*found.seeds] == [row["seed"]] and found.size == (row["width"], row["height"])
        assert found.loras == (Lora("a", row["lora_scales"][0]),) and found.model.source == "fake"
        rule = to_dict(found.guidance)
        assert rule.pop("rule") == row["guidance"] and rule == {name: row[name] for name in rule}
        usual = {"max_sequence_length": DrawingConfig().max_sequence_length}  # of SDXL no column says it
        columns = {**told_of(found), **usual}
        assert columns == {**{name: row[name] for name in columns}, **usual}


def test_copying(page: Any):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".tile").first.click()
    page.click("#copy-prompt")
    wait(page, "document.getElementById('copy-prompt').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "a cat"


# ---- the page, further: pytest -m slow -------------------------------------------------------------------------------


def chosen(page: Any, name: str) -> list[Any]:
    """A column of what is shown, in its order."""
    return page.evaluate(f"[...shown].map(i => value('{name}', i))")


@pytest.mark.slow
def test_the_address_holds_what_is_seen(browser: Any, page: Any, drawn: Path):
    page.click("summary[data-name=gamma]")
    page.click("label:has-text('1.7')")
    page.fill("#seeds", "0-1")
    page.select_option("#sort", "-lora_scales")
    wait(page, "shown.length === 12")
    assert chosen(page, "lora_scales") == [[1.0]] * 6 + [[0.5]] * 6
    page.locator(".tile").nth(2).click()
    page.select_option("#beside", index=1)
    key = page.evaluate("keys[at(current)]")
    again = visit_file(browser, drawn / "index.html")
    again.goto(page.url)
    wait(again, "document.getElementById('dialog').open")
    assert again.evaluate("keys[at(current)]") == key and again.locator("#large .layer").count() == 2
    for script in ("[...shown]", "location.hash", "document.getElementById('beside').value"):
        assert again.evaluate(script) == page.evaluate(script)
    again.evaluate("location.hash = 'prompt=dog&compare=1&across=seed&is.gamma=9'")
    wait(again, "document.getElementById('count').textContent.startsWith('0 of')")
    again.click("#reset")
    assert again.locator(".head").all_text_contents() == ["seed 0", "seed 1", f"seed {SEED}"]
    assert again.problems == []
    again.close()


@pytest.mark.slow
def test_axes_are_chosen(page: Any):
    page.click("#compare")
    page.select_option("#across", "gamma")
    page.select_option("#down", "lora_scales")
    assert page.locator("#count").text_content().endswith("18 rows · 2 columns")
    assert page.locator(".row").first.text_content() == "LoRA scale 0.5 · seed 0 · a cat"
    found = page.evaluate(
        "Array.from({ length: 36 }, (_, p) => at(p)).map(i => [value('lora_scales', i)[0], value('gamma', i)])"
    )
    assert found == [[0.5, 1.2], [0.5, 1.7], [1.0, 1.2], [1.0, 1.7]] * 9


@pytest.mark.slow
def test_favourites_are_kept_and_exported(browser: Any, page: Any, drawn: Path, tmp_path: Path):
    page.mouse.click(500, 690)
    for _ in range(3):
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")  # wherever the last click was
        page.keyboard.press("f")
    page.click("#only")
    kept = page.evaluate("[...favourites]")
    assert len(kept) == 3 and count(page) == f"3 of {PICTURES}"
    page.click("#export summary")
    assert page.locator("#exported option").all_text_contents() == ["3 shown", "3 favourites"]
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "some.json")
    saved = json.loads((tmp_path / "some.json").read_text())
    rows = {row["key"]: row for row in read_manifest(drawn)}
    assert {each["key"] for each in saved["pictures"]} == {*kept}
    for each in saved["pictures"]:
        assert each["file"] == rows[each["key"]]["file"] and each["gamma"] == rows[each["key"]]["gamma"]
        assert each["command"].startswith("autolora generate fake --lora=a:")
    page.reload()
    wait(page, "document.getElementById('count').textContent.startsWith('3 of')")
    page.click("#only")
    assert page.locator(".favourite").count() == 3


@pytest.mark.slow
def test_two_settings_are_set_on_one_another(page: Any):
    page.locator(".tile").first.click()
    assert page.locator("#beside option").all_text_contents()[1:] == [
        *("LoRA scale 0.5, γ 1.7", "LoRA scale 1, γ 1.2", "LoRA scale 1, γ 1.7")
    ]
    page.select_option("#beside", label="LoRA scale 1, γ 1.7")
    box = page.locator("#large").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 60)
    page.mouse.up()
    assert page.locator("#wipe").input_value().startswith("25")
    assert page.locator("#wiping span").all_text_contents() == ["LoRA scale 0.5, γ 1.2", "LoRA scale 1, γ 1.7"]
    page.click("#after")  # the same settings beside it, where there are any
    seeds = "[...document.querySelectorAll('#large img')].map(image => image.alt)"
    assert all(alt.startswith("a cat, seed 1, ") for alt in page.evaluate(seeds))


@pytest.mark.slow
def test_wheel_drag_and_keys_zoom(page: Any):
    page.locator(".tile").first.click()
    page.keyboard.press("+")
    assert page.evaluate("scale") == 1.5 and page.get_attribute("#zoom", "aria-pressed") == "true"
    page.keyboard.press("0")
    box = page.locator("#large").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.wheel(0, -400)
    wait(page, "scale > 2")
    assert page.evaluate("x > 0 && y > 0")  # what is under the pointer stays there
    page.mouse.down()
    page.mouse.move(box["x"] - 5000, box["y"] + 10)
    page.mouse.up()
    assert page.evaluate("x") == pytest.approx(
        page.evaluate("-document.getElementById('large').clientWidth * (scale - 1) / 2")
    )
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[scale, current]") == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(390, 844), (360, 640), (844, 390)])
def test_a_phone_needs_one_hand(browser: Any, drawn: Path, width: int, height: int):
    page = visit_file(
        browser, drawn / "index.html", viewport={"width": width, "height": height}, has_touch=True, is_mobile=True
    )
    wait(page, "document.getElementById('count').textContent.includes(' of ')")
    assert page.locator("header").bounding_box()["height"] <= 56
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for button in page.locator("#quick button").all():
        box = button.bounding_box()
        assert box["height"] >= 44 and box["y"] > height - 60
    page.tap("#show-tools")
    page.tap("summary[data-name=gamma]")
    page.tap("label:has-text('1.7')")
    page.tap("#show-tools")
    assert count(page) == f"{PICTURES // 2} of {PICTURES}"
    assert not page.locator("#tools").is_visible()
    page.locator(".tile").first.tap()
    client, box = page.context.new_cdp_session(page), page.locator("#large").bounding_box()

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": box["x"] + box["width"] * x, "y": box["y"] + box["height"] * y} for x, y in points]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", (0.8, 0.5))
    for x in (0.7, 0.5, 0.3):
        touch("touchMove", (x, 0.5))
    touch("touchEnd")
    wait(page, "current === 1")
    touch("touchStart", (0.4, 0.5), (0.6, 0.5))
    touch("touchMove", (0.3, 0.5), (0.7, 0.5))
    touch("touchMove", (0.1, 0.5), (0.9, 0.5))
    touch("touchEnd")
    assert page.evaluate("scale") > 2 and page.evaluate("current") == 1
    assert height < width or page.locator("#close").bounding_box()["y"] > height / 2
    assert page.problems == []
    page.close()


def test_light_and_dark(page: Any):
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.click("#light")
    assert page.evaluate(colour) != before


def test_shards_and_failures_have_their_place(browser: Any, tmp_path: Path):
    job = Job(prompts=("a cat",), seeds=range(3), settings=JOB.settings, output=OutputConfig(shard_size=4))
    draw_all(job, tmp_path)
    rows = read_manifest(tmp_path)
    failure = dict(rows[0], key="f" * 20, seed=9, status="failed", file=None, member=None, reason="<b>no</b>")
    table, storage = gallery.tabulate([*rows, failure]), Folder(tmp_path)
    gallery.write_page(storage, table, "x", gallery.make_thumbnails(storage, table, 16))
    page = visit(browser, tmp_path)
    assert page.locator(".tile").count() == 4 and page.locator(".tile .none").text_content() == "<b>no</b>"
    page.locator(".tile").first.click()
    wait(page, "document.querySelector('#large img').naturalWidth === 16")
    file = f"{rows[0]['file']}: {rows[0]['member']}"
    assert file in page.evaluate("[...document.querySelectorAll('#facts dd')].map(d => d.textContent)")
    assert page.problems == []
    page.close()


def test_missing_data_is_said(browser: Any, tmp_path: Path):
    gallery.write_page(Folder(tmp_path), gallery.tabulate(rows_of(3, 1)), "x")
    shutil.rmtree(tmp_path / FOLDER)
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    wait(page, "document.getElementById('count').textContent.includes('is missing')")
    page.close()


def test_a_hundred_thousand_pictures_are_few_elements(browser: Any, tmp_path: Path):
    rows = rows_of(100_000, 500)
    gallery.write_page(Folder(tmp_path), gallery.tabulate(rows), "x")
    page = visit(browser, tmp_path)
    assert count(page) == "100,000 of 100,000"
    for compare in (False, True):
        if compare:
            page.click("#compare")
        page.evaluate("view.scrollTop = view.scrollHeight / 2; paint()")
        middle = page.evaluate("Number(document.querySelector('.tile').dataset.position)")
        assert 40_000 < middle < 60_000
        assert 0 < page.locator(".tile").count() < 100
    page.click("#compare")
    # Tiles so large that they would be higher together than a browser can scroll.
    page.evaluate("view.scrollTop = view.scrollHeight / 2; $('size').max = 1000; $('size').value = 960; resize()")
    assert abs(page.evaluate("(view.scrollTop + offset()) / rowHeight") - 50_000) < 10
    page.focus("#view")
    assert page.evaluate("full > TALLEST && canvas.offsetHeight === TALLEST")
    page.keyboard.press("End")
    box = page.locator("#p99999").bounding_box()
    assert box and abs(box["y"] + box["height"] - 700) < 60
    page.close()
