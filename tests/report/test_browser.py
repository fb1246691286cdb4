"""The report as a reader has it: opened in a real Chromium, on a telephone and on a wide screen."""

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
    """The report over three finished methods and an ablation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        Path("params.yaml").write_text(PARAMS)
        params = parameters.load()
        mious = {**MIOU, "cmb-no_attention": (0.63,)}
        for run in [Run(recipe, "small-1_8", seed) for recipe in mious for seed in range(len(mious[recipe]))]:
            record.write(fabricate(params, run, mious[run.recipe][run.seed]), run.metrics)
        for grid in ("main", "ablation"):
            kinds.write(collect(params, grid))
        idle = dataclasses.replace(params.grids["main"], title="Not run", seeds=(7, 8))
        params = dataclasses.replace(params, grids={**params.grids, "idle": idle})
        assert page.write(params) == []
        yield page.PAGE.absolute()


@pytest.fixture(params=[400, 1600], scope="module")
def opened(request: pytest.FixtureRequest, chromium: Browser, report: Path) -> Iterator[Page]:
    """The report in a window of that width; what it asks for and complains of is held against it."""
    sheet = chromium.new_page(viewport={"width": request.param, "height": 900})
    asked: list[str] = []
    complaints: list[str] = []
    sheet.on("request", lambda each: asked.append(each.url))
    sheet.on("console", lambda each: complaints.append(each.text))
    sheet.on("pageerror", lambda each: complaints.append(str(each)))
    sheet.goto(report.as_uri())
    yield sheet
    sheet.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}


def column(sheet: Page, name: str) -> list[str]:
    """The texts of a column of the first table, from above."""
    return sheet.evaluate(
        """name => {
          const table = document.querySelector("table.sortable");
          const heads = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
          return [...table.tBodies[0].rows].map(row => row.cells[heads.indexOf(name)].textContent);
        }""",
        name,
    )


def test_report_fits_its_window_and_is_drawn(opened: Page, tmp_path: Path) -> None:
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    for details in opened.query_selector_all("details"):
        details.evaluate("each => each.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    broken = "[...document.images].filter(each => !each.complete || each.naturalWidth === 0).length"
    assert opened.evaluate(broken) == 0
    assert opened.evaluate("document.images.length") >= 8
    picture = tmp_path / f"report-{width}.png"
    opened.screenshot(path=picture, full_page=True)
    with Image.open(picture) as image:
        assert image.width == width
        assert image.height > 2000
        assert np.asarray(image.convert("L")).std() > 10


def test_text_is_large_enough_to_read(opened: Page) -> None:
    smallest = opened.evaluate(
        """Math.min(...[...document.querySelectorAll("p, li, td, th, figcaption")]
             .map(each => parseFloat(getComputedStyle(each).fontSize)))"""
    )
    assert smallest >= 12


def test_a_click_sorts_a_table_and_another_turns_it(opened: Page) -> None:
    assert column(opened, "recipe") == ["supervised", "cmb", "dcc"]
    button = opened.locator("table.sortable").first.get_by_role("button", name="1/8 (20)")
    button.click()
    assert column(opened, "recipe") == ["dcc", "cmb", "supervised"]
    button.click()
    assert column(opened, "recipe") == ["supervised", "cmb", "dcc"]
    opened.locator("table.sortable").first.get_by_role("button", name="recipe").click()
    assert column(opened, "recipe") == ["cmb", "dcc", "supervised"]


@pytest.mark.parametrize("name", ["ablation", "idle"])
def test_a_link_leads_to_its_table(opened: Page, name: str) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    table = opened.locator(f"[id='{name}'] table").first
    assert table.is_visible() == (name != "idle")  # it is folded: nothing of it was run
    opened.locator(f"nav a[href='#{name}']").click()
    table.wait_for(state="visible")
    top = opened.locator(f"[id='{name}']").evaluate("each => each.getBoundingClientRect().top")
    assert top < 900
