"""Figures over steps, from histories."""

from collections.abc import Callable

import pytest

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report.collect import collect
from semiseg.report.figures import training

Finish = Callable[..., Record]
CMB = (
    "step,supervised,contrast,memory,attention_prediction,attention_memory,val_miou_student\n"
    "10,2.0,0.0,0.25,0.0,0.0,\n20,1.0,0.5,0.75,0.125,0.25,0.5\n30,0.5,0.4,1.0,0.25,0.5,\n"
)
DCC = (
    "step,supervised,consistency,selected,val_miou_student,val_true_negatives_student\n"
    "10,2.0,0.0,0.0,,\n20,1.0,0.5,0.25,0.5,0.875\n30,0.5,0.4,0.5,,\n"
)


def keep(finish: Finish, recipe: str, seed: int, text: str) -> None:
    finish(recipe, "small-1_8", seed, 0.5)
    Run(recipe, "small-1_8", seed).history.write_text(text)


def drawn(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_cmbs_memory_fills_and_its_attention_shows_from_the_contrast_on(
    params: Params, finish: Finish
) -> None:
    keep(finish, "cmb", 0, CMB)
    keep(finish, "dcc", 0, DCC)
    figure = training.cmb(collect(params, "main"))
    assert figure is not None
    memory, attention = figure.axes
    assert drawn(memory) == [([10, 20, 30], [25, 75, 100])]
    assert drawn(attention) == [([20, 30], [0.125, 0.25]), ([20, 30], [0.25, 0.5])]
    assert [line.get_linestyle() for line in attention.lines] == ["-", ":"]
    assert [text.get_text() for text in attention.get_legend().get_texts()] == ["predictions", "memory"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cmb"]


def test_dccs_positives_and_negatives_are_those_of_the_scored_network(params: Params, finish: Finish) -> None:
    keep(finish, "cmb", 0, CMB)
    keep(finish, "dcc", 0, DCC)
    keep(finish, "dcc", 1, DCC.replace("0.875", "0.75"))
    figure = training.dcc(collect(params, "main"))
    assert figure is not None
    selected, negatives = figure.axes
    assert drawn(selected) == [([20, 30], [25, 50])] * 2
    assert drawn(negatives) == [([20], [87.5]), ([20], [75])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dcc"]


def test_what_no_history_says_is_left_out(params: Params, finish: Finish) -> None:
    keep(finish, "cmb", 0, "step,supervised,contrast,memory\n10,2.0,0.0,0.25\n")
    figure = training.cmb(collect(params, "main"))
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["memory filled (%)"]
    assert training.dcc(collect(params, "main")) is None
    finish("supervised", "small-1_8", 0, 0.5)
    assert training.lacking(collect(params, "main")) == "1 of 2 records have no history.csv beside them"


@pytest.mark.parametrize("draw", [training.curves, training.cmb, training.dcc])
def test_without_histories_there_is_nothing_to_draw(params: Params, finish: Finish, draw) -> None:
    finish("cmb", "small-1_8", 0, 0.5)
    assert draw(collect(params, "main")) is None
