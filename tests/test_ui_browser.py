"""The page in a browser: it draws, stops and compares, on a desk's screen and on a phone's."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from autolora_jax.settings.pictures import GenerateConfig
from autolora_jax.ui.studio import Studio
from tests.browser import faults

pytestmark = pytest.mark.slow
SIZES = {"desk": (1200, 900), "phone": (390, 844)}
PATIENCE = 300_000  # milliseconds, on two busy cores


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio")
    from autolora_jax.ui.page import Page

    out = str(tmp_path_factory.mktemp("ui"))
    start = dataclasses.replace(GenerateConfig.start({}), num_inference_steps=8, out=out)
    page = Page(Studio(start))
    address = page.serve(prevent_thread_lock=True, quiet=True)
    yield address
    page.blocks.close()


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
