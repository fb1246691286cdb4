"""The waterfall: levels and changes by hand, over the seeds that all of its recipes share."""

import dataclasses
from collections.abc import Callable

import pytest

from semiseg.base.parameters import Params
from semiseg.evaluation.record import Record
from semiseg.report.collect import Results, collect
from semiseg.report.figures import kinds, waterfall

Finish = Callable[..., Record]
SPLIT = "small-1_8"
CHAIN = ("supervised", "dcc", "cmb-no_attention", "cmb")


@pytest.fixture
def chained(params: Params) -> Params:
    """Return the benchmark with a waterfall in its ablation, whose seeds are 0, 1 and 2."""
    grid = dataclasses.replace(params.grids["ablation"], seeds=(0, 1, 2), waterfall=CHAIN)
    return dataclasses.replace(params, grids={**params.grids, "ablation": grid})


def results(params: Params) -> Results:
    return collect(params, "ablation")


@pytest.fixture
def whole(chained: Params, finish: Finish) -> Results:
    """Finish seeds 0 and 1 of the chain, and seed 2 of two recipes only, far off."""
    mious = {"supervised": (0.40, 0.50), "dcc": (0.46, 0.52), "cmb-no_attention": (0.45, 0.51)}
    for recipe, values in {**mious, "cmb": (0.50, 0.60)}.items():
        for seed, miou in enumerate(values):
            finish(recipe, SPLIT, seed, miou)
    for recipe in ("supervised", "cmb"):
        finish(recipe, SPLIT, 2, 0.99)
    return results(chained)


def test_levels_are_means_over_the_shared_seeds_and_changes_are_paired(whole: Results) -> None:
    first, *rest = waterfall.levels(whole, SPLIT)
    assert (first.recipe, first.miou, first.change) == ("supervised", pytest.approx(0.45), None)
    # +6 and +2, -1 and -1, +5 and +9 points
    assert [(level.recipe, pytest.approx(level.miou)) for level in rest] == [
        ("dcc", 0.49),
        ("cmb-no_attention", 0.48),
        ("cmb", 0.55),
    ]
    assert [level.change.mean for level in rest] == pytest.approx([0.04, -0.01, 0.07])
    assert [level.change.std for level in rest] == pytest.approx([0.02 * 2**0.5, 0, 0.02 * 2**0.5], abs=1e-8)
    assert {level.change.count for level in rest} == {2}
    assert first.miou + sum(level.change.mean for level in rest) == pytest.approx(rest[-1].miou)
    assert waterfall.lacking(whole) == ""


def test_each_bar_starts_where_the_one_before_ended(whole: Results) -> None:
    figure = waterfall.draw(whole)
    assert figure is not None
    (axes,) = figure.axes
    assert [bar.get_x() for bar in axes.patches] == pytest.approx([45, 49, 48])
    assert [bar.get_x() + bar.get_width() for bar in axes.patches] == pytest.approx([49, 48, 55])
    colours = [bar.get_edgecolor()[:3] for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert [text.get_text() for text in axes.texts] == [
        "+4.0 ± 2.8 (2)",
        "-1.0 ± 0.0 (2)",
        "+7.0 ± 2.8 (2)",
        "45.0",
        "55.0",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "supervised",
        "→ dcc",
        "→ cmb-no_attention",
        "→ cmb",
        "cmb",
    ]
    totals = [line for line in axes.lines if line.get_marker() != "None"]
    assert [float(line.get_xdata()[0]) for line in totals] == pytest.approx([45, 55])
    assert axes.get_title() == "shapes, 1/8 labelled (20 images): from supervised to cmb"


def test_the_longest_part_that_was_run_is_drawn(chained: Params, finish: Finish) -> None:
    for recipe, miou in (("supervised", 0.40), ("cmb-no_attention", 0.48), ("cmb", 0.50)):
        finish(recipe, SPLIT, 0, miou)
    found = waterfall.levels(results(chained), SPLIT)
    assert [level.recipe for level in found] == [
        "cmb-no_attention",
        "cmb",
    ]  # none from before dcc to behind it
    assert found[1].change.mean == pytest.approx(0.02)
    assert found[1].change.std is None
    assert waterfall.lacking(results(chained)) == "not run: dcc"
    kinds.write(results(chained))
    assert "Without some runs: `waterfall` (not run: dcc)." in kinds.lacking(results(chained))


def test_without_two_neighbours_that_share_a_seed_there_is_none(chained: Params, finish: Finish) -> None:
    for seed, recipe in enumerate(("supervised", "dcc", "cmb-no_attention")):
        finish(recipe, SPLIT, seed, 0.5)
    finish("cmb", SPLIT, 0, 0.5)
    assert waterfall.levels(results(chained), SPLIT) == []
    assert waterfall.draw(results(chained)) is None
    assert waterfall.lacking(results(chained)) == "its recipes have no seed that all share"


def test_a_grid_without_a_chain_lacks_none(params: Params, finish: Finish) -> None:
    finish("supervised", SPLIT, 0, 0.4)
    finish("cmb", SPLIT, 0, 0.5)
    assert waterfall.draw(results(params)) is None
    assert waterfall.lacking(results(params)) == ""
