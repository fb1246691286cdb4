"""Draw figures over the steps of training, from the histories beside the records: a line for each run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from semiseg.base.paths import Run
from semiseg.evaluation import histories
from semiseg.report.collect import Results
from semiseg.report.figures import sheet
from semiseg.report.figures.style import look

STYLES: tuple[Any, ...] = ("-", ":")  # lines of a plot's quantities
MARKED = 8  # points of a line, or all if there are fewer


@dataclass(frozen=True)
class Plot:
    """The quantities of a history that one plot shows."""

    label: str
    columns: Mapping[str, str]  # the history's, by name in the legend; {headline} is the scored network
    factor: float = 100
    once: str | None = None  # the loss that must be positive for the plot to mean anything
    smooth: bool = False

    def lines(self, history: pd.DataFrame, headline: str) -> dict[str, "pd.Series[float]"]:
        """Return values by step, for each column that the history has."""
        if self.once is not None and self.once not in history:
            return {}
        found = {}
        for name, column in self.columns.items():
            column = column.format(headline=headline)
            if column in history:
                values = self.factor * history[column]
                if self.smooth:
                    values = values.rolling(max(1, len(history) // 40), min_periods=1).mean()
                if self.once is not None:
                    values = values.where(history[self.once] > 0)
                found[name] = values.set_axis(history["step"]).dropna()
        return {name: values for name, values in found.items() if len(values)}


CURVES = (
    Plot("loss on labelled images", {"": "supervised"}, factor=1, smooth=True),
    Plot("mIoU on val (%)", {"": "val_miou_{headline}"}),
)
CMB = (
    Plot("memory filled (%)", {"": "memory"}),
    Plot(
        "attention weights' spread",
        {"predictions": "attention_prediction", "memory": "attention_memory"},
        factor=1,
        once="contrast",
    ),
)
DCC = (
    Plot("selected positives (%)", {"": "selected"}, once="consistency"),
    Plot("true negatives on val (%)", {"": "val_true_negatives_{headline}"}, once="consistency"),
)


def curves(results: Results) -> Figure | None:
    """Draw the loss on labelled images and the validated mIoU of the scored network."""
    return _over_steps(results, CURVES)


def cmb(results: Results) -> Figure | None:
    """Draw how full CMB's memory is, and how differently its attention weighs the features of a class."""
    return _over_steps(results, CMB)


def dcc(results: Results) -> Figure | None:
    """Draw the share of positions whose positive DCC selects, and the share of true ones in its negatives."""
    return _over_steps(results, DCC)


def lacking(results: Results) -> str:
    """Say how many records have no history beside them; "" if all have."""
    absent = sum(not run.history.exists() for run in results.records)
    return f"{absent} of {len(results.records)} records have no history.csv beside them" if absent else ""


def _over_steps(results: Results, plots: tuple[Plot, ...]) -> Figure | None:
    """Draw a row for each split and a column for each plot; leave out what no history has."""
    rows = {
        run: histories.read(run.history, histories.SHORT) for run in results.records if run.history.exists()
    }
    columns = []
    for plot in plots:
        lines = {
            run: found
            for run, history in rows.items()
            if (found := plot.lines(history, results.records[run].headline))
        }
        if lines:
            columns.append((plot, lines))
    drawn = {run for _, lines in columns for run in lines}
    if not drawn:
        return None
    splits = [split for split in results.grid.splits if any(run.split == split for run in drawn)]
    figure = sheet.blank(0.6 + 2.1 * len(splits))
    grid = figure.subplots(len(splits), len(columns), squeeze=False)
    for row, split in zip(grid, splits, strict=True):
        row[0].set_title(sheet.title(results, split))
        for axes, (plot, lines) in zip(row, columns, strict=True):
            for run, found in lines.items():
                if run.split == split:
                    _draw(axes, results, run, plot, found)
            axes.set_ylabel(plot.label)
            highest = axes.get_ylim()[1]
            axes.set_ylim(-0.03 * highest, 1.05 * highest)  # a line of zeros is seen beside the axis
    for top, bottom, (plot, _) in zip(grid[0], grid[-1], columns, strict=True):
        bottom.set_xlabel("step")
        if len(plot.columns) > 1:
            styles = zip(plot.columns, STYLES, strict=False)
            handles = [Line2D([], [], color="#333333", linestyle=style, label=name) for name, style in styles]
            top.legend(handles=handles, fontsize=8)
    recipes = [recipe for recipe in results.recipes if any(run.recipe == recipe for run in drawn)]
    sheet.legend(figure, results, recipes, lines=True)
    return figure


def _draw(
    axes: Axes, results: Results, run: Run, plot: Plot, found: Mapping[str, "pd.Series[float]"]
) -> None:
    mark = look(results, run.recipe)
    for name, style in zip(plot.columns, STYLES, strict=False):
        if name in found:
            values = found[name]
            axes.plot(
                values.index,
                values,
                color=mark["color"],
                linestyle=style,
                linewidth=1.2,
                alpha=0.85,
                marker=mark["marker"],
                markersize=3.5,
                markevery=max(1, len(values) // MARKED),
            )
