"""The report page: complete, self-contained, the same for the same records."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from semiseg.base.parameters import Params
from semiseg.evaluation.record import Record
from semiseg.report import page
from semiseg.report.collect import collect
from semiseg.report.figures import kinds

Finish = Callable[..., Record]


class Reader(HTMLParser):
    """What the page refers to, its headings, its tables' rows, and whether its tags are closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str | None] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.addresses += [attributes[name] or "" for name in ("src", "href", "srcset") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def written(params: Params, finish: Finish) -> str:
    """The page over a grid with two recipes and an ablation that was not run."""
    for seed, miou in enumerate((0.50, 0.60)):
        finish("supervised", "small-1_8", seed, miou)
        finish("cmb", "small-1_8", seed, miou + 0.05, revision="abcdef012345" + "6" * 28 + "-modified")
    kinds.write(collect(params, "main"))
    assert page.write(params) == []
    return Path("results/report.html").read_text()


def test_page_is_well_formed_and_asks_no_host(written: str) -> None:
    read = Reader(written)
    assert read.open == []
    assert read.addresses
    assert all(each.startswith(("#", "data:")) for each in read.addresses)
    assert all(f"{each[1:]}" in read.ids for each in read.addresses if each.startswith("#"))
    assert not re.search(r"https?://|@import|url\(", written)


def test_page_has_a_section_for_what_was_run_and_one_for_the_rest(written: str) -> None:
    read = Reader(written)
    assert read.text["h2"] == ["Shapes, all of them", "Without attention"]
    assert "snakemake ablation --cores 8 --resources gpu=4" in read.text["code"]
    assert {"55.0 ± 7.1 (2)", "60.0 ± 7.1 (2)", "+5.0 [+5.0, +5.0]"} <= set(read.text["td"])
    assert {"4 of 18 runs", "4 of 8 runs"} <= set(read.text["span"])


def test_page_names_the_origin_of_every_run(written: str) -> None:
    read = Reader(written)
    cells = read.text["td"]
    # Last and best, in both sections
    assert [cells.count(figure) for figure in ("50.00", "60.00", "55.00", "65.00")] == [4, 4, 4, 4]
    assert read.text["code"].count("abcdef012345-modified") == 4
    assert "abcdef012345" + "6" * 28 + "-modified" in written
    assert cells.count("90.0") == 8  # minutes


def test_page_says_what_the_runs_took(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5, train_seconds=7200.0)
    for seed, peak in ((0, 2000.0), (1, 12345.6)):
        finish("cmb", "small-1_8", seed, 0.5, train_seconds=4500.0, peak_memory_mib=peak)
    page.write(params)
    read = Reader(Path("results/report.html").read_text())
    said = (
        "Training: 2.50 GPU-hours (2 runs), 2.00 CPU hours (1 run); at most 12,346 MiB of GPU memory a run."
    )
    assert said in read.text["li"]
    assert read.text["td"].count("1.25") == 4  # two runs in two sections
    assert "results/runs/cmb/small-1_8/1/metrics.json" in read.text["td"]


def test_figures_are_embedded_with_a_text_of_their_own(written: str) -> None:
    images = Reader(written).images
    assert len(images) == 4  # no history and no predictions are here
    for image in images:
        assert (image["src"] or "").startswith("data:image/png;base64,")
        assert "supervised, cmb" in (image["alt"] or "")
        assert int(image["width"] or 0) > 500


def test_same_records_same_page(written: str, params: Params) -> None:
    page.write(params)
    assert Path("results/report.html").read_text() == written
    assert str(Path.cwd()) not in written


def test_without_a_single_run_every_table_is_there_and_says_what_is_missing(params: Params) -> None:
    assert page.write(params) == []
    text = Path("results/report.html").read_text()
    read = Reader(text)
    assert read.open == []
    assert read.text["h2"] == [grid.title for grid in params.grids.values()]
    assert set(params.grids) <= set(read.ids)
    assert text.count('<table class="sortable">') == 2  # nothing was best on validation, either
    assert text.count("<td></td>") + text.count('<td class="gain"></td>') == 3 * 4 + 4 * 2
    assert read.text["summary"].count("Best on validation") == 0
    assert read.images == []
    missing = [line for line in read.text["li"] if line.startswith(("18 runs: ", "8 runs: "))]
    assert len(missing) == 2
    commands = [code for code in read.text["code"] if code.startswith("snakemake ")]
    assert [code.split()[1] for code in commands] == ["main", "ablation"]


def test_tables_without_a_run_are_folded_behind_the_others(params: Params, finish: Finish) -> None:
    finish("cmb-no_attention", "small-1_8", 0, 0.5)
    page.write(params)
    text = Path("results/report.html").read_text()
    (folded,) = re.findall(r'<section id="(\w+)" class="folded">\s*<details>', text)
    assert folded == "main"
    assert text.index('<section id="ablation">') < text.index('<section id="main"')
    assert text.count("Best on validation</summary>") == 1


def test_a_stale_grid_is_named_and_does_not_hide_the_others(params: Params, finish: Finish) -> None:
    finish("cmb-no_attention", "small-1_8", 0, 0.5, config_sha256="0" * 64)
    finish("supervised", "small-full", 0, 0.5)  # not on the ablation's split
    (refused,) = page.write(params)
    assert refused.startswith("Without attention: results/runs/cmb-no_attention/small-1_8/0/metrics.json")
    read = Reader(Path("results/report.html").read_text())
    assert read.text["h2"] == ["Shapes, all of them", "Not shown"]
    assert "0 of 8 runs" not in read.text["span"]  # what cannot be read is not said to be missing


def test_text_from_records_is_escaped(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5, device="<script>alert(1)</script> & co")
    page.write(params)
    text = Path("results/report.html").read_text()
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text
    Reader(text)


def test_a_papers_table_is_a_section_with_nothing_run(params: Params, printed: Path) -> None:
    assert page.write(params) == []
    read = Reader(Path("results/report.html").read_text())
    assert read.text["h2"] == [
        "The main table: published and measured",
        "The ablation: published and measured",
    ]
    assert {"61.5", "72.4", "76.4", "69.0"} <= set(read.text["td"])
    assert {"main", "ablation"} <= set(read.ids)
    assert read.open == []


def test_a_papers_section_has_what_was_measured_and_by_which_runs(
    params: Params, finish: Finish, printed: Path
) -> None:
    finish("dcc", "small-1_8", 0, 0.75)
    finish("cmb", "small-1_8", 0, 0.80)  # of the grid, but no row of the paper's main table
    assert page.write(params) == []
    read = Reader(Path("results/report.html").read_text())
    cells = read.text["td"]
    assert (cells.count("75.0 (1)"), cells.count("+2.6")) == (1, 1)
    assert (cells.count("75.00"), cells.count("80.00")) == (2, 2)  # last and best; the ablation's
    assert "1 of 6 runs" in " ".join(read.text["span"])


def test_a_stale_record_hides_its_papers_table_alone(params: Params, finish: Finish, printed: Path) -> None:
    finish("supervised", "small-1_8", 0, 0.5, config_sha256="0" * 64)
    refused = page.write(params)
    assert [line.partition(":")[0] for line in refused] == [
        "The main table",
    ]
    read = Reader(Path("results/report.html").read_text())
    assert "The ablation: published and measured" in read.text["h2"]
