"""Pages in headless Chromium, where there is one; the fixture `browser` opens it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REMEDY = "`playwright install chromium` or the distribution's package brings one"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        if not found and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(f"no {', '.join(BROWSERS)} on PATH, no {playwright.chromium.executable_path}: {REMEDY}")
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def visit(browser: Any, path: Path, **options: Any) -> Any:
    """The page of a file, loaded. .problems: what the browser complains of; .requests: what it asked for."""
    opened = browser.new_page(**{"viewport": {"width": 1000, "height": 700}, **options})
    opened.problems, opened.requests = [], []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(path.as_uri())
    return opened


def wait(page: Any, condition: str) -> None:
    """Until something is true. Playwright's own way is an eval, which a page's policy forbids after the first try."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"never came: {condition}")


def faults(page: Any) -> list[str]:
    """What axe-core finds of serious faults of accessibility in a page. Skips the test where it is not installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    worst = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {fault['help']}: {fault['nodes'][0]['html']}" for fault in worst]
