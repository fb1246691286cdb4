"""Row-normalised confusion matrices of a grid's methods."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semiseg.evaluation.record import Record
from semiseg.report.collect import Results
from semiseg.report.figures import sheet
from semiseg.report.figures.style import WIDTH

SEQUENTIAL = "Blues"  # its lightness falls steadily: the same in grey
NUMBERED = 12  # classes: with more, a number does not fit its cell


def draw(results: Results) -> Figure | None:
    """Draw a matrix for each method, on the split that most recipes have run; None without a method."""
    split = sheet.fullest_split(results)
    means = {recipe: shares(results.runs(recipe, split)) for recipe in sheet.methods_run(results, split)}
    if not means:
        return None
    classes = results.dataset(split).classes
    columns = 2 if len(means) > 1 else 1
    rows = math.ceil(len(means) / columns)
    figure = sheet.blank(rows * (WIDTH / 2 - 0.2) + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(means) :]:
        figure.delaxes(axes)
    for axes, (recipe, mean) in zip(grid.flat, means.items(), strict=False):
        picture = axes.imshow(100 * mean, cmap=SEQUENTIAL, vmin=0, vmax=100)
        seeds = len(results.runs(recipe, split))
        axes.set_title(f"{recipe} ({seeds} {'seed' if seeds == 1 else 'seeds'})", fontsize=9)
        _label(axes, classes, mean)
    for axes in grid[:, 0]:
        axes.set_ylabel("truth")
    figure.colorbar(picture, ax=grid, label="share of the truth's pixels (%)", shrink=0.5, aspect=30)
    figure.suptitle(sheet.title(results, split), x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def shares(records: list[Record]) -> np.ndarray:
    """Return (C, C) in [0, 1]: the share of a true class's pixels predicted as each class, a mean over seeds.

    The row of a class that no pixel belongs to is NaN.
    """
    counts = [np.asarray(record.confusion, np.float64) for record in records]
    totals = [each.sum(axis=1, keepdims=True) for each in counts]
    normalised = [
        each / np.where(total > 0, total, np.nan) for each, total in zip(counts, totals, strict=True)
    ]
    return np.ma.masked_invalid(normalised).mean(axis=0).filled(np.nan)


def _label(axes: Axes, classes: tuple[str, ...], mean: np.ndarray) -> None:
    size = 7 if len(classes) <= NUMBERED else 5.5
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if len(classes) > NUMBERED:
        return
    for row, column in np.argwhere(mean >= 0.005):
        share = 100 * mean[row, column]
        axes.text(
            column, row, f"{share:.0f}", ha="center", va="center", fontsize=6,
            color="white" if share > 60 else "black",
        )  # fmt: skip
