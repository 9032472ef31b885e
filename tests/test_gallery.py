"""The page of a job's pictures, in a browser where there is one; thumbnails, contact sheets, the command."""

import io
import json
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autolora_jax.batch import Job, OutputConfig, Settings, gallery, read_manifest
from autolora_jax.batch.gallery.page import CHUNK, FOLDER, HEAD
from autolora_jax.batch.manifest import COLUMNS
from autolora_jax.batch.storage import Bucket, Folder, StorageError
from autolora_jax.cli.flags import flags_of
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.settings.fields import told as told_of
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.programs import Generate
from autolora_jax.settings.rules import to_dict
from tests.batch_jobs import SIDE, draw_all
from tests.browser import visit as visit_file
from tests.browser import wait
from tests.programs import autolora

HOSTILE = '</script><img src=x onerror="hacked=1"><script>hacked=1</script>\'; touch /tmp/x \u2028`$(x)` \\ 猫'
SEED = 2**60 + 1  # not exact as a number of JavaScript's
JOB = Job(
    prompts=("a cat", HOSTILE, "a dog"),
    seeds=(0, 1, SEED),
    settings=Settings(loras=(Lora("a", 0.5),), num_inference_steps=2, size=(SIDE, SIDE)),
    grid={"lora_scale": [0.5, 1.0], "guidance.gamma": [1.2, 1.7]},
)
PICTURES = 3 * 3 * 4


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with its page, thumbnails and sheets."""
    out = tmp_path_factory.mktemp("gallery") / "a job's #1 100%"
    draw_all(JOB, out)
    result = autolora("gallery", out, "--thumbnails", "16", "--sheets")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{PICTURES} pictures in {out}/index.html\n"
    return out


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


def rows_of(count: int, prompts: int) -> list[dict[str, Any]]:
    """Rows of a manifest without pictures: prompts × seeds × two settings."""
    rows = []
    for i in range(count):
        key = f"{i:020x}"
        told = {"key": key, "status": "ok", "file": f"images/{key[:2]}/{key}.png", "prompt": f"prompt {i % prompts}"}
        told |= {"seed": i // prompts // 2, "gamma": (1.2, 1.7)[i // prompts % 2], "width": SIDE, "height": SIDE}
        rows.append({name: told.get(name) for name in COLUMNS})
    return rows


# ---- the table and its files -----------------------------------------------------------------------------------------


def test_the_table_holds_what_the_manifest_says(drawn: Path):
    rows = read_manifest(drawn)
    table = gallery.tabulate(rows)
    assert table.compared == ("lora_scales", "gamma")
    assert table.keys == [row["key"] for row in rows]
    for name in ("prompt", "seed", "gamma", "lora_scales", "w1", "status"):
        assert [table.value(name, i) for i in range(len(rows))] == [row[name] for row in rows]
    assert table.label(0) == "LoRA scale 0.5, γ 1.2"


def test_hashes_are_compared_only_where_names_are_not_enough():
    first, second = ({**row, "model": "m", "model_sha256": "aa"} for row in rows_of(2, 2))
    assert gallery.tabulate([first, {**second, "model": "n", "model_sha256": "bb"}]).compared == ("model",)
    assert gallery.tabulate([first, {**second, "model_sha256": "bb"}]).compared == ("model_sha256",)
    assert gallery.tabulate([first, {**second, "image": "a.png", "image_sha256": "cc"}]).compared == ("image",)
    assert gallery.tabulate([first, {**second, "loras": []}]).compared == ("loras",)


def test_data_comes_in_chunks_and_old_ones_go(tmp_path: Path):
    storage = Folder(tmp_path)
    for count, chunks in ((2 * CHUNK + 1, 3), (5, 1)):
        table = gallery.tabulate(rows_of(count, 7))
        assert gallery.write_page(storage, table, "x") == "index.html"
        names = [f"gallery-data-{i:03}.js" for i in range(chunks)]
        assert storage.names(FOLDER) == [*names, HEAD]
    text = (tmp_path / FOLDER / HEAD).read_text()
    assert text.isascii() and json.loads(text[len("gallery.begin(") : -3])["chunks"] == names


def test_a_bucket_has_a_page_too():
    storage = Bucket("memory://gallery-test")
    gallery.write_page(storage, gallery.tabulate(rows_of(3, 1)), "x")
    assert storage.names("") == ["index.html"] and storage.names(FOLDER) == ["gallery-data-000.js", HEAD]


def head_of(out: Path) -> dict[str, Any]:
    """What the page is told first."""
    return json.loads((out / FOLDER / HEAD).read_text()[len("gallery.begin(") : -3])


def test_a_command_s_flags_are_the_programs(drawn: Path):
    told = [[flag, *rest] for flag, *rest in head_of(drawn)["flags"]]
    flags = {flag.words[0]: flag for flag in flags_of(Generate)}
    assert len(told) > 20 and {flag for flag, *_ in told} <= {*flags}
    assert {column for _, column, _ in told} <= {*COLUMNS}
    # What is left out is what the program takes by itself.
    usual = {column: flags[flag].field.default for flag, column, value in told if value is not None}
    assert usual == {column: value for _, column, value in told if value is not None}


def test_files_are_called_by_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "anna.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    model = ModelConfig("some/model", variant="fp16", rescale_betas_zero_snr=False)
    settings = Settings(model=model, loras=(Lora("anna.safetensors"), Lora("hub/other")), size=(SIDE, SIDE))
    draw_all(Job(prompts=("a",), seeds=(0,), settings=settings), tmp_path / "out")
    storage, [row] = Folder(tmp_path / "out"), read_manifest(tmp_path / "out")
    gallery.write_page(storage, gallery.tabulate([row]), "x")
    found = head_of(tmp_path / "out")["sources"]
    assert found[row["model_sha256"]] == ["some/model", "--variant=fp16", "--no-rescale-betas-zero-snr"]
    assert [found[sha256] for sha256 in row["lora_sha256"]] == [[str(tmp_path / "anna.safetensors")], ["hub/other"]]
    storage.remove(["log.jsonl"])  # of a place whose run was killed, or of version 0.1
    gallery.write_page(storage, gallery.tabulate([row]), "x")
    assert head_of(tmp_path / "out")["sources"] == {}


# ---- thumbnails, sheets, the command ---------------------------------------------------------------------------------


def test_only_missing_thumbnails_are_made(drawn: Path):
    storage, table = Folder(drawn), gallery.tabulate(read_manifest(drawn))
    seen: list[tuple[int, int]] = []
    assert gallery.make_thumbnails(storage, table, 16, lambda *told: seen.append(told)).problems == ()
    assert seen == []
    gone = drawn / gallery.make_thumbnails(storage, table, 16).name(table.keys[3])
    before = gone.read_bytes()
    gone.unlink()
    gallery.make_thumbnails(storage, table, 16, lambda *told: seen.append(told))
    assert seen == [(1, 1)] and gone.read_bytes() == before
    assert Image.open(gone).size == (16, 16)


def test_thumbnails_of_broken_pictures_are_problems(tmp_path: Path):
    draw_all(JOB, tmp_path)
    rows = read_manifest(tmp_path)
    (tmp_path / rows[0]["file"]).unlink()
    (tmp_path / rows[1]["file"]).write_bytes(b"no picture")
    content = (tmp_path / rows[2]["file"]).read_bytes()
    (tmp_path / rows[2]["file"]).write_bytes(content[: len(content) // 2])
    made = gallery.make_thumbnails(Folder(tmp_path), gallery.tabulate(rows), 16)
    assert len(made.problems) == 3 and "is not there" in made.problems[0]
    result = autolora("gallery", tmp_path, "--thumbnails", "16")
    assert result.exit_code == 0 and "Warning: 3 have no thumbnail. The first: images/" in result.stderr


class Full(Folder):
    """Has room for so many thumbnails."""

    room = 3

    def write(self, name: str, content: bytes) -> None:
        if self.room <= 0:
            raise StorageError("the disk is full")
        self.room -= 1
        super().write(name, content)


def test_a_full_disk_stops_thumbnails_and_they_go_on(tmp_path: Path):
    draw_all(JOB, tmp_path)
    table, full = gallery.tabulate(read_manifest(tmp_path)), Full(tmp_path)
    with pytest.raises(StorageError, match="full"):
        gallery.make_thumbnails(full, table, 16)
    seen: list[tuple[int, int]] = []
    gallery.make_thumbnails(Folder(tmp_path), table, 16, lambda *told: seen.append(told))
    there = len(list((tmp_path / FOLDER).rglob("*.webp")))
    assert there == PICTURES and seen[-1][1] >= PICTURES - 4


def test_a_broken_shard_is_a_problem_of_its_pictures(tmp_path: Path):
    job = Job(prompts=("a cat",), seeds=range(8), settings=JOB.settings, output=OutputConfig(shard_size=4))
    draw_all(job, tmp_path)
    table = gallery.tabulate(read_manifest(tmp_path))
    first, second = sorted((tmp_path / "shards").iterdir())
    first.write_bytes(b"x" * 10_000)
    second.rename(tmp_path / "elsewhere")
    problems = gallery.make_thumbnails(Folder(tmp_path), table, 16).problems
    assert len(problems) == 8
    assert sum("can't be read" in problem for problem in problems) == 4
    assert sum("000001.tar is not whole yet" in problem for problem in problems) == 4


def test_shards_have_thumbnails_unasked(tmp_path: Path):
    job = Job(prompts=("a cat",), seeds=range(10), settings=JOB.settings, output=OutputConfig("webp", shard_size=4))
    draw_all(job, tmp_path)
    assert autolora("gallery", tmp_path).exit_code == 0
    made = list((tmp_path / FOLDER / "thumbnails-384").rglob("*.webp"))
    assert sorted(path.stem for path in made) == sorted(row["key"] for row in read_manifest(tmp_path))
    row = read_manifest(tmp_path)[0]
    with (
        tarfile.open(tmp_path / row["file"]) as tar,
        Image.open(io.BytesIO(tar.extractfile(row["member"]).read())) as p,
    ):
        assert p.size == Image.open(next(path for path in made if path.stem == row["key"])).size


def test_a_sheet_has_settings_by_seeds(drawn: Path):
    sheets = sorted((drawn / "sheets").iterdir())
    assert [path.name for path in sheets] == ["0000-00.jpg", "0001-00.jpg", "0002-00.jpg"]
    width, height = Image.open(sheets[0]).size
    assert width > 3 * SIDE and height > 4 * SIDE and height > width / 2


def test_sheets_of_many_seeds_have_parts_and_old_ones_go(tmp_path: Path):
    storage = Folder(tmp_path)
    for count, names in ((80, ["0000-00.jpg", "0000-01.jpg", "0000-02.jpg"]), (4, ["0000-00.jpg"])):
        table = gallery.tabulate(rows_of(count, 1))  # without thumbnails: all cells are empty
        written = gallery.write_sheets(storage, table, gallery.make_thumbnails(storage, table, 16))
        assert [name.removeprefix("sheets/") for name in written] == storage.names("sheets") == names


def test_pictures_that_are_gone_are_said(tmp_path: Path):
    draw_all(JOB, tmp_path)
    assert "not there" not in autolora("gallery", tmp_path).stderr
    gone = read_manifest(tmp_path)[1]["file"]
    (tmp_path / gone).unlink()
    said = autolora("gallery", tmp_path).stderr
    assert f"Warning: 1 files of manifest.jsonl are not there ({gone}); autolora batch --verify says more" in said


def test_what_is_no_batch_is_an_error(tmp_path: Path):
    result = autolora("gallery", tmp_path)
    assert result.exit_code == 1 and "holds no pictures of a batch" in result.stderr
    draw_all(JOB, tmp_path)
    assert "take 16 to 4096" in autolora("gallery", tmp_path, "--thumbnails", "5").stderr


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
