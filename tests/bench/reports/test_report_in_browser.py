"""The report in headless Chromium: light, dark, and on paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.records.schema import POINTS_NAME, PointRecord, append_record
from bench.records.task_schema import GENERATIONS_NAME, TASKS_NAME, GenerationRecord, TaskRecord
from bench.reports.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 1039, "height": 710}  # A4 across, less the margins
# Of each text in a picture, contrast with the page as WCAG has it; and what of a table or picture is cut off.
CONTRAST = """() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("svg text")].map((text) => light(getComputedStyle(text).fill))
    .map((ink) => (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05));
}"""
CUT_OFF = "() => [...document.querySelectorAll('.wide')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page_file(
    tmp_path: Path,
    point: Callable[..., PointRecord],
    task: Callable[..., TaskRecord],
    generation: Callable[..., GenerationRecord],
) -> Path:
    """Two loads, three ratios, tasks and continuations: every picture and every table."""
    for in_flight in (1, 64):
        for dropped in ((), (3,), (2, 3), (2, 3, 5, 6)):
            shown = point(dropped)
            load = shown.load.model_copy(update={"concurrency": in_flight})
            append_record(tmp_path, shown.model_copy(update={"load": load}), POINTS_NAME)
    for name in ("boolq", "piqa"):
        for dropped, right in (((), [True] * 8), ((3,), [True, False] * 4)):
            append_record(tmp_path, task(dropped, right, task=name), TASKS_NAME)
    for dropped in ((), (3,)):
        append_record(tmp_path, generation(dropped, "there was a king"), GENERATIONS_NAME)
    return write_report(tmp_path, tmp_path)[0]


def test_it_is_readable_light_dark_on_a_phone_and_on_paper(browser: Any, page_file: Path, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    wrong: list[str] = []
    for scheme, viewport in (("light", WIDE), ("dark", WIDE), ("light", PHONE)):
        page = browser.new_page(color_scheme=scheme, viewport=viewport)
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith("file://") or wrong.append(asked.url))
        page.goto(page_file.as_uri())
        violations = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations] == []
        contrast = page.evaluate(CONTRAST)
        assert len(contrast) > 80
        assert min(contrast) > 7, scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.locator("figure svg").count() == 6
        page.close()
    assert wrong == []

    page = browser.new_page(color_scheme="dark", viewport=PAPER)  # on paper it is light all the same
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(page.evaluate(CONTRAST)) > 7
    assert page.evaluate(CUT_OFF) == 0
    paper = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert paper.startswith(b"%PDF-")
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", paper)
    assert 1 <= len(boxes) <= 6
    assert all(float(width) > float(height) for width, height in boxes)  # across
    page.close()
