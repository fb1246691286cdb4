"""Sizes, titles, legends and the finished rows that all figures of a grid share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from semiseg.report.collect import Results
from semiseg.report.figures.style import WIDTH, look

HOLLOW: Any = {"linestyle": "", "markerfacecolor": "white"}  # marks of published figures


def splits_run(results: Results) -> list[str]:
    """Return those with a finished run, in the table's order."""
    done = {run.split for run in results.records}
    return [split for split in results.grid.splits if split in done]


def recipes_run(results: Results) -> list[str]:
    """Return those with a finished run, in the table's order."""
    done = {run.recipe for run in results.records}
    return [recipe for recipe in results.recipes if recipe in done]


def fullest_split(results: Results) -> str:
    """Return the split that most recipes have run; the first of several."""
    return max(
        results.grid.splits, key=lambda split: sum(bool(results.runs(r, split)) for r in results.recipes)
    )


def methods_run(results: Results, split: str) -> list[str]:
    """Return the recipes named like their method that have run ``split``."""
    return [
        recipe
        for recipe in results.recipes
        if recipe == results.params.recipes[recipe].method and results.runs(recipe, split)
    ]


def title(results: Results, split: str) -> str:
    """Write "camvid, 1/8 labelled (46 images)", with the protocol or what it starts from if the grid has
    several.
    """
    entry, labelled, start = results.params.splits[split], results.labelled(split), results.start(split)
    images = "" if labelled is None else f" ({labelled} images)"
    protocol = f", {entry.protocol}" if len(results.protocols()) > 1 else ""
    share = "all" if results.ratio(split) == 1 else entry.share
    return f"{entry.dataset}, {share} labelled{images}{protocol if start is None else f', from {start}'}"


def blank(height: float) -> Figure:
    """Return an empty figure, ``height`` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend(
    figure: Figure, results: Results, recipes: Sequence[str], lines: bool, published: bool = False
) -> None:
    """Draw a legend below the figure, with a mark for each recipe."""
    handles = [
        Line2D([], [], label=recipe, linestyle="-" if lines else "", **look(results, recipe))
        for recipe in recipes
    ]
    if published:
        handles.append(Line2D([], [], label="published", color="#777777", marker="o", **HOLLOW))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
