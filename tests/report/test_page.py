"""The report's pages: complete, without a request to any host, the same for the same records."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import page
from semiseg.report.collect import collect
from semiseg.report.figures import kinds
from tests.report.conftest import PARAMS, edited
from tests.report.test_markup import TITLE

Finish = Callable[..., Record]
INDEX, MAIN, ABLATION = (
    Path("results", name) for name in ("report.html", "report/main.html", "report/ablation.html")
)


class Reader(HTMLParser):
    """Reads a page's references, its texts by tag, and whether its tags are closed."""

    VOID = ("meta", "link", "img", "br", "line", "circle")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str | None] = []
        self.text: dict[str, list[str]] = {}
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.addresses += [attributes[name] or "" for name in ("src", "href", "srcset") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    def texts(self, tag: str) -> list[str]:
        """Return the text of each element ``tag``, with that of the elements in it."""
        return [" ".join(each.split()) for each in self.text.get(tag, [])]


def pages() -> list[Reader]:
    """Read the pages that exist, without writing any."""
    return [Reader(path) for path in [INDEX, *sorted(Path("results/report").iterdir())]]


@pytest.fixture
def written(params: Params, finish: Finish) -> Params:
    """Write the pages over two recipes that both tables show, with figures of one."""
    for seed, miou in enumerate((0.50, 0.60)):
        finish("supervised", "small-1_8", seed, miou)
        finish("cmb", "small-1_8", seed, miou + 0.05, revision="abcdef012345" + "6" * 28 + "-modified")
        Run("cmb", "small-1_8", seed).history.write_text("step,loss,supervised\n10,1,1\n")
    kinds.write(collect(params, "main"))
    assert page.write(params) == []
    return params


def test_pages_are_well_formed_and_every_link_leads_somewhere(written: Params) -> None:
    read = {each.path.resolve(): each for each in pages()}
    assert len(read) == 3
    for each in read.values():
        assert each.open == []
        assert not re.search(r"https?://|@import|url\(|src=.data", each.source)
        for address in each.addresses:
            if address == "data:,":
                continue
            place, _, fragment = address.partition("#")
            target = (each.path.parent / place).resolve() if place else each.path.resolve()
            if "/predictions/" in address:
                assert target.is_relative_to(Path("runs").resolve())
                continue
            assert target.exists(), address
            if fragment:
                assert unquote(fragment) in read[target].ids


def test_every_number_leads_to_its_run_and_from_there_to_its_files(written: Params) -> None:
    index, main = Reader(INDEX), Reader(MAIN)
    runs = [f"{recipe}/small-1_8/{seed}" for recipe in ("supervised", "cmb") for seed in (0, 1)]
    assert [each for each in main.ids if each in runs] == runs
    linked = {address.partition("#")[2] for address in index.addresses}
    assert {"supervised/small-1_8/0", "cmb/small-1_8/0", "cmb/small-1_8/1"} <= linked
    assert "#cmb/small-1_8/0" in main.addresses
    for file in ("metrics.json", "history.csv"):
        assert f"../runs/cmb/small-1_8/1/{file}" in main.addresses
    assert "../runs/supervised/small-1_8/1/history.csv" not in main.addresses
    assert "../../runs/cmb/small-1_8/1/predictions/" in main.addresses


def test_the_index_ranks_by_gain_and_lists_every_table(written: Params, finish: Finish) -> None:
    finish("dcc", "small-1_8", 0, 0.40)
    finish("cmb-no_attention", "small-1_8", 1, 0.61)
    page.write(written)
    index = Reader(INDEX)
    assert index.texts("h2")[0].startswith("shapes, 1/8 labelled (20 images)")
    recipes = [text for text in index.texts("th") if text in written.recipes]
    assert recipes == ["cmb", "cmb-no_attention", "supervised", "dcc"]  # +5, +1, 0, -10
    assert {"55.0 ± 7.1 (2)", "60.0 ± 7.1 (2)", "+5.0 [+5.0, +5.0]"} <= set(index.texts("td"))
    assert {"5 of 18 runs", "6 of 8 runs"} <= set(index.texts("span"))
    assert index.texts("option") == ["all", "shapes", "all", "1/8", "all", "cmb", "supervised", "dcc"]


def test_a_table_names_what_it_lacks(written: Params) -> None:
    main = Reader(MAIN)
    assert main.texts("h1") == ["Shapes, all of them"]
    assert "snakemake main --cores 8 --resources gpu=4" in main.texts("code")
    assert {"55.0 ± 7.1 (2)", "60.0 ± 7.1 (2)", "+5.0 [+5.0, +5.0]"} <= set(main.texts("td"))


def test_a_page_names_the_origin_of_every_run(written: Params) -> None:
    main = Reader(MAIN)
    cells = main.texts("td")
    assert [cells.count(figure) for figure in ("50.00", "60.00", "55.00", "65.00")] == [
        2,
        2,
        2,
        2,
    ]  # last, best
    assert main.texts("code").count("abcdef012345-modified") == 2
    assert "abcdef012345" + "6" * 28 + "-modified" in main.source
    assert cells.count("90.0") == 4  # minutes


def test_a_page_shows_every_network_of_a_run(params: Params, finish: Finish) -> None:
    finish("cmb", "small-1_8", 0, 0.5, headline="teacher")
    page.write(params)
    assert "student 45.00" in Reader(MAIN).texts("td")


def test_a_page_shows_further_figures(params: Params, finish: Finish) -> None:
    finish("cmb", "small-1_8", 0, 0.5, figures={"boundary_iou": 0.21234, "calibration_error": None})
    page.write(params)
    assert "boundary_iou 0.2123" in Reader(MAIN).texts("td")


def test_a_page_says_what_the_runs_took(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5, train_seconds=7200.0)
    for seed, peak in ((0, 2000.0), (1, 12345.6)):
        finish("cmb", "small-1_8", seed, 0.5, train_seconds=4500.0, peak_memory_mib=peak)
    page.write(params)
    said = (
        "Training: 2.50 GPU-hours (2 runs), 2.00 CPU hours (1 run); at most 12,346 MiB of GPU memory a run."
    )
    assert said in Reader(MAIN).texts("li")
    assert Reader(MAIN).texts("td").count("1.25") == 2


def test_hours_are_those_of_all_gpus(params: Params, finish: Finish) -> None:
    finish("cmb", "small-1_8", 0, 0.5, train_seconds=3600.0, device="4 x A GPU", peak_memory_mib=1000.0)
    page.write(params)
    assert any("4.00 GPU-hours (1 run)" in each for each in Reader(MAIN).texts("li"))
    assert "4.00" in Reader(MAIN).texts("td")


def test_figures_lie_beside_the_pages(written: Params) -> None:
    images = Reader(MAIN).images
    assert [image["src"] for image in images] == [
        f"../figures/main/{name}.png" for name in ("miou", "classes", "gains", "confusion", "curves")
    ]
    for image in images:
        assert "supervised, cmb" in (image["alt"] or "")
        assert int(image["width"] or 0) > 500
    assert Reader(ABLATION).images == []  # none was drawn


def test_same_records_same_pages(written: Params) -> None:
    before = {each.path: each.source for each in pages()}
    page.write(written)
    assert {each.path: each.source for each in pages()} == before
    assert not any(str(Path.cwd()) in source for source in before.values())


def test_without_a_single_run_every_table_is_there_and_says_what_is_missing(params: Params) -> None:
    assert page.write(params) == []
    assert "Nothing was run yet" in Reader(INDEX).source
    assert "<details open>" in Reader(INDEX).source
    for path, rows, runs in ((MAIN, 3 * 4, "18 runs: "), (ABLATION, 4 * 2, "8 runs: ")):
        read = Reader(path)
        assert read.open == []
        assert read.texts("td") == [""] * rows
        assert read.texts("summary") == []  # nothing was best on validation, either
        assert read.images == []
        assert len([line for line in read.texts("li") if line.startswith(runs)]) == 1
        assert f"snakemake {path.stem} --cores 8 --resources gpu=4" in read.texts("code")


def test_tables_with_runs_stand_before_the_others(params: Params, finish: Finish) -> None:
    finish("cmb-no_attention", "small-1_8", 0, 0.5)
    page.write(params)
    links = [address for address in Reader(INDEX).addresses if re.fullmatch(r"report/\w+\.html", address)]
    assert links == ["report/ablation.html", "report/main.html"]
    assert Reader(INDEX).texts("summary") == ["Without a run: 1"]
    assert "<details open>" not in Reader(INDEX).source


def test_a_stale_grid_is_named_and_does_not_hide_the_others(params: Params, finish: Finish) -> None:
    finish("cmb-no_attention", "small-1_8", 0, 0.5, config_sha256="0" * 64)
    finish("supervised", "small-full", 0, 0.5)  # not on the ablation's split
    (refused,) = page.write(params)
    assert refused.startswith("Without attention: results/runs/cmb-no_attention/small-1_8/0/metrics.json")
    index = Reader(INDEX)
    assert "Not shown" in index.texts("h2")
    assert "1 of 18 runs" in index.texts("span")
    assert "0 of 8 runs" not in index.texts("span")  # what cannot be read is not said to be missing
    assert not ABLATION.exists()


def test_text_from_records_and_titles_is_escaped(params: Params, finish: Finish) -> None:
    titled = edited(PARAMS.replace("title: Shapes, all of them", f"title: {TITLE!r}".replace("\\'", "''")))
    shown = " ".join(titled.grids["main"].title.split())
    assert "<img" in shown
    finish("supervised", "small-1_8", 0, 0.5, device="<script>alert(1)</script> & **co**")
    kinds.write(collect(titled, "main"))
    page.write(titled)
    for read in pages():
        assert len(read.texts("script")) == 1
        assert not any("onerror" in image for image in read.images)
    main = Reader(MAIN)
    assert main.texts("h1") == [shown]
    assert shown in Reader(INDEX).texts("a")
    assert "<script>alert(1)</script> & **co**" in main.texts("td")
    assert "Device: <script>alert(1)</script> & **co**." in main.texts("li")


def test_a_papers_table_has_a_page_with_nothing_run(params: Params, printed: Path) -> None:
    assert page.write(params) == []
    main, ablation = Reader(MAIN), Reader(ABLATION)
    assert main.texts("h1") == ["The main table: published and measured"]
    assert ablation.texts("h1") == ["The ablation: published and measured"]
    assert {"61.5", "72.4", "76.4"} <= set(main.texts("td"))
    assert "69.0" in ablation.texts("td")
    assert main.open == []


def test_a_papers_page_has_what_was_measured_and_by_which_runs(
    params: Params, finish: Finish, printed: Path
) -> None:
    finish("dcc", "small-1_8", 0, 0.75)
    finish("cmb", "small-1_8", 0, 0.80)  # of the grid, but no row of the paper's main table
    assert page.write(params) == []
    cells = Reader(MAIN).texts("td")
    assert (cells.count("75.0 (1)"), cells.count("+2.6")) == (1, 1)
    assert (cells.count("75.00"), cells.count("80.00")) == (2, 0)  # last and best
    assert Reader(ABLATION).texts("td").count("80.00") == 2
    index = Reader(INDEX)
    assert "1 of 6 runs" in index.texts("span")
    assert "72.4" in index.texts("td")


def test_the_index_shows_the_authors_logs(params: Params, finish: Finish, logged: Path) -> None:
    finish("supervised", "small-1_8", 0, 0.75)
    page.write(params)
    index = Reader(INDEX)
    assert {"65.0", "61.5"} <= set(index.texts("td"))
    assert "reference/peer_logs.csv" in index.addresses


def test_a_stale_record_hides_the_tables_that_show_it(params: Params, finish: Finish, printed: Path) -> None:
    finish("supervised", "small-full", 0, 0.5, config_sha256="0" * 64)
    refused = page.write(params)
    assert [line.partition(":")[0] for line in refused] == ["Shapes, all of them"]
    assert ABLATION.exists()
    assert not MAIN.exists()
