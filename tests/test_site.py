"""The site builds without a warning, offline; its links lead somewhere, and it says all that the programs say."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import autolora_jax
from autolora_jax.cli.flags import flags_of
from autolora_jax.settings.programs import PROGRAMS
from tests.browser import faults, visit
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Seconds: docstrings are read without an accelerator, and nothing is drawn."""
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-n",
        "--keep-going",
        "-q",
        "-d",
        out / "trees",
        "docs",
        out / "html",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return out / "html"


def html_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_its_links_lead_somewhere(site: Path):
    """Those to other sites excepted: nothing that a page needs to be shown is one of them."""
    pages = {page: html_of(page) for page in site.rglob("*.html")}
    names = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        assert not re.search(r'<(script|img|iframe|link rel="stylesheet")[^>]*(src|href)="(https?:)?//', text), page
        for target in map(unescape, re.findall(r'\b(?:href|src)="([^"]+)"', text)):
            file, _, anchor = unquote(target).partition("#")
            if not re.match(r"[a-z]+:", target):
                there = (page.parent / file.partition("?")[0]).resolve() if file else page
                assert there.exists(), f"{page.relative_to(site)} leads to {target}"
                assert not anchor or there not in names or anchor in names[there], f"{page.name} leads to {target}"


def test_every_page_is_in_the_navigation(site: Path):
    index = html_of(site / "index.html")
    made = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in made if page.name != "index.html" and f'href="{page.as_posix()}"' not in index] == []


def test_it_has_every_flag_and_every_public_name(site: Path):
    programs = unescape(re.sub(r"<[^>]+>", "", html_of(site / "reference" / "cli.html")))
    for kind in PROGRAMS:
        assert f"autolora {kind.__name__.lower()}" in programs
        for flag in flags_of(kind):
            told = flag.field.said
            assert told.argument or all(word in programs for word in flag.words)
            assert " ".join(told.help.replace("`", "").split()) in " ".join(programs.split()), flag.name
    pipeline = html_of(site / "reference" / "api" / "pipeline.html")
    for name in {*autolora_jax.__all__} - {"__version__"}:
        assert f'id="autolora_jax.{name}"' in pipeline
    assert 'id="autolora_jax.AutoLoRAPipeline.__call__"' in pipeline and "num_inference_steps" in pipeline


@pytest.mark.parametrize("page", ["index", "tutorials/choosing", "reference/performance"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark")])
def test_a_page_is_for_every_window_and_reader(browser: Any, site: Path, page: str, width: int, scheme: str):
    opened = visit(browser, site / f"{page}.html", viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert [request for request in opened.requests if not request.startswith(("file:", "data:"))] == []
    loose = "[...document.querySelectorAll('pre, .table-wrapper')].filter(e => e.scrollWidth > e.clientWidth)"
    assert opened.evaluate(f"{loose}.every(e => e.tabIndex === 0)")  # what scrolls is reached by keys
    assert faults(opened) == []
    opened.close()
