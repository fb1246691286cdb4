"""The panel of images, truth and predictions, from files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg import paths
from semiseg.config import Params
from semiseg.data.prepared import Layout, write_manifest
from semiseg.paths import Run
from semiseg.record import Record
from semiseg.report import figures, panel
from semiseg.report.collect import collect

Finish = Callable[..., Record]
IDS = ("one", "two", "three")


def prepare(params: Params) -> None:
    """Three test images of 40x30: left a disc, right background, between them a border that is not scored."""
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


def predict(recipe: str, split: str, seed: int, label: int) -> None:
    """Everything is ``label``; only the first two images are kept."""
    folder = Run(recipe, split, seed).artefacts / "predictions"
    folder.mkdir(parents=True)
    for name in IDS[:2]:
        Image.fromarray(np.full((30, 40), label, np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def two_recipes(params: Params, finish: Finish) -> Params:
    prepare(params)
    finish("supervised", "shapes-full", 0, 0.5)
    for recipe, label in (("supervised", 1), ("cmb", 2)):
        finish(recipe, "shapes-1_8", 0, 0.5)
        predict(recipe, "shapes-1_8", 0, label)
    return params


def test_rows_are_images_and_columns_are_truth_and_recipes(two_recipes: Params) -> None:
    content = panel.find(collect(two_recipes, "main"))
    assert content is not None
    assert content.complete
    assert [path.stem for path in content.images] == ["one", "two"]
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
    assert path in figures.write(collect(two_recipes, "main"))
    before = path.read_bytes()
    for each in (Run("cmb", "shapes-1_8", 0).artefacts / "predictions").iterdir():
        each.unlink()
    (Run("cmb", "shapes-1_8", 0).artefacts / "predictions").rmdir()
    assert path not in figures.write(collect(two_recipes, "main"))
    assert path.read_bytes() == before
    (paths.dataset("shapes") / "manifest.json").unlink()
    assert panel.find(collect(two_recipes, "main")) is None


def test_no_predictions_no_panel(params: Params, finish: Finish) -> None:
    prepare(params)
    finish("supervised", "shapes-1_8", 0, 0.5)
    assert panel.find(collect(params, "main")) is None


@pytest.mark.parametrize(("classes", "background"), [(2, None), (7, 0), (11, None), (19, None), (21, 0)])
def test_every_class_of_every_dataset_has_a_colour_of_its_own(classes: int, background: int | None) -> None:
    colours = panel.class_colours(classes, background)
    assert len(np.unique(colours[:classes], axis=0)) == classes
    assert (colours[classes:] == 255).all()
    assert not (colours[:classes] == 255).all(axis=1).any()
