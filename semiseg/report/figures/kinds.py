"""Draw the figures of a grid; those of mIoU over the labelled share and of IoU by class are drawn here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from semiseg.base.paths import RESULTS
from semiseg.report.collect import BASELINE, Results, last
from semiseg.report.figures import ablation, confusion, panel, sheet, training, waterfall
from semiseg.report.figures.style import NARROWEST, STYLE, look, save


@dataclass(frozen=True)
class Kind:
    """One figure of a grid."""

    name: str  # begins its files' names
    caption: str
    draw: Callable[[Results], Figure | None]  # returns None if there is nothing to draw
    lacking: Callable[[Results], str] = lambda results: ""  # says what of it is not here
    local: bool = False  # drawn from files that are not in git
    wide: bool = False  # on the page: across both columns


def folder(grid: str) -> Path:
    return RESULTS / "figures" / grid


def write(results: Results) -> list[Path]:
    """Draw what the records, histories and predictions on this machine allow; return the paths written.

    Predictions are not in git. If some are not here, a figure that was drawn from all of them stays as it is,
    and a figure that is not there yet is drawn from those that are here.
    """
    if not results.records:
        return []
    written = []
    with rc_context(STYLE):
        for kind in KINDS:
            stem = folder(results.name) / kind.name
            if kind.local and stem.with_name(f"{kind.name}.png").exists() and kind.lacking(results):
                continue
            figure = kind.draw(results)
            if figure is not None:
                written += save(figure, stem)
    return written


def shown(grid: str) -> list[tuple[Kind, Path]]:
    """Return the figures that are there."""
    files = [(kind, folder(grid) / f"{kind.name}.png") for kind in KINDS]
    return [(kind, path) for kind, path in files if path.exists()]


def lacking(results: Results) -> list[str]:
    """Say what figures lack, in a line for each reason."""
    there = {kind.name for kind, _ in shown(results.name)}
    kinds = [kind for kind in KINDS if not (kind.local and kind.name in there)]
    names: dict[tuple[bool, str], list[str]] = {}
    for kind in kinds:
        if reason := kind.lacking(results):
            names.setdefault((kind.name in there, reason), []).append(f"`{kind.name}`")
    return [
        f"{'Without some runs' if partly else 'Not drawn'}: {', '.join(those)} ({reason})."
        for (partly, reason), those in names.items()
    ]


def miou(results: Results) -> Figure:
    """Draw mIoU over the labelled share; of one share, a row for each recipe."""
    facets: dict[tuple[str, str], list[str]] = {}
    for split in sheet.splits_run(results):
        declared = results.params.splits[split]
        facets.setdefault((declared.dataset, declared.protocol), []).append(split)
    if any(len(splits) > 1 for splits in facets.values()):
        return _over_shares(results, facets)
    return _by_recipe(results, [split for (split,) in facets.values()])


def _over_shares(results: Results, facets: Mapping[tuple[str, str], Sequence[str]]) -> Figure:
    """Draw a curve for each recipe, a plot for each dataset and protocol."""
    figure = sheet.blank(3.6 * len(facets))
    grid = figure.subplots(len(facets), 1, squeeze=False)
    for axes, ((dataset, protocol), splits) in zip(grid.flat, facets.items(), strict=True):
        if len(splits) > 1:
            _curve(axes, results, splits)
            axes.set_title(dataset if len(facets) == 1 else f"{dataset}, {protocol}")
        else:
            _rows(axes, results, splits[0])
            _widen(axes)
    recipes, splits = sheet.recipes_run(results), sheet.splits_run(results)
    printed = any(recipe in recipes and split in splits for recipe, split in results.printed)
    sheet.legend(figure, results, recipes, lines=True, published=printed)
    return figure


def _by_recipe(results: Results, splits: Sequence[str]) -> Figure:
    """Draw a row for each recipe, a plot for each split; those of one dataset have one scale."""
    alike = len({results.params.splits[split].dataset for split in splits}) == 1
    heights = [0.7 + 0.36 * len(_recipes(results, split)) for split in splits]
    figure = sheet.blank(sum(heights) + 0.2)
    grid = figure.subplots(len(splits), 1, squeeze=False, sharex=alike, height_ratios=heights)
    for axes, split in zip(grid.flat, splits, strict=True):
        _rows(axes, results, split)
        if alike:
            axes.label_outer()
    for axes in grid[-1] if alike else grid.flat:
        _widen(axes)
    return figure


def _curve(axes: Axes, results: Results, splits: Sequence[str]) -> None:
    splits = sorted(splits, key=lambda split: results.ratio(split))
    recipes = sheet.recipes_run(results)
    for place, recipe in enumerate(recipes):
        dodge = 1.03 ** (place - (len(recipes) - 1) / 2)  # so that error bars do not hide each other
        points = [
            (float(results.ratio(split)) * dodge, summary)
            for split in splits
            if (summary := results.miou(recipe, split, last)) is not None
        ]
        axes.errorbar(
            [ratio for ratio, _ in points],
            [100 * summary.mean for _, summary in points],
            [100 * (summary.std or 0) for _, summary in points],
            **look(results, recipe),
        )
        printed = [
            (float(results.ratio(split)) * dodge, 100 * results.printed[recipe, split].miou)
            for split in splits
            if (recipe, split) in results.printed
        ]
        if printed:
            axes.plot(*np.transpose(printed), **sheet.HOLLOW, **look(results, recipe))
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        [float(results.ratio(split)) for split in splits],
        [_share_label(results, split) for split in splits],
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labelled share of the training set (images)")
    axes.set_ylabel("mIoU (%)")


def _share_label(results: Results, split: str) -> str:
    labelled, share = results.labelled(split), results.params.splits[split].share
    return share if labelled is None else f"{share}\n({labelled})"


def _rows(axes: Axes, results: Results, split: str) -> None:
    recipes = _recipes(results, split)
    baseline = results.miou(BASELINE, split, last)
    if baseline is not None:
        axes.axvline(100 * baseline.mean, color="#777777", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, recipe in enumerate(recipes):
        summary = results.miou(recipe, split, last)
        assert summary is not None
        style = look(results, recipe)
        if summary.count > 1:
            seeds = [100 * run.miou for run in results.runs(recipe, split)]
            axes.scatter(
                seeds, [place] * len(seeds), s=16, facecolor="white", edgecolor=style["color"], zorder=2
            )
        axes.errorbar(
            100 * summary.mean,
            place,
            xerr=None if summary.std is None else 100 * summary.std,
            zorder=3,
            **style,
        )
        axes.annotate(
            f"{100 * summary.mean:.1f}",
            (100 * summary.mean, place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axes.set_yticks(range(len(recipes)), recipes)
    axes.set_ylim(len(recipes) - 0.5, -0.7)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mIoU (%)")
    axes.set_title(sheet.title(results, split))


def _recipes(results: Results, split: str) -> list[str]:
    return [recipe for recipe in results.recipes if results.runs(recipe, split)]


def _widen(axes: Axes) -> None:
    """Give the points room at both sides, and small differences no more room than they deserve."""
    low, high = axes.get_xlim()
    spare = max(0.1 * (high - low), (NARROWEST - (high - low)) / 2)
    axes.set_xlim(low - spare, high + spare)


def classes(results: Results) -> Figure:
    """Draw the mean IoU of each class, a plot for each split."""
    figure = _by_class(
        results,
        sheet.splits_run(results),
        sheet.recipes_run(results),
        partial(_class_iou, results),
        "IoU (%)",
    )
    for axes in figure.axes:
        axes.set_xlim(0, 100)
    return figure


def gains(results: Results) -> Figure | None:
    """Draw the IoU of each class minus the baseline's on the same seeds, a plot for each split with both."""
    recipes = [recipe for recipe in sheet.recipes_run(results) if recipe != BASELINE]
    label, splits = f"IoU minus {BASELINE}'s (points)", _gained(results)
    if not splits:
        return None
    figure = _by_class(results, splits, recipes, partial(_class_gain, results), label)
    for axes in figure.axes:
        axes.axvline(0, color="#777777", linewidth=1, zorder=1)
    return figure


def _gained(results: Results) -> list[str]:
    """Return the splits where a recipe and the baseline share a seed."""
    return [
        split
        for split in sheet.splits_run(results)
        if any(results.gain(recipe, split, last) for recipe in results.recipes)
    ]


def _by_class(
    results: Results,
    splits: Sequence[str],
    recipes: Sequence[str],
    value: Callable[[str, str, str], float | None],
    label: str,
) -> Figure:
    """Draw a row for each class and a point for each recipe, at ``value`` of recipe, split and class."""
    columns = min(2, len(splits))
    rows = math.ceil(len(splits) / columns)
    names = [results.dataset(split).classes for split in splits]
    figure = sheet.blank(rows * (0.7 + 0.235 * max(map(len, names))) + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(splits) :]:
        figure.delaxes(axes)
    for axes, split, labels in zip(grid.flat, splits, names, strict=False):
        values = {recipe: [value(recipe, split, name) for name in labels] for recipe in recipes}
        _class_rows(axes, results, labels, values)
        axes.set_title(sheet.title(results, split))
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in grid[-1]:
        axes.set_xlabel(label)
    sheet.legend(figure, results, recipes, lines=False)
    return figure


def _class_rows(
    axes: Axes, results: Results, labels: Sequence[str], values: Mapping[str, Sequence[float | None]]
) -> None:
    """Draw the ``values`` of all classes, by recipe."""
    drawn = {
        recipe: [(row, each) for row, each in enumerate(of_classes) if each is not None]
        for recipe, of_classes in values.items()
        if any(each is not None for each in of_classes)
    }
    for place, (recipe, known) in enumerate(drawn.items()):
        dodge = 0.5 * (place / (len(drawn) - 1) - 0.5) if len(drawn) > 1 else 0  # none hides another
        axes.plot(
            [each for _, each in known],
            [row + dodge for row, _ in known],
            linestyle="",
            markersize=4.5,
            **look(results, recipe),
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_yticks([row + 0.5 for row in range(len(labels) - 1)], minor=True)
    axes.tick_params(axis="y", which="both", length=0)
    axes.grid(visible=False, axis="y", which="major")
    axes.grid(visible=True, axis="y", which="minor")
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _class_iou(results: Results, recipe: str, split: str, label: str) -> float | None:
    """Return a class's mean IoU in per cent; None where no run has the class."""
    summary = results.class_iou(recipe, split, label)
    return None if summary is None else 100 * summary.mean


def _class_gain(results: Results, recipe: str, split: str, label: str) -> float | None:
    """Return a class's mean gain in points; None if no pair of seeds has the class."""
    gain = results.class_gain(recipe, split, label)
    return None if gain is None else 100 * gain.mean


KINDS = (  # in the order of the page
    Kind(
        "miou", "mIoU at the last step: mean and standard deviation over labelled sets; rings are runs.", miou
    ),
    Kind(
        "ablation",
        "Variants of a method: mIoU at the last step minus the method's own on the same seeds; mean, "
        "standard deviation, number of labelled sets.",
        ablation.draw,
    ),
    Kind(
        "waterfall",
        "A method built up part by part: mIoU at the last step, from one recipe to the next, on the seeds "
        "that all of them share; change in points, its standard deviation, number of labelled sets.",
        waterfall.draw,
        waterfall.lacking,
    ),
    Kind("classes", "IoU of each class at the last step: mean over labelled sets.", classes),
    Kind(
        "gains",
        "IoU of each class at the last step minus supervised's on the same seeds: mean over labelled sets.",
        gains,
    ),
    Kind(
        "confusion",
        "Confusion at the last step: the share of a class's pixels (row) that is predicted as each class, a "
        "mean over runs. A share below 0.5 % has no number.",
        confusion.draw,
    ),
    Kind(
        "curves",
        "Training: a line for each run; the loss is a running mean.",
        training.curves,
        training.lacking,
    ),
    Kind(
        "cmb",
        "CMB over time: the filled share of its memory, and the standard deviation of its attention's "
        "weights within a class (zero: all weigh the same; their mean is one).",
        training.cmb,
        training.lacking,
    ),
    Kind(
        "dcc",
        "DCC over time: the share of the overlap's positions whose positive its masks select; and, among "
        "pairs of val pixels that the scored network predicts as different, the share that truly are.",
        training.dcc,
        training.lacking,
    ),
    Kind(
        "panel",
        "Evaluation images, evenly spaced over the list, with their truth and each recipe's prediction at "
        "the last step.",
        panel.typical,
        panel.lacking,
        local=True,
        wide=True,
    ),
    Kind(
        "extremes",
        "For each method, the evaluation image that gains most over supervised and the one that loses most: "
        "difference of the image's own mIoU in points, at the last step of the first seed that both have.",
        panel.extremes,
        panel.lacking_scores,
        local=True,
        wide=True,
    ),
)
