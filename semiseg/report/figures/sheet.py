"""What the figures of a grid share: their size, titles and legends, and which of its rows were run."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from semiseg.base.parameters import Params
from semiseg.report.collect import Results, share
from semiseg.report.figures.style import WIDTH, look

HOLLOW: Any = {"linestyle": "", "markerfacecolor": "white"}  # what was published


def splits_run(results: Results) -> list[str]:
    """Those with a finished run."""
    done = {run.split for run in results.records}
    return [split for split in results.grid.splits if split in done]


def recipes_run(results: Results) -> list[str]:
    """Those with a finished run."""
    done = {run.recipe for run in results.records}
    return [recipe for recipe in results.recipes if recipe in done]


def fullest_split(results: Results) -> str:
    """The split that most recipes have run; the first of the largest."""
    return max(
        results.grid.splits, key=lambda split: sum(bool(results.runs(r, split)) for r in results.recipes)
    )


def methods_run(results: Results, split: str) -> list[str]:
    """The recipes that bear their method's name, among those that have run ``split``."""
    return [
        recipe
        for recipe in results.recipes
        if recipe == results.params.recipes[recipe].method and results.runs(recipe, split)
    ]


def title(results: Results, split: str) -> str:
    """ "camvid, 1/8 labelled (46 images)", with the protocol where the grid has several."""
    declared, labelled = results.params.splits[split], results.labelled(split)
    images = "" if labelled is None else f" ({labelled} images)"
    protocol = f", {declared.protocol}" if len(results.protocols()) > 1 else ""
    ratio = "all" if results.ratio(split) == 1 else share(results.ratio(split))
    return f"{declared.dataset}, {ratio} labelled{images}{protocol}"


def blank(height: float) -> Figure:
    """``height`` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend(
    figure: Figure, params: Params, recipes: Sequence[str], lines: bool, published: bool = False
) -> None:
    """Below the figure, a mark a recipe."""
    handles = [
        Line2D([], [], label=recipe, linestyle="-" if lines else "", **look(params, recipe))
        for recipe in recipes
    ]
    if published:
        handles.append(Line2D([], [], label="published", color="#777777", marker="o", **HOLLOW))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
