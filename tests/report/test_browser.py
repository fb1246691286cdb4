"""The report opened in a real Chromium, on a telephone and on a wide screen."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from semiseg.base import parameters
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.report import page
from semiseg.report.collect import collect
from semiseg.report.figures import kinds
from tests import browser
from tests.report.conftest import PARAMS, fabricate

MIOU = {"supervised": (0.62, 0.58, 0.60), "cmb": (0.655, 0.60, 0.62), "dcc": (0.61, 0.70, 0.64)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = browser.executable()
    assert executable is not None, "no Chromium on this machine: python -m tests.browser installs one"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the report over three finished methods and an ablation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        Path("params.yaml").write_text(PARAMS)
        params = parameters.load()
        mious = {**MIOU, "cmb-no_attention": (0.63,)}
        for run in [Run(recipe, "small-1_8", seed) for recipe in mious for seed in range(len(mious[recipe]))]:
            record.write(fabricate(params, run, mious[run.recipe][run.seed]), run.metrics)
        for grid in ("main", "ablation"):
            kinds.write(collect(params, grid))
        assert page.write(params) == []
        yield page.INDEX.absolute()


@dataclasses.dataclass
class Opened:
    """A page in a window, with its requests and its console errors."""

    sheet: Page
    asked: list[str]
    complaints: list[str]


@pytest.fixture(params=[400, 1600], scope="module")
def opened(request: pytest.FixtureRequest, chromium: Browser, report: Path) -> Iterator[Opened]:
    """Open the index in a window of that width; only the pages' own files may be asked for."""
    sheet = chromium.new_page(viewport={"width": request.param, "height": 900})
    found = Opened(sheet, [], [])
    sheet.on("request", lambda each: found.asked.append(each.url))
    sheet.on("console", lambda each: found.complaints.append(each.text))
    sheet.on("pageerror", lambda each: found.complaints.append(str(each)))
    yield found
    sheet.close()
    assert found.complaints == []
    local = report.parent.as_uri() + "/"
    assert all(url.startswith((local, "data:")) for url in found.asked)
    assert len(found.asked) > 2


def look(sheet: Page, picture: Path) -> None:
    """Check that a page fits its window, is readable and is drawn."""
    width = sheet.viewport_size["width"]
    assert sheet.evaluate("document.documentElement.scrollWidth") == width
    for details in sheet.query_selector_all("details"):
        details.evaluate("each => each.open = true")
    assert sheet.evaluate("document.documentElement.scrollWidth") == width
    broken = "[...document.images].filter(each => !each.complete || each.naturalWidth === 0).length"
    assert sheet.evaluate(broken) == 0
    smallest = sheet.evaluate(
        """Math.min(...[...document.querySelectorAll("p, li, td, th, label, figcaption, text")]
             .map(each => parseFloat(getComputedStyle(each).fontSize)))"""
    )
    assert smallest >= 12
    sheet.screenshot(path=picture, full_page=True)
    with Image.open(picture) as image:
        assert image.width == width
        assert image.height >= 900
        assert np.asarray(image.convert("L")).std() > 10


def column(sheet: Page, name: str) -> list[str]:
    """Return the texts of a column of the first table that can be sorted, from above."""
    return sheet.evaluate(
        """name => {
          const table = document.querySelector("table.sortable");
          const heads = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
          return [...table.tBodies[0].rows].map(row => row.cells[heads.indexOf(name)].textContent);
        }""",
        name,
    )


def recipes(sheet: Page) -> list[str]:
    """Return the recipes that the index shows, from above."""
    return [each.inner_text() for each in sheet.locator(".ranking tbody th").all() if each.is_visible()]


def test_the_index_fits_its_window_and_its_marks_lie_on_one_axis(
    opened: Opened, report: Path, tmp_path: Path
) -> None:
    opened.sheet.goto(report.as_uri())
    look(opened.sheet, tmp_path / "index.png")
    assert recipes(opened.sheet) == ["dcc", "cmb", "cmb-no_attention", "supervised"]
    zero, mean = (
        opened.sheet.locator(f".ranking tbody tr:has(th:text-is('{name}')) {mark}").bounding_box()
        for name, mark in (("supervised", "line.zero"), ("cmb", "circle.mean"))
    )
    tick = opened.sheet.locator("svg.ticks text:text-is('0')").bounding_box()
    assert abs(tick["x"] + tick["width"] / 2 - zero["x"]) < 2
    assert mean["x"] > zero["x"]  # a gain of 2.5 points


def test_filters_leave_what_was_asked_for(opened: Opened, report: Path) -> None:
    opened.sheet.goto(report.as_uri())
    before = len(opened.asked)
    opened.sheet.get_by_label("method").select_option("cmb")
    assert recipes(opened.sheet) == ["cmb", "cmb-no_attention"]
    opened.sheet.get_by_label("share").select_option("1/8")
    assert recipes(opened.sheet) == ["cmb", "cmb-no_attention"]
    opened.sheet.get_by_label("method").select_option("")
    assert len(recipes(opened.sheet)) == 4
    assert len(opened.asked) == before


def test_a_number_leads_to_its_runs(opened: Opened, report: Path, tmp_path: Path) -> None:
    opened.sheet.goto(report.as_uri())
    opened.sheet.locator("tr:has(th:text-is('cmb')) td.miou a").click()
    opened.sheet.wait_for_url("**/report/main.html#cmb/small-1_8/0")
    marked = opened.sheet.locator("tr.aim")
    names = [each.get_attribute("id") for each in marked.all()]
    assert names == [f"cmb/small-1_8/{seed}" for seed in (0, 1, 2)]
    assert marked.first.evaluate("each => each.getBoundingClientRect().top") < 900
    assert opened.sheet.evaluate("document.images.length") >= 4
    look(opened.sheet, tmp_path / "grid.png")
    opened.sheet.get_by_role("link", name="All results").click()
    opened.sheet.wait_for_url(report.as_uri())


def test_a_click_sorts_a_table_and_another_turns_it(opened: Opened, report: Path) -> None:
    opened.sheet.goto((report.parent / "report" / "main.html").as_uri())
    assert column(opened.sheet, "recipe") == ["supervised", "cmb", "dcc"]
    button = opened.sheet.locator("table.sortable").first.get_by_role("button", name="1/8 (20)")
    button.click()
    assert column(opened.sheet, "recipe") == ["dcc", "cmb", "supervised"]
    button.click()
    assert column(opened.sheet, "recipe") == ["supervised", "cmb", "dcc"]
    opened.sheet.locator("table.sortable").first.get_by_role("button", name="recipe").click()
    assert column(opened.sheet, "recipe") == ["cmb", "dcc", "supervised"]
