"""Printed figures beside measured ones, worked out by hand."""

import csv
import dataclasses
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.evaluation.record import Record
from semiseg.report import reference, tables
from semiseg.report.collect import collect, last

Finish = Callable[..., Record]
ROOT = Path(__file__).parents[2]


def test_main_tables_of_the_papers_agree_where_they_print_the_same_cell() -> None:
    with (ROOT / reference.PRINTED).open() as file:
        rows = [row for row in csv.DictReader(file) if not row["variant"]]
    cells: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        key = (*(row[name] for name in ("dataset", "network", "backbone", "pretraining", "method", "ratio")),)
        cells.setdefault(key, set()).add(row["miou"])
    assert len(rows) > len(cells) > 50
    assert all(len(figures) == 1 for figures in cells.values())


def test_a_papers_table_is_a_grid_with_the_recipes_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, published = parameters.load(), reference.load()
    assert (len(published.printed), len(published.logged)) == (105, 93)
    for name, table in published.tables.items():
        assert table.title == params.grids[name].title
        assert set(table.recipes.values()) <= set(params.grids[name].recipes)
    for name in ("paper-cmb-losses", "paper-dcc-components"):
        table = published.tables[name]
        assert {each.variant for each in published.printed if each.table == table.rows} == set(table.recipes)


def test_a_variants_recipe_has_the_losses_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, table = parameters.load(), reference.load().tables["paper-cmb-losses"]
    weights = {"pseudo": "pseudo_weight", "ent": "entropy_weight", "contr": "contrast_weight"}
    for variant, recipe in table.recipes.items():
        options = params.recipes[recipe].options
        present = {name for name, weight in weights.items() if options.get(weight) != 0}
        assert {"sup", *present} == set(variant.split("+")), recipe


def test_a_variants_recipe_has_the_components_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, table = parameters.load(), reference.load().tables["paper-dcc-components"]
    switches = {
        "proj": "projector",
        "context": "context",
        "dir": "directional",
        "ns": "negative_sampling",
        "pf": "positive_filter",
    }
    for variant, recipe in table.recipes.items():
        if "(" not in variant or "l2" in variant:  # supervised, self-training, and l2, which has no masks
            continue
        named = set(variant.partition("(")[2].strip(")").split("+"))
        options = params.recipes[recipe].options
        assert {"cl", *(name for name, key in switches.items() if options.get(key, True))} == named, recipe


def test_a_grids_table_stands_beside_the_published_figures(
    params: Params, finish: Finish, printed: Path
) -> None:
    for seed, (supervised, cmb) in enumerate([(0.60, 0.70), (0.62, 0.73), (0.64, 0.76)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb)
    results = collect(params, "main")
    table = tables.text_table(results, last)
    # 1/8 has printed cells; "full" has one of another network alone, which is no comparison
    assert table.head == ("recipe", "1/8 (20)", "gain", "published", "difference", "full", "gain")
    assert table.rows[0][1:5] == ("62.0 ± 2.0 (3)", "–", "61.5", "+0.5")
    assert table.rows[1][1:5] == ("73.0 ± 3.0 (3)", "+11.0 [+8.5, +13.5]", "", "")
    assert table.rows[2][1:5] == ("", "", "72.4", "")  # printed, not run
    text = tables.markdown(results)
    assert "Published: A 2021 Table 1, B 2021 Table 2, for the same network" in text
    frame = pd.read_csv(io.StringIO(tables.csv(results))).set_index(["recipe", "split"])
    row = frame.loc[("supervised", "small-1_8")]
    assert (row["published"], row["published_in"]) == (pytest.approx(0.615), "A 2021 Table 1")
    # gains 10, 11, 12 points: t(0.975, 2) / sqrt(3) = 2.484
    gain = frame.loc[("cmb", "small-1_8")][["gain_low", "gain_high"]].tolist()
    assert gain == pytest.approx([0.11 - 0.02484, 0.11 + 0.02484], abs=1e-5)


def test_without_published_figures_there_are_no_columns_for_them(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.5)
    assert tables.text_table(collect(params, "main"), last).head == (
        "recipe",
        "1/8 (20)",
        "gain",
        "full",
        "gain",
    )


def test_shares_are_read_and_per_cents_become_fractions(printed: Path) -> None:
    first, *_, last_one = reference.load().printed
    assert (first.ratio, first.miou, first.source) == (Fraction(1, 8), pytest.approx(0.615), "A 2021 Table 1")
    assert last_one.ratio == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("61.5", "sixty", "paper_results.csv: line 2: "),
        ("61.5", "615", "paper_results.csv: line 2: "),
        ("1/8,61.5", "1/0,61.5", "paper_results.csv: line 2: "),
        ("1/8,61.5", "9/8,61.5", "paper_results.csv: line 2: "),
        ("miou,source", "score,source", "paper_results.csv: the columns are not table, dataset"),
        ("ablation-rows,", "other-rows,", "has no table 'ablation-rows'"),
        ("no attention", "sans attention", "has no variant 'no attention'"),
    ],
)
def test_a_wrong_figure_is_refused_in_one_line(printed: Path, old: str, new: str, said: str) -> None:
    path = printed / "paper_results.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match="results/reference/") as caught:
        reference.load()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tables.yaml", "paper_results.csv", "peer_logs.csv"])
def test_a_part_of_the_reference_is_not_taken_for_none(printed: Path, name: str) -> None:
    (printed / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        reference.load()


def test_the_authors_logs_stand_beside_the_cells_of_their_list_and_network(
    params: Params, finish: Finish, logged: Path
) -> None:
    finish("supervised", "small-1_8", 0, 0.60)
    results = collect(params, "main")
    table = tables.text_table(results, last)
    assert table.head == (
        *("recipe", "1/8 (20)", "gain", "published best", "published last"),
        *("full", "gain", "published best", "published last"),
    )
    # Two logs at 1/8 (best 64 and 66, last 60 and 63), one on another list, one of another network
    assert table.rows[0][3:5] == ("65.0 ± 1.4 (2)", "61.5 ± 2.1 (2)")
    assert table.rows[1][3:5] == ("", "")
    assert table.rows[2][7:9] == ("81.0 (1)", "80.5 (1)")  # all images: whichever family's
    row = (
        pd.read_csv(io.StringIO(tables.csv(results)))
        .set_index(["recipe", "split"])
        .loc["supervised", "small-1_8"]
    )
    columns = ["published_best", "published_last", "published_trainings"]
    assert row[columns].tolist() == pytest.approx([0.65, 0.615, 2])
    assert "someone/logs@1234" in tables.markdown(results)


def test_a_count_names_its_list_too(params: Params, logged: Path) -> None:
    (supervised, *_) = reference.load().logged
    by_count = dataclasses.replace(supervised, labelled="20")
    network, share = params.protocols["small"].network, params.share("small-1_8")
    assert not by_count.fits(network, share)
    assert by_count.fits(network, dataclasses.replace(share, count=20))
