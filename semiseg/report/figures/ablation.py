"""Draw what each change of a method costs or brings: variants beside their method."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semiseg.report.collect import BASELINE, Results, last
from semiseg.report.figures import sheet
from semiseg.report.figures.style import NARROWEST, look
from semiseg.report.statistics import Summary


def draw(results: Results) -> Figure | None:
    """Draw bars of mIoU minus the full method's on the same seeds, a plot for each split and method."""
    plots = [
        (split, method, differences(results, split, method))
        for split in sheet.splits_run(results)
        for method in sheet.methods_run(results, split)
        if method != BASELINE
    ]
    plots = [plot for plot in plots if any(recipe != BASELINE for recipe, _ in plot[2])]
    if not plots:
        return None
    heights = [0.75 + 0.3 * len(rows) for *_, rows in plots]
    figure = sheet.blank(sum(heights))
    grid = figure.subplots(len(plots), 1, squeeze=False, height_ratios=heights)
    for axes, (split, method, rows) in zip(grid.flat, plots, strict=True):
        full = results.miou(method, split, last)
        assert full is not None
        axes.set_title(f"{sheet.title(results, split)}: difference to {method} ({100 * full.mean:.1f})")
        _bars(axes, rows, [look(results, recipe)["color"] for recipe, _ in rows])
        axes.set_xlabel("points of mIoU")
    return figure


def differences(results: Results, split: str, method: str) -> list[tuple[str, Summary]]:
    """Return mIoU minus the method's, in [−1, 1], of the baseline and of the method's variants."""
    rows = [
        (recipe, results.difference(recipe, method, split, last))
        for recipe in results.recipes
        if recipe != method and (recipe == BASELINE or results.params.recipes[recipe].method == method)
    ]
    return [(recipe, difference) for recipe, difference in rows if difference is not None]


def _bars(axes: Axes, rows: Sequence[tuple[str, Summary]], colours: Sequence[str]) -> None:
    means = [100 * summary.mean for _, summary in rows]
    spreads = [100 * (summary.std or 0) for _, summary in rows]
    axes.barh(range(len(rows)), means, height=0.62, color=colours, alpha=0.55, edgecolor=colours, linewidth=1)
    for place, (mean, spread, (_, summary)) in enumerate(zip(means, spreads, rows, strict=True)):
        if summary.std is not None:
            axes.errorbar(mean, place, xerr=spread, color="#222222", linewidth=1.2, capsize=3)
        outwards = 1 if mean >= 0 else -1
        axes.annotate(
            f"{mean:+.1f} ({summary.count})",
            (mean + outwards * spread, place),
            xytext=(5 * outwards, 0),
            textcoords="offset points",
            ha="left" if outwards > 0 else "right",
            va="center",
            fontsize=8,
        )
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(rows)), [recipe for recipe, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low = min(0.0, *(mean - spread for mean, spread in zip(means, spreads, strict=True)))
    high = max(0.0, *(mean + spread for mean, spread in zip(means, spreads, strict=True)))
    spare = max(0.22 * (high - low), (NARROWEST - (high - low)) / 2)
    axes.set_xlim(low - spare, high + spare)
    axes.grid(visible=False, axis="y")
