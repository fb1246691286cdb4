"""What papers print, beside what was measured: figures worked out by hand."""

import csv
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
from semiseg.report import published, tables
from semiseg.report.collect import collect, last

Finish = Callable[..., Record]
ROOT = Path(__file__).parents[2]


def test_main_tables_of_the_papers_agree_where_they_print_the_same_cell() -> None:
    with (ROOT / published.FIGURES).open() as file:
        rows = [row for row in csv.DictReader(file) if not row["variant"]]
    cells: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        key = (*(row[name] for name in ("dataset", "network", "backbone", "pretraining", "method", "ratio")),)
        cells.setdefault(key, set()).add(row["miou"])
    assert len(rows) > len(cells) > 50
    assert all(len(figures) == 1 for figures in cells.values())


def test_a_papers_table_is_a_grid_with_the_recipes_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, reference = parameters.load(), published.load()
    assert len(reference.figures) == 101
    for name, table in reference.tables.items():
        assert table.title == params.grids[name].title
        assert set(table.recipes.values()) <= set(params.grids[name].recipes)
    for name in ("paper-cmb-losses", "paper-dcc-components"):
        table = reference.tables[name]
        assert {each.variant for each in reference.figures if each.table == table.rows} == set(table.recipes)


def test_a_variants_recipe_has_the_losses_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, table = parameters.load(), published.load().tables["paper-cmb-losses"]
    weights = {"pseudo": "pseudo_weight", "ent": "entropy_weight", "contr": "contrast_weight"}
    for variant, recipe in table.recipes.items():
        options = params.recipes[recipe].options
        present = {name for name, weight in weights.items() if options.get(weight) != 0}
        assert {"sup", *present} == set(variant.split("+")), recipe


def test_a_variants_recipe_has_the_components_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, table = parameters.load(), published.load().tables["paper-dcc-components"]
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
    assert table.rows[1][1:5] == ("73.0 ± 3.0 (3)", "+11.0 [+10.0, +12.0]", "", "")
    assert table.rows[2][1:5] == ("", "", "72.4", "")  # printed, not run
    text = tables.markdown(results)
    assert "Published: A 2021 Table 1, B 2021 Table 2, for the same network" in text
    frame = pd.read_csv(io.StringIO(tables.csv(results))).set_index(["recipe", "split"])
    row = frame.loc[("supervised", "small-1_8")]
    assert (row["published"], row["published_in"]) == (pytest.approx(0.615), "A 2021 Table 1")
    assert frame.loc[("cmb", "small-1_8")][["gain_low", "gain_high"]].tolist() == pytest.approx([0.10, 0.12])


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
    first, *_, last_one = published.load().figures
    assert (first.ratio, first.miou, first.source) == (Fraction(1, 8), pytest.approx(0.615), "A 2021 Table 1")
    assert last_one.ratio == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("61.5", "sixty", "line 2: ratio or miou is not a number"),
        ("61.5", "615", "line 2: ratio 1/8 or miou 615 is out of range"),
        ("1/8,61.5", "1/0,61.5", "line 2: ratio or miou"),
        ("miou,source", "score,source", "the columns are not table, dataset"),
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
        published.load()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_of_the_reference_is_not_taken_for_none(printed: Path) -> None:
    (printed / "tables.yaml").unlink()
    with pytest.raises(UserError, match=r"tables\.yaml: not found; restore it from git"):
        published.load()
