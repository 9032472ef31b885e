"""The page in a browser: it draws, stops and compares, on a desk's screen and on a phone's."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import faults
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SIZES = {"desk": (1200, 900), "phone": (390, 844)}
PATIENCE = 60_000  # milliseconds, on two busy cores


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The program's own page. Of a process: Gradio does not know generators whose types are checked, as here."""
    pytest.importorskip("gradio")
    words = ["ui", "--no-browser", "--steps", "8", "--out", str(tmp_path_factory.mktemp("ui"))]
    command = [sys.executable, "-u", "-c", "from autolora_jax.cli import main; main()", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as program:
        assert program.stdout is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in program.stdout)
        yield next(match[0] for match in found if match)
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=60) in (0, 130)


@pytest.mark.parametrize("size", SIZES)
def test_it_draws_compares_and_stops(size: str, address: str, browser: Any):
    page = browser.new_page(viewport=dict(zip(("width", "height"), SIZES[size], strict=True)))
    page.set_default_timeout(PATIENCE)
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.click("#draw")
    page.wait_for_selector("#said >> text=/kept as|\\w+Error|check/")
    assert "kept as" in page.inner_text("#said")
    assert page.locator("#picture img").bounding_box()["width"] > 250  # 96 pixels are enlarged
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    slider = page.locator("#gamma input[type=range]")
    slider.focus()
    slider.fill("3")
    assert faults(page) == []
    page.get_by_role("tab", name="Compare").click()
    page.click("#compare")
    page.wait_for_selector("#slider img")
    page.get_by_role("tab", name="Grid").click()
    page.click("#grid-button")
    page.wait_for_timeout(300)
    page.click("#stop")
    page.wait_for_selector("#said >> text=/Stopp/")
    page.fill("#prompt textarea", "")
    page.click("#draw")
    page.wait_for_selector("#said [role=alert] >> text=draw what")
    assert not errors
