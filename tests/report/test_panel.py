"""The panel of images, truth and predictions, from files."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.data.prepared import Layout, write_manifest
from semiseg.evaluation.record import Record
from semiseg.report.collect import collect
from semiseg.report.figures import kinds, panel
from tests.report.conftest import DATA

Finish = Callable[..., Record]
IDS = ("one", "two", "three")


def prepare(params: Params) -> None:
    """Write three test images of 40x30: left a disc, right background, between them an unscored border."""
    folder = paths.dataset("shapes")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    truth = np.zeros((30, 40), np.uint8)
    truth[:, :20] = 1
    truth[:, 18:22] = 255
    for name in IDS:
        Image.new("RGB", (40, 30), (10, 120, 200)).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(truth).save(folder / "masks" / f"{name}.png")
    (folder / "test.txt").write_text("".join(f"{name}\n" for name in IDS))
    write_manifest(folder, params.datasets["shapes"], Layout(), ("test",), {})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": DATA}))


def predict(recipe: str, split: str, seed: int, label: int) -> None:
    """Write predictions of ``label`` everywhere, for the first two images only."""
    folder = Run(recipe, split, seed).artefacts / "predictions"
    folder.mkdir(parents=True)
    for name in IDS[:2]:
        Image.fromarray(np.full((30, 40), label, np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def two_recipes(params: Params, finish: Finish) -> Params:
    prepare(params)
    finish("supervised", "small-full", 0, 0.5)
    for recipe, label in (("supervised", 1), ("cmb", 2)):
        finish(recipe, "small-1_8", 0, 0.5)
        predict(recipe, "small-1_8", 0, label)
    return params


def test_rows_are_images_and_columns_are_truth_and_recipes(two_recipes: Params) -> None:
    content = panel.find_typical(collect(two_recipes, "main"))
    assert content is not None
    assert panel.lacking(collect(two_recipes, "main")) == ""
    assert [row.image.stem for row in content.rows] == ["one", "two"]
    figure = panel.draw(content)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "truth", "supervised", "cmb"]
    assert len(figure.axes) == 8
    pictures = [axes.images[0].get_array() for axes in figure.axes[:4]]
    colours = panel.class_colours(3, background=0)
    assert np.abs(np.asarray(pictures[0][15, 20]) - (10, 120, 200)).max() < 8
    assert (pictures[1][5, 2] == colours[1]).all()
    assert (pictures[1][5, 20] == 255).all()
    assert (pictures[2] == colours[1]).all()
    assert (pictures[3] == colours[2]).all()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["background", "disc", "square", "not scored"]


def test_panel_is_among_the_figures_and_stays_without_the_files(two_recipes: Params) -> None:
    path = Path("results/figures/main/panel.png")
    assert path in kinds.write(collect(two_recipes, "main"))
    before = path.read_bytes()
    for each in (Run("cmb", "small-1_8", 0).artefacts / "predictions").iterdir():
        each.unlink()
    (Run("cmb", "small-1_8", 0).artefacts / "predictions").rmdir()
    assert path not in kinds.write(collect(two_recipes, "main"))
    assert path.read_bytes() == before
    (paths.dataset("shapes") / "manifest.json").unlink()
    assert panel.find_typical(collect(two_recipes, "main")) is None


def test_images_and_masks_are_shown_as_training_sees_them(two_recipes: Params) -> None:
    folder = paths.dataset("shapes")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    left_red = Image.new("RGB", (30, 40))
    left_red.paste((255, 0, 0), (0, 0, 30, 20))
    left_red.save(folder / "images" / "one.jpg", exif=exif, quality=95)
    two_bits = Image.new("P", (40, 30), 2)
    two_bits.putpalette([0, 0, 0, 9, 9, 9, 255, 255, 255, 1, 1, 1])
    two_bits.convert("L").point(lambda value: 2).save(folder / "masks" / "one.png", bits=2)
    assert (folder / "masks" / "one.png").read_bytes()[24] == 2
    content = panel.find_typical(collect(two_recipes, "main"))
    assert content is not None
    figure = panel.draw(content)
    image, truth = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert image.shape == truth.shape == (30, 40, 3)
    assert image[15, 30, 0] > 200
    assert (image[15, 5] < 60).all()
    assert (truth == panel.class_colours(3, background=0)[2]).all()


def test_a_broken_prediction_is_named(two_recipes: Params) -> None:
    broken = Run("cmb", "small-1_8", 0).artefacts / "predictions" / "two.png"
    broken.write_bytes(broken.read_bytes()[:60])
    content = panel.find_typical(collect(two_recipes, "main"))
    assert content is not None
    with pytest.raises(UserError, match=rf"^{broken}: "):
        panel.draw(content)


def test_no_predictions_no_panel(params: Params, finish: Finish) -> None:
    prepare(params)
    finish("supervised", "small-1_8", 0, 0.5)
    assert panel.find_typical(collect(params, "main")) is None


def score(recipe: str, seed: int, **mious: float) -> None:
    folder = Run(recipe, "small-1_8", seed).artefacts
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name},{miou}\n" for name, miou in mious.items()]
    (folder / "images.csv").write_text("id,miou\n" + "".join(rows))


def test_extremes_are_the_largest_gain_then_the_largest_loss() -> None:
    gains = pd.Series({"a": 0.1, "b": -0.3, "c": 0.4, "d": 0.0, "e": 0.4, "f": -0.1, "g": -0.3, "h": 0.2})
    assert panel.largest(gains) == [("c", 0.4), ("b", -0.3)]
    assert panel.largest(gains[["d"]]) == []
    assert panel.largest(gains[["a", "d"]]) == [("a", 0.1)]


def test_extremes_stand_beside_the_baseline_of_the_first_seed_that_both_have(
    two_recipes: Params, finish: Finish
) -> None:
    for seed in (1, 2):
        finish("dcc", "small-1_8", seed, 0.5)
    finish("supervised", "small-1_8", 1, 0.5)
    score("supervised", 0, one=0.50, two=0.50, three=0.50)
    score("cmb", 0, one=0.25, two=0.75, three=0.99)  # of three there is no prediction
    score("supervised", 1, one=0.50, two=0.50)
    results = collect(two_recipes, "main")
    assert panel.lacking_scores(results) == "the scores of each image of 1 of 3 runs are not on this machine"
    score("dcc", 1, one=0.60, two=math.nan)  # all of two is a border
    for recipe in ("supervised", "dcc"):
        predict(recipe, "small-1_8", 1, 2)
    content = panel.find_extremes(results)
    assert content is not None
    assert panel.lacking_scores(results) == ""
    shown = [(row.label, row.image.stem, *map(str, row.predictions)) for row in content.rows]
    folder = "runs/{}/small-1_8/{}/predictions/{}.png"
    assert shown == [
        ("cmb +25.0", "two", *(folder.format(each, 0, "two") for each in ("supervised", "cmb"))),
        ("cmb -25.0", "one", *(folder.format(each, 0, "one") for each in ("supervised", "cmb"))),
        ("dcc +10.0", "one", *(folder.format(each, 1, "one") for each in ("supervised", "dcc"))),
    ]
    figure = panel.draw(content)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "truth", "supervised", "method"]
    assert [axes.texts[0].get_text() for axes in figure.axes[::4]] == ["cmb +25.0", "cmb -25.0", "dcc +10.0"]
    names = {path.stem for path in kinds.write(results)}
    assert {"panel", "extremes"} <= names


def test_typical_images_are_spread_over_the_list(
    two_recipes: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel, "TYPICAL", 1)
    content = panel.find_typical(collect(two_recipes, "main"))
    assert content is not None
    assert [row.image.stem for row in content.rows] == ["one"]


@pytest.mark.parametrize(("classes", "background"), [(2, None), (7, 0), (11, None), (19, None), (21, 0)])
def test_every_class_of_every_dataset_has_a_colour_of_its_own(classes: int, background: int | None) -> None:
    colours = panel.class_colours(classes, background)
    assert len(np.unique(colours[:classes], axis=0)) == classes
    assert (colours[classes:] == 255).all()
    assert not (colours[:classes] == 255).all(axis=1).any()
