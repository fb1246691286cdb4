"""Confusion matrices: row-normalised, a mean over seeds."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report.collect import collect
from semiseg.report.figures import confusion, kinds

Finish = Callable[..., Record]


def count(made: Record, *rows: tuple[int, ...]) -> Record:
    counted = dataclasses.replace(made, confusion=rows)
    record.write(counted, Run(made.recipe, made.split, made.seed).metrics)
    return counted


def test_rows_are_shares_of_the_truth_and_a_mean_over_the_seeds_that_have_it(finish: Finish) -> None:
    runs = [finish("cmb", "shapes-1_8", seed, 0.5) for seed in range(3)]
    assert confusion.shares(runs) is None
    one = count(runs[0], (8, 2, 0), (0, 0, 0), (0, 0, 0))
    two = count(runs[1], (20, 20, 0), (3, 0, 1), (0, 0, 0))
    mean = confusion.shares([one, two, runs[2]])
    assert mean is not None
    np.testing.assert_allclose(mean, [[0.65, 0.35, 0], [0.75, 0, 0.25], [np.nan] * 3])


def test_a_matrix_for_each_method_and_what_lacks_counts_is_said(params: Params, finish: Finish) -> None:
    rows = ((9, 1, 0), (0, 5, 5), (0, 0, 7))
    for recipe in ("supervised", "cmb", "dcc"):
        count(finish(recipe, "shapes-1_8", 0, 0.5), *rows)
    finish("dcc", "shapes-1_8", 1, 0.5)
    results = collect(params, "main")
    figure = confusion.draw(results)
    assert figure is not None
    matrices = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in matrices] == [
        "supervised (1 seed)",
        "cmb (1 seed)",
        "dcc (1 seed)",
    ]
    np.testing.assert_allclose(matrices[2].images[0].get_array()[1], [0, 50, 50])
    assert sorted(text.get_text() for text in matrices[0].texts) == ["10", "100", "50", "50", "90"]
    assert [label.get_text() for label in matrices[1].get_xticklabels()] == ["background", "disc", "square"]
    assert confusion.lacking(results).startswith("1 of 4 records hold no counts of pixels")
    assert any("`confusion`" in line for line in kinds.lacking(results))


def test_without_counts_there_is_no_figure(params: Params, finish: Finish) -> None:
    finish("supervised", "shapes-1_8", 0, 0.5)
    assert confusion.draw(collect(params, "main")) is None
    (said,) = [line for line in kinds.lacking(collect(params, "main")) if "`confusion`" in line]
    assert said.startswith("Not drawn: `confusion` (1 of 1 records hold no counts")


@pytest.mark.parametrize("classes", [21, 11])
def test_numbers_stand_where_they_fit(params: Params, finish: Finish, classes: int) -> None:
    names = tuple(f"class{place}" for place in range(classes))
    shapes = dataclasses.replace(params.datasets["shapes"], classes=names)
    changed = dataclasses.replace(params, datasets={"shapes": shapes})
    made = count(finish("cmb", "shapes-1_8", 0, 0.5), *np.eye(classes, dtype=int).tolist())
    results = dataclasses.replace(
        collect(params, "main"), params=changed, records={Run("cmb", "shapes-1_8", 0): made}
    )
    figure = confusion.draw(results)
    assert figure is not None
    assert len(figure.axes[0].texts) == (0 if classes > confusion.NUMBERED else classes)
