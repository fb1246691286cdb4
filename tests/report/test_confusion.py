"""Confusion matrices: row-normalised, a mean over seeds."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report.collect import collect
from semiseg.report.figures import confusion

Finish = Callable[..., Record]


def count(made: Record, *rows: tuple[int, ...]) -> Record:
    return dataclasses.replace(made, confusion=rows)


def test_rows_are_shares_of_the_truth_and_a_mean_over_the_seeds_that_have_it(finish: Finish) -> None:
    one, two = (finish("cmb", "small-1_8", seed, 0.5) for seed in range(2))
    one = count(one, (8, 2, 0), (0, 0, 0), (0, 0, 0))
    two = count(two, (20, 20, 0), (3, 0, 1), (0, 0, 0))
    mean = confusion.shares([one, two])
    np.testing.assert_allclose(mean, [[0.65, 0.35, 0], [0.75, 0, 0.25], [np.nan] * 3])


def test_a_matrix_for_each_method(params: Params, finish: Finish) -> None:
    for recipe in ("supervised", "cmb", "dcc"):
        finish(recipe, "small-1_8", 0, 0.5)
    finish("dcc", "small-1_8", 1, 0.5)
    results = collect(params, "main")
    run = Run("supervised", "small-1_8", 0)
    counted = count(results.records[run], (9, 1, 0), (0, 5, 5), (0, 0, 7))
    figure = confusion.draw(dataclasses.replace(results, records={**results.records, run: counted}))
    assert figure is not None
    matrices = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in matrices] == [
        "supervised (1 seed)",
        "cmb (1 seed)",
        "dcc (2 seeds)",
    ]
    np.testing.assert_allclose(matrices[0].images[0].get_array()[1], [0, 50, 50])
    assert sorted(text.get_text() for text in matrices[0].texts) == ["10", "100", "50", "50", "90"]
    assert [label.get_text() for label in matrices[1].get_xticklabels()] == ["background", "disc", "square"]


def test_without_a_run_there_is_no_figure(params: Params) -> None:
    assert confusion.draw(collect(params, "main")) is None


@pytest.mark.parametrize("classes", [21, 11])
def test_numbers_stand_where_they_fit(params: Params, finish: Finish, classes: int) -> None:
    names = tuple(f"class{place}" for place in range(classes))
    shapes = dataclasses.replace(params.datasets["shapes"], classes=names)
    changed = dataclasses.replace(params, datasets={"shapes": shapes})
    made = count(finish("cmb", "small-1_8", 0, 0.5), *np.eye(classes, dtype=int).tolist())
    results = dataclasses.replace(
        collect(params, "main"), params=changed, records={Run("cmb", "small-1_8", 0): made}
    )
    figure = confusion.draw(results)
    assert figure is not None
    assert len(figure.axes[0].texts) == (0 if classes > confusion.NUMBERED else classes)
