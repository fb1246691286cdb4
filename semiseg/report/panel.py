"""A panel of evaluation images: the image, its truth and what each recipe predicts."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from PIL import Image

from semiseg import paths
from semiseg.data import prepared
from semiseg.data.decoding import IGNORE
from semiseg.report.collect import Results, share
from semiseg.report.style import BACKGROUND, CLASS_COLOURS, WIDTH

PIXELS = 480  # the widest that an image is drawn


@dataclass(frozen=True)
class Content:
    """What the panel shows, all of it on this machine."""

    title: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    predictions: dict[str, tuple[Path, ...]]  # by recipe
    classes: tuple[str, ...]
    background: int | None
    complete: bool  # every recipe that has a record on this split is shown


def find(results: Results) -> Content | None:
    """The split that most recipes have run, each with its first seed; None where the files are not here."""
    split = max(results.grid.splits, key=lambda each: len(_runs(results, each)))  # the first of the largest
    name, declared = results.params.splits[split].dataset, results.dataset(split)
    if not prepared.is_prepared(name, declared):
        return None
    dataset = prepared.open_dataset(name, declared)
    runs = _runs(results, split)
    here = {recipe: run for recipe, run in runs.items() if _folder(run).is_dir()}
    ids = tuple(
        each
        for each in dataset.ids(declared.evaluate)
        if here and all((_folder(run) / f"{each}.png").exists() for run in here.values())
    )
    if not ids:
        return None
    return Content(
        title=f"{name}, {share(results.params.splits[split].ratio)} labelled",
        images=tuple(map(dataset.image_path, ids)),
        masks=tuple(map(dataset.mask_path, ids)),
        predictions={
            recipe: tuple(_folder(run) / f"{each}.png" for each in ids) for recipe, run in here.items()
        },
        classes=declared.classes,
        background=declared.background,
        complete=len(here) == len(runs),
    )


def _runs(results: Results, split: str) -> dict[str, paths.Run]:
    """The first finished seed of each recipe on ``split``."""
    return {
        recipe: paths.Run(recipe, split, done[0].seed)
        for recipe in results.recipes
        if (done := results.runs(recipe, split))
    }


def _folder(run: paths.Run) -> Path:
    """Predictions of the first images of the evaluation list: <id>.png, greyscale, class ids."""
    return run.artefacts / "predictions"


def draw(content: Content) -> Figure:
    """Rows images; columns image, truth, recipes; below them the colours of the classes."""
    columns = ["image", "truth", *content.predictions]
    width = max(WIDTH, 1.4 * len(columns))
    first = Image.open(content.images[0])
    cell = width / len(columns)
    legend_rows = -(-(len(content.classes) + 1) // _legend_columns(width))
    figure = Figure(
        figsize=(width, len(content.images) * cell * first.height / first.width + 0.5 + 0.19 * legend_rows),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    grid = figure.subplots(len(content.images), len(columns), squeeze=False)
    colours = class_colours(len(content.classes), content.background)
    seen: set[int] = set()
    for row, axes_row in enumerate(grid):
        truth = _labels(content.masks[row])
        labels = [truth, *(_labels(files[row]) for files in content.predictions.values())]
        seen.update(*(np.unique(each).tolist() for each in labels))
        pictures = [_photograph(content.images[row]), *(colours[each] for each in labels)]
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(picture, interpolation="antialiased")
            axes.set_axis_off()
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, loc="center", fontsize=8.5, fontweight="normal")
    names = {**dict(enumerate(content.classes)), IGNORE: "not scored"}
    patches = [
        Patch(facecolor=colours[label] / 255, edgecolor="#777777", linewidth=0.5, label=names[label])
        for label in sorted(seen)
    ]
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=_legend_columns(width),
        fontsize=8,
        handlelength=1.2,
    )
    figure.suptitle(content.title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _legend_columns(width: float) -> int:
    return int(width / 1.15)


def _size(image: Image.Image) -> tuple[int, int]:
    factor = min(1.0, PIXELS / image.width)
    return round(image.width * factor), round(image.height * factor)


def _photograph(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize(_size(image), Image.Resampling.LANCZOS))


def _labels(path: Path) -> np.ndarray:
    """(H, W) uint8: class ids and IGNORE."""
    image = Image.open(path)
    return np.asarray(image.resize(_size(image), Image.Resampling.NEAREST))


def class_colours(classes: int, background: int | None) -> np.ndarray:
    """(256, 3) uint8: a colour for each label, IGNORE white."""
    colours = np.full((256, 3), 255, np.uint8)
    places = itertools.cycle(CLASS_COLOURS)
    for label in range(classes):
        name = BACKGROUND if label == background else next(places)
        colours[label] = np.round(255 * np.array(to_rgb(name)))
    return colours
