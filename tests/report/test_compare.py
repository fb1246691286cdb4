"""Rankings and their axis, worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import compare
from semiseg.report.collect import collect

Finish = Callable[..., Record]


def rankings(params: Params) -> list[compare.Ranking]:
    return compare.rankings(params, [collect(params, name) for name in params.grids])


def test_a_ranking_gathers_the_runs_of_all_grids_and_follows_the_gain(params: Params, finish: Finish) -> None:
    for seed, (supervised, cmb) in enumerate([(0.40, 0.44), (0.50, 0.56), (0.60, 0.68)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb)
    finish("cmb-no_attention", "small-1_8", 0, 0.43)  # +3, though its mIoU is far below supervised's mean
    finish("dcc", "small-1_8", 0, 0.39)
    finish("dcc", "small-full", 2, 0.7)  # beside no baseline
    eighth, full = rankings(params)
    assert [entry.recipe for entry in eighth.entries] == ["cmb", "cmb-no_attention", "supervised", "dcc"]
    cmb, variant, supervised, _ = eighth.entries
    assert (cmb.gain.mean, cmb.gain.interval) == (pytest.approx(6), pytest.approx((1.032, 10.968), abs=1e-3))
    assert [(run.seed, pytest.approx(points)) for run, points in cmb.gains] == [(0, 4), (1, 6), (2, 8)]
    assert (cmb.supported, variant.supported, supervised.supported) == (True, None, None)
    assert variant.runs == (Run("cmb-no_attention", "small-1_8", 0),)
    assert variant.method == "cmb"
    assert (eighth.dataset, eighth.share, eighth.labelled) == ("shapes", "1/8", 20)
    assert [(entry.recipe, entry.gain) for entry in full.entries] == [("dcc", None)]


def test_published_figures_stand_in_the_ranking(params: Params, finish: Finish, logged: Path) -> None:
    finish("supervised", "small-1_8", 0, 0.4)
    ((entry,),) = [ranking.entries for ranking in rankings(params)]
    assert entry.published is None
    assert (entry.published_best, entry.published_last) == (pytest.approx(65), pytest.approx(61.5))


def test_the_axis_holds_every_gain_but_not_an_interval_far_wider(params: Params, finish: Finish) -> None:
    for seed, (supervised, cmb) in enumerate([(0.40, 0.41), (0.40, 0.469)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb)
    axis = compare.axis(rankings(params))  # gains +1 and +6.9, interval 4 ± 37
    assert (axis.low, axis.high, axis.step) == (-8, 14, 2)  # a span of 6.9 is added to either side
    assert axis.ticks == [-8, -6, -4, -2, 0, 2, 4, 6, 8, 10, 12, 14]
    assert [axis.place(value) for value in (-8, 3, 14, 42, -34)] == [0, 50, 100, 100, 0]


def test_without_a_run_the_axis_is_there_all_the_same(params: Params) -> None:
    assert rankings(params) == []
    axis = compare.axis([])
    assert axis.low < 0 < axis.high
