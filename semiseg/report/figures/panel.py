"""Draw panels of evaluation images: the image, its truth and predictions."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from PIL import Image

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE
from semiseg.data import prepared
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.report.collect import BASELINE, Results
from semiseg.report.figures import sheet
from semiseg.report.figures.style import BACKGROUND, CLASS_COLOURS, WIDTH

PIXELS = 480  # the widest that an image is drawn
TYPICAL = 4  # images


@dataclass(frozen=True)
class Row:
    """An evaluation image and predictions of it, all on this machine."""

    image: Path
    mask: Path
    predictions: tuple[Path, ...]
    label: str = ""


@dataclass(frozen=True)
class Content:
    """The rows and recipes of a panel."""

    title: str
    columns: tuple[str, ...]  # names of the predictions
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    background: int | None


def typical(results: Results) -> Figure | None:
    """Draw images spread over the evaluation list; return None if the files are not here."""
    content = find_typical(results)
    return None if content is None else draw(content)


def extremes(results: Results) -> Figure | None:
    """Draw the largest gains and losses over the baseline; return None if the files are not here."""
    content = find_extremes(results)
    return None if content is None else draw(content)


def find_typical(results: Results) -> Content | None:
    """Find the images on the split that most recipes have run, each recipe with its first seed."""
    dataset = _dataset(results)
    runs = {recipe: run for recipe, run in _runs(results).items() if _folder(run).is_dir()}
    if dataset is None or not runs:
        return None
    evaluated = dataset.ids(results.dataset(sheet.fullest_split(results)).evaluate)
    ids = [each for each in evaluated if all(_prediction(run, each).exists() for run in runs.values())]
    chosen = [ids[place * len(ids) // TYPICAL] for place in range(TYPICAL)] if len(ids) > TYPICAL else ids
    rows = [_row(dataset, each, *runs.values()) for each in chosen]
    return _content(results, tuple(runs), rows)


def find_extremes(results: Results) -> Content | None:
    """Find them on the split that most recipes ran, for each method's first seed with a baseline."""
    split, dataset = sheet.fullest_split(results), _dataset(results)
    if dataset is None:
        return None
    rows = []
    for method in sheet.methods_run(results, split):
        for own, baseline in results.pairs(method, BASELINE, split)[:1] if method != BASELINE else []:
            run, other = paths.Run(method, split, own.seed), paths.Run(BASELINE, split, baseline.seed)
            rows += [
                _row(dataset, each, other, run, label=f"{method} {100 * gain:+.1f}")
                for each, gain in largest(_gains(run, other))
            ]
    return _content(results, (BASELINE, "method"), rows)


def largest(gains: "pd.Series[float]") -> list[tuple[str, float]]:
    """Return the id with the largest gain, if any gains, then that with the largest loss; ties: the first."""
    extremes = (gains[gains > 0].nlargest(1), gains[gains < 0].nsmallest(1))
    return [(str(each), float(gain)) for one in extremes for each, gain in one.items()]


def _gains(run: paths.Run, other: paths.Run) -> "pd.Series[float]":
    """Return what each image with predictions of both gains: mIoU of ``run`` minus that of ``other``."""
    if not (_scores(run).exists() and _scores(other).exists()):
        return pd.Series(dtype=float)
    own, others = _mious(_scores(run)), _mious(_scores(other))
    gains = (own - others).reindex(own.index).dropna()
    return gains[[all(_prediction(of, each).exists() for of in (run, other)) for each in gains.index]]


def _mious(path: Path) -> "pd.Series[float]":
    try:
        return pd.read_csv(path, dtype={"id": str, "miou": float}).set_index("id")["miou"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); evaluate the run again") from error


def lacking(results: Results) -> str:
    """Say what the panel of typical images lacks; "" if nothing."""
    if _dataset(results) is None:
        return "its images are not on this machine"
    absent = sum(not _folder(run).is_dir() for run in _runs(results).values())
    return (
        f"the predictions of {absent} of {len(_runs(results))} runs are not on this machine" if absent else ""
    )


def lacking_scores(results: Results) -> str:
    """Say what the panel of extremes lacks; "" if nothing, or if there is nothing to compare."""
    split = sheet.fullest_split(results)
    methods = [each for each in sheet.methods_run(results, split) if results.pairs(each, BASELINE, split)]
    if methods in ([], [BASELINE]):
        return ""
    if _dataset(results) is None:
        return "its images are not on this machine"
    runs = [paths.Run(each, split, results.pairs(each, BASELINE, split)[0][0].seed) for each in methods]
    absent = sum(not _scores(run).exists() for run in runs)
    return (
        f"the scores of each image of {absent} of {len(runs)} runs are not on this machine" if absent else ""
    )


def _dataset(results: Results) -> prepared.PreparedDataset | None:
    """Return the dataset of the split that most recipes have run, if it is prepared."""
    split = sheet.fullest_split(results)
    name, declared = results.params.splits[split].dataset, results.dataset(split)
    return prepared.open_dataset(name, declared) if prepared.is_prepared(name, declared) else None


def _runs(results: Results) -> dict[str, paths.Run]:
    """Return the first finished seed of each recipe."""
    split = sheet.fullest_split(results)
    return {
        recipe: paths.Run(recipe, split, done[0].seed)
        for recipe in results.recipes
        if (done := results.runs(recipe, split))
    }


def _folder(run: paths.Run) -> Path:
    """Return the folder of the predictions, palette masks <id>.png."""
    return run.artefacts / "predictions"


def _prediction(run: paths.Run, identifier: str) -> Path:
    return _folder(run) / f"{identifier}.png"


def _scores(run: paths.Run) -> Path:
    """Return the file of each image's mIoU, with the columns id and miou."""
    return run.artefacts / "images.csv"


def _row(dataset: prepared.PreparedDataset, identifier: str, *runs: paths.Run, label: str = "") -> Row:
    predictions = tuple(_prediction(run, identifier) for run in runs)
    return Row(dataset.image_path(identifier), dataset.mask_path(identifier), predictions, label)


def _content(results: Results, columns: tuple[str, ...], rows: list[Row]) -> Content | None:
    if not rows:
        return None
    split = sheet.fullest_split(results)
    declared = results.dataset(split)
    return Content(sheet.title(results, split), columns, tuple(rows), declared.classes, declared.background)


def draw(content: Content) -> Figure:
    """Draw a row for each image with its truth and predictions, and below them the classes' colours."""
    columns = ["image", "truth", *content.columns]
    width = max(WIDTH, 1.4 * len(columns))
    photographs = [_photograph(row.image) for row in content.rows]
    shape = photographs[0].shape
    cell = width / len(columns)
    legend_rows = -(-(len(content.classes) + 1) // _legend_columns(width))
    figure = Figure(
        figsize=(width, len(content.rows) * cell * shape[0] / shape[1] + 0.5 + 0.19 * legend_rows),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    grid = figure.subplots(len(content.rows), len(columns), squeeze=False)
    classes = len(content.classes)
    colours = class_colours(classes, content.background)
    seen: set[int] = set()
    for row, photograph, axes_row in zip(content.rows, photographs, grid, strict=True):
        labels = [_labels(each, classes) for each in (row.mask, *row.predictions)]
        seen.update(*(np.unique(each).tolist() for each in labels))
        pictures = [photograph, *(colours[each] for each in labels)]
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(picture, interpolation="antialiased")
            axes.set_axis_off()
        if row.label:
            axes_row[0].text(
                -0.03, 0.5, row.label, transform=axes_row[0].transAxes, rotation=90, ha="right", va="center",
                fontsize=8.5,
            )  # fmt: skip
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


def _photograph(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, at most PIXELS wide."""
    try:
        return _narrowed(decode_image(path), Image.Resampling.LANCZOS)
    except UserError as error:
        raise prepared.with_remedy(error, path) from None


def _labels(path: Path, classes: int) -> np.ndarray:
    """Read a mask or a prediction as (H, W) uint8 of class ids and IGNORE, at most PIXELS wide."""
    try:
        return _narrowed(decode_mask(path, None, classes), Image.Resampling.NEAREST)
    except UserError as error:
        if path.is_relative_to(paths.DATA):
            raise prepared.with_remedy(error, path) from None
        raise UserError(f"{error}; remove it, or evaluate its run again") from None


def _narrowed(pixels: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    height, width = pixels.shape[:2]
    factor = min(1.0, PIXELS / width)
    size = round(width * factor), max(1, round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, resampling))


def class_colours(classes: int, background: int | None) -> np.ndarray:
    """Return (256, 3) uint8: a colour for each label; IGNORE is white."""
    colours = np.full((256, 3), 255, np.uint8)
    places = itertools.cycle(CLASS_COLOURS)
    for label in range(classes):
        name = BACKGROUND if label == background else next(places)
        colours[label] = np.round(255 * np.array(to_rgb(name)))
    return colours
