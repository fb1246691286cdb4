"""Figures of a grid: mIoU over the labelled share, IoU of each class, training curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from semiseg.config import Params
from semiseg.paths import RESULTS
from semiseg.report import panel
from semiseg.report.collect import BASELINE, Results, last, share, summarise
from semiseg.report.style import STYLE, WIDTH, look, save

HOLLOW: Any = {"linestyle": "", "markerfacecolor": "white"}  # what was published
NARROWEST = 6.0  # points of mIoU that a row figure spans, so that it does not magnify noise


def folder(grid: str) -> Path:
    return RESULTS / "figures" / grid


def write(results: Results) -> list[Path]:
    """Draw what the records, histories and predictions on this machine allow; return the paths written.

    Histories and predictions are not in git. Where some are not here, a figure that was drawn from all of
    them stays as it is; where there is no such figure yet, it is drawn from those that are here.
    """
    if not results.records:
        return []
    place = folder(results.name)
    with rc_context(STYLE):
        written = save(miou(results), place / "miou") + save(classes(results), place / "classes")
        if _gained(results):
            written += save(gains(results), place / "gains")
        here = [run for run in results.records if (run.artefacts / "history.csv").exists()]
        if here and (len(here) == len(results.records) or not (place / "curves.png").exists()):
            written += save(curves(results), place / "curves")
        content = panel.find(results)
        if content is not None and (content.complete or not (place / "panel.png").exists()):
            written += save(panel.draw(content), place / "panel")
    return written


def miou(results: Results) -> Figure:
    """mIoU over the labelled share; where there is one share, a row for each recipe."""
    facets: dict[tuple[str, str], list[str]] = {}
    for split in _splits(results):
        declared = results.params.splits[split]
        facets.setdefault((declared.dataset, declared.protocol), []).append(split)
    curve = any(len(splits) > 1 for splits in facets.values())
    rows = max(
        sum(bool(results.runs(recipe, split)) for recipe in results.recipes) for split in _splits(results)
    )
    figure = _figure(len(facets) * (3.6 if curve else 0.9 + 0.36 * rows))
    grid = figure.subplots(len(facets), 1, squeeze=False)
    for axes, ((dataset, protocol), splits) in zip(grid.flat, facets.items(), strict=True):
        if len(splits) > 1:
            _curve(axes, results, splits)
            axes.set_title(dataset if len(facets) == 1 else f"{dataset}, {protocol}")
        else:
            _rows(axes, results, splits[0])
            axes.set_title(_title(results, splits[0]))
    if curve:
        recipes, splits = _recipes(results), _splits(results)
        printed = any(recipe in recipes and split in splits for recipe, split in results.published)
        _legend(figure, results.params, recipes, lines=True, published=printed)
    return figure


def _curve(axes: Axes, results: Results, splits: Sequence[str]) -> None:
    splits = sorted(splits, key=lambda split: results.params.splits[split].ratio)
    recipes = _recipes(results)
    for place, recipe in enumerate(recipes):
        dodge = 1.03 ** (place - (len(recipes) - 1) / 2)  # so that error bars do not hide each other
        points = [
            (float(results.params.splits[split].ratio) * dodge, summary)
            for split in splits
            if (summary := results.miou(recipe, split, last)) is not None
        ]
        axes.errorbar(
            [ratio for ratio, _ in points],
            [100 * summary.mean for _, summary in points],
            [100 * (summary.std or 0) for _, summary in points],
            **look(results.params, recipe),
        )
        printed = [
            (float(results.params.splits[split].ratio) * dodge, 100 * results.published[recipe, split].miou)
            for split in splits
            if (recipe, split) in results.published
        ]
        if printed:
            axes.plot(*np.transpose(printed), **HOLLOW, **look(results.params, recipe))
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        [float(results.params.splits[split].ratio) for split in splits],
        [_share_label(results, split) for split in splits],
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labelled share of the training set (images)")
    axes.set_ylabel("mIoU (%)")


def _rows(axes: Axes, results: Results, split: str) -> None:
    recipes = [recipe for recipe in results.recipes if results.runs(recipe, split)]
    baseline = results.miou(BASELINE, split, last)
    if baseline is not None:
        axes.axvline(100 * baseline.mean, color="#777777", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, recipe in enumerate(recipes):
        summary = results.miou(recipe, split, last)
        assert summary is not None
        style = look(results.params, recipe)
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
    low, high = axes.get_xlim()
    spare = max(0.1 * (high - low), (NARROWEST - (high - low)) / 2)
    axes.set_xlim(low - spare, high + spare)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mIoU (%)")


def classes(results: Results) -> Figure:
    """IoU of each class, mean over seeds, one plot for each split."""
    figure = _by_class(results, _splits(results), _recipes(results), partial(_class_iou, results), "IoU (%)")
    for axes in figure.axes:
        axes.set_xlim(0, 100)
    return figure


def gains(results: Results) -> Figure:
    """IoU of each class minus the baseline's on the same seeds, one plot for each split that has both."""
    recipes = [recipe for recipe in _recipes(results) if recipe != BASELINE]
    label = f"IoU minus {BASELINE}'s (points)"
    figure = _by_class(results, _gained(results), recipes, partial(_class_gain, results), label)
    for axes in figure.axes:
        axes.axvline(0, color="#777777", linewidth=1, zorder=1)
    return figure


def _gained(results: Results) -> list[str]:
    """The splits on which a recipe stands beside the baseline."""
    return [
        split
        for split in _splits(results)
        if any(results.gain(recipe, split, last) for recipe in results.recipes)
    ]


def _by_class(
    results: Results,
    splits: Sequence[str],
    recipes: Sequence[str],
    value: Callable[[str, str, str], float | None],
    label: str,
) -> Figure:
    """A row a class, a point a recipe: ``value`` of recipe, split and class."""
    columns = min(2, len(splits))
    rows = math.ceil(len(splits) / columns)
    names = [results.dataset(split).classes for split in splits]
    figure = _figure(rows * (0.7 + 0.235 * max(map(len, names))) + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(splits) :]:
        figure.delaxes(axes)
    for axes, split, labels in zip(grid.flat, splits, names, strict=False):
        values = {recipe: [value(recipe, split, name) for name in labels] for recipe in recipes}
        _class_rows(axes, results.params, labels, values)
        axes.set_title(_title(results, split))
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in grid[-1]:
        axes.set_xlabel(label)
    _legend(figure, results.params, recipes, lines=False)
    return figure


def _class_rows(
    axes: Axes, params: Params, labels: Sequence[str], values: Mapping[str, Sequence[float | None]]
) -> None:
    """``values``: of each class, by recipe."""
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
            **look(params, recipe),
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_yticks([row + 0.5 for row in range(len(labels) - 1)], minor=True)
    axes.tick_params(axis="y", which="both", length=0)
    axes.grid(visible=False, axis="y", which="major")
    axes.grid(visible=True, axis="y", which="minor")
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _class_iou(results: Results, recipe: str, split: str, label: str) -> float | None:
    """In per cent; None where no seed has the class."""
    ious = [record.score(record.last).iou.get(label) for record in results.runs(recipe, split)]
    summary = summarise([iou for iou in ious if iou is not None])
    return None if summary is None else 100 * summary.mean


def _class_gain(results: Results, recipe: str, split: str, label: str) -> float | None:
    """In points; None where no pair of seeds has the class."""
    gain = results.class_gain(recipe, split, label)
    return None if gain is None else 100 * gain.mean


def curves(results: Results) -> Figure:
    """The loss on labelled images and the validated mIoU of the scored network, a line a seed."""
    splits = _splits(results)
    figure = _figure(0.5 + 2.1 * len(splits))
    grid = figure.subplots(len(splits), 2, squeeze=False)
    for (left, right), split in zip(grid, splits, strict=True):
        for recipe in results.recipes:
            for record in results.runs(recipe, split):
                path = Path("runs", recipe, split, str(record.seed), "history.csv")
                if path.exists():
                    _history(left, right, pd.read_csv(path), record.headline, look(results.params, recipe))
        left.set_title(_title(results, split))
        left.set_ylabel("loss on labelled images")
        right.set_ylabel("mIoU on val (%)")
        left.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    _legend(figure, results.params, _recipes(results), lines=True)
    return figure


def _history(left: Axes, right: Axes, history: pd.DataFrame, headline: str, style: dict[str, Any]) -> None:
    if "supervised" in history:
        smooth = history["supervised"].rolling(max(1, len(history) // 40), min_periods=1).mean()
        left.plot(history["step"], smooth, color=style["color"], linewidth=1, alpha=0.85)
    column = f"val_miou_{headline}"
    if column in history:
        validated = history.dropna(subset=[column])
        right.plot(
            validated["step"], 100 * validated[column], markersize=3.5, linewidth=1, alpha=0.85, **style
        )


def _splits(results: Results) -> list[str]:
    """Those with a finished run."""
    done = {run.split for run in results.records}
    return [split for split in results.grid.splits if split in done]


def _recipes(results: Results) -> list[str]:
    """Those with a finished run."""
    done = {run.recipe for run in results.records}
    return [recipe for recipe in results.recipes if recipe in done]


def _title(results: Results, split: str) -> str:
    """ "camvid, 1/8 labelled (46 images)", with the protocol where the grid has several."""
    declared, labelled = results.params.splits[split], results.labelled(split)
    images = "" if labelled is None else f" ({labelled} images)"
    protocol = f", {declared.protocol}" if len(results.protocols()) > 1 else ""
    ratio = "all" if declared.ratio == 1 else share(declared.ratio)
    return f"{declared.dataset}, {ratio} labelled{images}{protocol}"


def _share_label(results: Results, split: str) -> str:
    labelled, ratio = results.labelled(split), share(results.params.splits[split].ratio)
    return ratio if labelled is None else f"{ratio}\n({labelled})"


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _legend(
    figure: Figure, params: Params, recipes: Sequence[str], lines: bool, published: bool = False
) -> None:
    handles = [
        Line2D([], [], label=recipe, linestyle="-" if lines else "", **look(params, recipe))
        for recipe in recipes
    ]
    if published:
        handles.append(Line2D([], [], label="published", color="#777777", marker="o", **HOLLOW))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
