"""Bars of an ablation: paired differences to the full method."""

from collections.abc import Callable

import pytest

from semiseg.base.parameters import Params
from semiseg.evaluation.record import Record
from semiseg.report.collect import collect
from semiseg.report.figures import ablation

Finish = Callable[..., Record]


def test_bars_are_paired_differences_to_the_method(params: Params, finish: Finish) -> None:
    for seed, miou in enumerate((0.50, 0.60)):
        finish("cmb", "small-1_8", seed, miou)
    finish("supervised", "small-1_8", 1, 0.40)
    finish("cmb-no_attention", "small-1_8", 0, 0.49)
    finish("cmb-no_attention", "small-1_8", 1, 0.57)
    figure = ablation.draw(collect(params, "ablation"))
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["supervised", "cmb-no_attention"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([-20, -2])
    assert [text.get_text() for text in axes.texts] == ["-20.0 (1)", "-2.0 (2)"]
    (error,) = axes.containers[1:]  # of the two seeds alone: none for one
    (low, high) = error.lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((-2 - 2**0.5, -2 + 2**0.5))
    assert axes.get_title() == "shapes, 1/8 labelled (20 images): difference to cmb (55.0)"


def test_without_a_variant_or_its_method_there_is_nothing_to_draw(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb", "small-1_8", 0, 0.50)
    finish("dcc", "small-1_8", 0, 0.50)
    assert ablation.draw(collect(params, "main")) is None
    finish("cmb-no_attention", "small-1_8", 1, 0.50)
    assert ablation.draw(collect(params, "ablation")) is None  # no seed that both have
