"""The papers' tables over figures and records that were made up, worked out by hand."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report import papers, reference
from semiseg.report.markup import to_plain
from tests.report.conftest import PARAMS, edited, fabricate

Finish = Callable[..., Record]
ROOT = Path(__file__).parents[2]
NETWORK = "deeplabv3+, resnet18 (none)"


@pytest.fixture
def measured(params: Params, finish: Finish, printed: Path) -> Params:
    for seed, miou in enumerate((0.60, 0.62, 0.64)):
        finish("supervised", "small-1_8", seed, miou)
    finish("dcc", "small-1_8", 1, 0.70)
    finish("cmb-no_attention", "small-1_8", 0, 0.68)
    return params


def test_a_cell_is_published_measured_difference(measured: Params) -> None:
    table = papers.text_table(papers.collect(measured, "main"))
    assert table.head == (
        *("method", "network"),
        *("1/8 published", "measured", "difference"),
        *("1/4 published", "measured", "difference"),
        *("full published", "measured", "difference"),
    )
    empty = ("", "", "")
    # 60, 62, 64: mean 62, std sqrt((4 + 0 + 4) / 2) = 2
    assert table.rows == (
        ("supervised", NETWORK, "61.5", "62.0 ± 2.0 (3)", "+0.5", *empty, *empty),
        ("others", NETWORK, "70.0", "", "", *empty, "80.0", "", ""),
        ("dcc", NETWORK, "72.4", "70.0 (1)", "-2.4", "74.0", "", "", *empty),
        ("dcc", "pspnet, resnet50 (imagenet)", *empty, *empty, "76.4", "", ""),
    )


def test_an_ablations_rows_are_measured_by_the_recipes_of_their_variants(measured: Params) -> None:
    paper = papers.collect(measured, "ablation")
    table = papers.text_table(paper)
    assert table.head == ("row", "1/8 published", "measured", "difference")
    assert table.rows == (
        ("no attention", "69.0", "68.0 (1)", "-1.0"),
        ("all", "71.0", "", ""),
    )
    text = papers.markdown(paper)
    assert f"at the last step. {NETWORK}." in text  # one network: a sentence, not a column
    assert "- Inferred.\n" in text


def test_what_was_not_run_has_its_command_and_what_no_grid_runs_is_said(measured: Params) -> None:
    main = papers.markdown(papers.collect(measured, "main"))
    assert "- 2 runs: dcc on small-1_8 (seeds 0, 2). Run `snakemake main --cores 8" in main
    assert "Published figures only: others." in main
    assert f"No split of the grid measures dcc with {NETWORK} on shapes, 1/4." in main
    assert "No split of the grid measures dcc with pspnet, resnet50 (imagenet) on shapes, full." in main
    assert "measures others" not in main
    ablation = papers.missing(papers.collect(measured, "ablation"))
    assert len(ablation) == 1
    assert "snakemake ablation" in ablation[0]
    assert "cmb-no_attention on small-1_8 (seed 1)" in ablation[0]


def test_a_row_stands_once_for_each_protocol_that_measures_it(measured: Params, finish: Finish) -> None:
    text = PARAMS.replace("datasets:\n", "  longer: {<<: *small, steps: 3000}\ndatasets:\n")
    one = "protocol: small\n    shares: [1/8, full]\n"
    params = edited(text.replace(one, "protocols: {small: [1/8, full], longer: [1/8]}\n", 1))
    paper = papers.collect(params, "main")
    rows = [row for row in papers.text_table(paper).rows if row[0] == "dcc" and row[1] == NETWORK]
    assert [row[2:6] for row in rows] == [
        ("small", "72.4", "70.0 (1)", "-2.4"),
        ("longer", "72.4", "", ""),
    ]
    assert "dcc on longer-1_8 (seeds 0, 1, 2). Run `snakemake main" in papers.missing(paper)[0]


def test_without_its_grid_a_table_is_published_figures_only(measured: Params) -> None:
    params = dataclasses.replace(measured, grids={"ablation": measured.grids["main"]})
    paper = papers.collect(params, "main")
    assert paper.runs == []
    assert [row[2] for row in papers.text_table(paper).rows] == ["61.5", "70.0", "72.4", ""]
    assert "Published figures only: supervised, others, dcc." in papers.markdown(paper)


def test_two_splits_that_measure_one_cell_are_refused(measured: Params) -> None:
    text = PARAMS.replace("{1/8: {}, full: {}}", "{1/8: {}, other: {ratio: 1/8}, full: {}}")
    params = edited(text.replace("[1/8, full]", "[1/8, other]"))
    with pytest.raises(UserError, match="small-1_8 and small-other both measure supervised"):
        papers.collect(params, "main")


def test_a_stale_record_and_an_unknown_table_are_refused(measured: Params, finish: Finish) -> None:
    with pytest.raises(UserError, match="no 'paper-x'; there are main, ablation"):
        papers.collect(measured, "paper-x")
    finish("dcc", "small-1_8", 0, 0.5, config_sha256="0" * 64)
    with pytest.raises(UserError, match=r"dcc/small-1_8/0.*another configuration"):
        papers.collect(measured, "main")


def test_csv_has_a_row_a_figure(measured: Params) -> None:
    frame = pd.read_csv(io.StringIO(papers.csv(papers.collect(measured, "main"))))
    assert len(frame) == 6  # the printed cells of main-rows
    row = frame[(frame["method"] == "supervised")].iloc[0]
    assert (row["published"], row["miou_mean"]) == (pytest.approx(0.615), pytest.approx(0.62))
    assert row["difference"] == pytest.approx(0.005)
    assert (row["split"], row["protocol"], row["seed_list"]) == ("small-1_8", "small", "0 1 2")
    others = frame[frame["method"] == "others"]
    assert others[["recipe", "split", "miou_mean", "difference"]].isna().all(axis=None)


def test_every_paper_table_of_the_project_builds_with_nothing_run(monkeypatch, tmp_path: Path) -> None:
    params, published = benchmark(monkeypatch, tmp_path), reference.load()
    shown = 0
    for name, table in published.tables.items():
        paper = papers.collect(params, name)
        assert [path.name for path in papers.write(paper)] == [
            f"{name}.{kind}" for kind in ("csv", "md", "tex")
        ]
        text = Path(f"results/tables/{name}.md").read_text()
        for each in published.printed:
            if each.table == table.rows:
                assert f" {100 * each.miou:.1f} |" in text
                shown += 1
        assert to_plain(papers.headline(paper)) in papers.terminal(paper)
    assert shown == len(published.printed)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("paper-cmb-voc", {"cmb"}),
        ("paper-cmb-cityscapes", {"cmb"}),
        ("paper-cmb-losses", {"cmb"}),
        ("paper-dcc-voc", {"supervised", "dcc"}),
        ("paper-dcc-components", {"supervised", "self-training", "dcc"}),
    ],
)
def test_the_runs_of_a_papers_grid_fill_every_row_of_its_authors(
    name: str, methods: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    params = benchmark(monkeypatch, tmp_path)
    for run in params.grids[name].runs():
        record.write(fabricate(params, run, 0.5), run.metrics)
    paper = papers.collect(params, name)
    assert papers.missing(paper) == []
    assert papers.unmeasured(paper) == []
    for row in paper.rows:
        for cell in row.cells.values():
            assert len(paper.finished(cell)) == (3 if cell.printed.method in methods else 0)


def benchmark(monkeypatch: pytest.MonkeyPatch, place: Path) -> Params:
    """Put the project's params.yaml and published figures into ``place``, with nothing run."""
    (place / "results").mkdir()
    (place / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    (place / "params.yaml").symlink_to(ROOT / "params.yaml")
    monkeypatch.chdir(place)
    return parameters.load()
