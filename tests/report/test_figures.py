"""Figures draw what the records say, and their files are the same each time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from semiseg.base import parameters
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report.collect import collect, survey
from semiseg.report.figures import kinds, style, training
from semiseg.report.figures.style import COLOURS, NARROWEST, look
from tests.report.conftest import fabricate

Finish = Callable[..., Record]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_splits(params: Params, finish: Finish) -> Params:
    for seed in (0, 1):
        finish("supervised", "small-1_8", seed, 0.40 + 0.1 * seed)
        finish("cmb", "small-1_8", seed, 0.50 + 0.1 * seed, headline="teacher")
        finish("supervised", "small-full", seed, 0.60)
    return params


def keep_history(recipe: str, split: str, seed: int, column: str = "val_miou_student") -> None:
    Run(recipe, split, seed).history.write_text(
        f"step,learning_rate,supervised,images_per_second,{column}\n"
        "50,0.05,2.0,10,\n100,0.04,1.0,10,0.25\n150,0.03,0.5,10,\n200,0.0,0.4,10,0.5\n"
    )


def ink(path: Path) -> float:
    """Return the share of pixels that are not white."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return float((pixels < 250).mean())


def test_each_figure_is_a_picture_and_a_page_for_print(two_splits: Params) -> None:
    for run in collect(two_splits, "main").records:
        column = "val_miou_teacher" if run.recipe == "cmb" else "val_miou_student"
        keep_history(run.recipe, run.split, run.seed, column)
    written = kinds.write(collect(two_splits, "main"))
    folder = Path("results/figures/main")
    names = ("miou", "classes", "gains", "confusion", "curves")
    assert written == [folder / f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 1000
            assert 0.01 < ink(path) < 0.5
        else:
            assert path.read_bytes().startswith(b"%PDF")
            assert b"CreationDate" not in path.read_bytes()
    before = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in kinds.write(collect(two_splits, "main"))} == before


def test_curve_runs_through_the_means(two_splits: Params) -> None:
    (axes,) = kinds.miou(collect(two_splits, "main")).axes
    drawn = {container.lines[0].get_color(): container.lines[0] for container in axes.containers}
    supervised = drawn[look(collect(two_splits, "main"), "supervised")["color"]]
    assert supervised.get_ydata() == pytest.approx([45, 60])
    assert supervised.get_xdata() == pytest.approx([1 / 8, 1], rel=0.05)
    assert drawn[look(collect(two_splits, "main"), "cmb")["color"]].get_ydata() == pytest.approx([55])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1/8\n(20)", "full\n(160)"]


def test_one_split_is_a_row_for_each_recipe(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb-no_attention", "small-1_8", 0, 0.44)
    finish("cmb-no_attention", "small-1_8", 1, 0.46)
    (axes,) = kinds.miou(collect(params, "ablation")).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["supervised", "cmb-no_attention"]
    assert [text.get_text() for text in axes.texts] == ["40.0", "45.0"]
    low, high = axes.get_xlim()
    assert high - low >= NARROWEST


def test_splits_of_one_dataset_have_one_scale_and_say_what_they_start_from(starts: Params) -> None:
    for place, split in enumerate(("small-1_8", "small_plain-1_8", "small_more-1_8")):
        run = Run("supervised", split, 0)
        record.write(fabricate(starts, run, 0.3 + 0.1 * place), run.metrics)
    plots = kinds.miou(collect(starts, "main")).axes
    assert [axes.get_title() for axes in plots] == [
        f"shapes, 1/8 labelled (20 images), from {start}"
        for start in ("random weights", "simclr after random weights", "moco after imagenet")
    ]
    ((low, high),) = {axes.get_xlim() for axes in plots}
    assert 20 < low < 30
    assert 50 < high < 60


def test_class_figure_takes_the_mean_and_leaves_out_absent_classes(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.2, iou=(0.2, None, 0.2))
    finish("supervised", "small-1_8", 1, 0.4, iou=(0.4, 0.4, None))
    (axes,) = kinds.classes(collect(params, "main")).axes
    (points,) = axes.lines
    assert points.get_xdata() == pytest.approx([30, 40, 20])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["background", "disc", "square"]


def test_training_curves_show_the_validations_of_the_scored_network(two_splits: Params) -> None:
    keep_history("supervised", "small-1_8", 0)
    (left, right) = training.curves(collect(two_splits, "main")).axes[:2]
    assert left.lines[0].get_ydata() == pytest.approx([2, 1, 0.5, 0.4])
    assert right.lines[0].get_xdata() == pytest.approx([100, 200])
    assert right.lines[0].get_ydata() == pytest.approx([25, 50])


def test_curves_say_which_histories_are_not_here(two_splits: Params) -> None:
    runs = list(collect(two_splits, "main").records)
    kinds.write(collect(two_splits, "main"))
    assert not Path("results/figures/main/curves.png").exists()
    said = [line for line in kinds.lacking(collect(two_splits, "main")) if "`curves`" in line]
    assert said == ["Not drawn: `curves`, `cmb`, `dcc` (6 of 6 records have no history.csv beside them)."]
    for run in runs[1:]:
        keep_history(run.recipe, run.split, run.seed)
    kinds.write(collect(two_splits, "main"))
    said = [line for line in kinds.lacking(collect(two_splits, "main")) if "`curves`" in line]
    assert said == ["Without some runs: `curves` (1 of 6 records have no history.csv beside them)."]
    keep_history(runs[0].recipe, runs[0].split, runs[0].seed)
    assert not [line for line in kinds.lacking(collect(two_splits, "main")) if "`curves`" in line]


def test_nothing_run_draws_nothing(params: Params) -> None:
    assert kinds.write(collect(params, "main")) == []


def test_a_method_looks_the_same_in_every_grid_and_no_two_rows_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    params = parameters.load()
    methods: dict[str, set[str]] = {}
    for name in params.grids:
        results, _ = survey(params, name)
        looks = [look(results, recipe) for recipe in results.recipes]
        assert len({tuple(each.values()) for each in looks}) == len(looks)
        assert len({each["color"] for each in looks}) == min(len(looks), len(COLOURS))
        for recipe, each in zip(results.recipes, looks, strict=True):
            if recipe == params.recipes[recipe].method:
                methods.setdefault(recipe, set()).add(each["color"])
    assert all(len(colours) == 1 for colours in methods.values())


def test_published_points_stand_hollow_beside_the_curve(
    params: Params, finish: Finish, printed: Path
) -> None:
    for split in ("small-1_8", "small-full"):
        finish("supervised", split, 0, 0.60)
        finish("cmb", split, 0, 0.70)
    figure = kinds.miou(collect(params, "main"))
    (axes,) = figure.axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    (point,) = hollow  # supervised on 1/8; dcc has a figure there too, but no run
    assert point.get_ydata() == pytest.approx([61.5])
    assert point.get_color() == look(collect(params, "main"), "supervised")["color"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["supervised", "cmb", "published"]


def test_gain_of_a_class_is_paired_by_seed(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("supervised", "small-1_8", 2, 0.90)  # a seed that cmb does not have
    finish("cmb", "small-1_8", 0, 0.44, iou=(0.34, 0.49, None))
    finish("cmb", "small-1_8", 1, 0.70)
    (axes,) = kinds.gains(collect(params, "main")).axes
    (line,) = [line for line in axes.lines if line.get_marker() not in ("", "None")]
    assert line.get_xdata() == pytest.approx([4, 9])  # background 34 - 30, disc 49 - 40; square has none
    assert line.get_ydata() == pytest.approx([0, 1])


def test_without_a_pair_there_are_no_gains_to_draw(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish("cmb", "small-1_8", 1, 0.44)
    assert not any(path.stem == "gains" for path in kinds.write(collect(params, "main")))


def test_a_file_too_large_to_commit_is_drawn_again_with_fewer_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Figure(figsize=(4, 4))
    noise = np.random.default_rng(0).random((640, 640))
    figure.add_axes((0, 0, 1, 1)).imshow(noise, interpolation="nearest")
    (whole, *_) = style.save(figure, tmp_path / "whole")
    monkeypatch.setattr(style, "LARGEST", whole.stat().st_size // 2)
    for path in style.save(figure, tmp_path / "small"):
        assert 0 < path.stat().st_size <= style.LARGEST
    with Image.open(tmp_path / "small.png") as image:
        assert image.width < 640
