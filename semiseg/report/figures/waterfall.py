"""Draw what each part adds to a method: from the baseline, recipe by recipe, to the full one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semiseg.evaluation.record import Record
from semiseg.report.collect import Results, over_sets
from semiseg.report.figures import sheet
from semiseg.report.figures.style import COLOURS, NARROWEST, look
from semiseg.report.statistics import Summary

GAIN, LOSS = COLOURS[1], COLOURS[2]  # blue and vermilion
THICKNESS = 0.62  # height of a bar, in rows


@dataclass(frozen=True)
class Level:
    """A recipe of the chain, over the seeds that every drawn recipe has."""

    recipe: str
    miou: float  # in [0, 1], a mean
    change: Summary | None  # from the level before, in [−1, 1]; None for the first


def draw(results: Results) -> Figure | None:
    """Draw the steps of the grid's waterfall, each bar from where the last one ended; a plot for each split.

    The totals are marks, not bars: a bar would have to start at zero, far from every mIoU.
    """
    plots = [(split, found) for split in sheet.splits_run(results) if (found := levels(results, split))]
    if not plots:
        return None
    heights = [1.0 + 0.32 * len(found) for _, found in plots]
    figure = sheet.blank(sum(heights))
    grid = figure.subplots(len(plots), 1, squeeze=False, height_ratios=heights)
    for axes, (split, found) in zip(grid.flat, plots, strict=True):
        axes.set_title(f"{sheet.title(results, split)}: from {found[0].recipe} to {found[-1].recipe}")
        _steps(axes, found)
        for place, level in ((0, found[0]), (len(found), found[-1])):
            _total(axes, place, level, look(results, level.recipe))
        _frame(axes, found)
    return figure


def levels(results: Results, split: str) -> list[Level]:
    """Return the longest part of the chain whose recipes have all run ``split`` on seeds that they share.

    Among equally long parts the first is taken; without two neighbours that share a seed there is none. All
    levels are over the same seeds, so the changes add up to the difference of the last and the first level.
    """
    chain = results.grid.waterfall
    for length in range(len(chain), 1, -1):
        for first in range(len(chain) - length + 1):
            part = chain[first : first + length]
            columns = _paired([results.runs(recipe, split) for recipe in part])
            if columns[0]:
                pairs = zip([None, *columns], columns, strict=False)
                return [_level(*pair) for pair in pairs]
    return []


def _paired(runs: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Return each recipe's ``runs`` on the seeds that all recipes have, by seed."""
    by_seed = [{each.seed: each for each in of_recipe} for of_recipe in runs]
    shared = sorted(set.intersection(*map(set, by_seed)))
    return [[found[seed] for seed in shared] for found in by_seed]


def _level(before: Sequence[Record] | None, runs: Sequence[Record]) -> Level:
    own = over_sets((run, run.miou) for run in runs)
    assert own is not None
    if before is None:
        return Level(runs[0].recipe, own.mean, None)
    change = over_sets((run, run.miou - other.miou) for run, other in zip(runs, before, strict=True))
    return Level(runs[0].recipe, own.mean, change)


def lacking(results: Results) -> str:
    """Return which recipes of the chain were not run, or that they share no seed; "" if all are drawn."""
    chain, splits = results.grid.waterfall, results.grid.splits
    if all(len(levels(results, split)) == len(chain) for split in splits):
        return ""
    absent = [recipe for recipe in chain if not all(results.runs(recipe, split) for split in splits)]
    return f"not run: {', '.join(absent)}" if absent else "its recipes have no seed that all share"


def _steps(axes: Axes, found: Sequence[Level]) -> None:
    for place, (before, level) in enumerate(pairwise(found), start=1):
        assert level.change is not None
        start, end = 100 * before.miou, 100 * level.miou
        rising = end >= start
        colour, outwards = (GAIN, 1) if rising else (LOSS, -1)
        axes.barh(
            place, end - start, THICKNESS, start, color=colour, alpha=0.55, edgecolor=colour, linewidth=1
        )
        axes.annotate(
            _change(level.change),
            (end, place),
            xytext=(5 * outwards, 0),
            textcoords="offset points",
            ha="left" if rising else "right",
            va="center",
            fontsize=8,
        )


def _change(change: Summary) -> str:
    """Write a change in points, its standard deviation and the number of sets: "+1.2 ± 0.3 (3)"."""
    spread = "" if change.std is None else f" ± {100 * change.std:.1f}"
    return f"{100 * change.mean:+.1f}{spread} ({change.count})"


def _total(axes: Axes, place: int, level: Level, style: dict[str, Any]) -> None:
    axes.plot(100 * level.miou, place, linestyle="", zorder=3, **style)
    axes.annotate(
        f"{100 * level.miou:.1f}",
        (100 * level.miou, place),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        fontweight="bold",
    )


def _frame(axes: Axes, found: Sequence[Level]) -> None:
    """Draw the lines from step to step and the rows' names, on an axis that does not magnify noise."""
    ends = [100 * level.miou for level in found]
    for place, end in enumerate(ends):
        top = place + THICKNESS / 2 if place else 0  # a total has no bar
        bottom = place + 1 - THICKNESS / 2 if place + 1 < len(ends) else place + 1
        axes.plot([end, end], [top, bottom], color="#555555", linewidth=0.8, zorder=1)
    names = [level.recipe for level in found]
    axes.set_yticks(range(len(found) + 1), [names[0], *(f"→ {name}" for name in names[1:]), names[-1]])
    axes.set_ylim(len(found) + 0.5, -0.5)
    low, high = min(ends), max(ends)
    spare = max(0.3 * (high - low), (NARROWEST - (high - low)) / 2)
    axes.set_xlim(low - spare, high + spare)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mIoU (%)")
