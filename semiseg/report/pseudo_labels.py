"""Tabulate how far pseudo-labels reach and how often they are right, from the records' histories."""

from collections.abc import Sequence

import pandas as pd

from semiseg.base.paths import Run
from semiseg.evaluation import histories
from semiseg.report.collect import Results
from semiseg.report.tables import TextTable

COUNTS = ("true", "labelled", "right")  # see semiseg.methods.common.judged
LAST = 1 / 3  # of the steps that the table covers


def table(results: Results) -> TextTable | None:
    """Return a row for each recipe and split whose runs had their pseudo-labels judged; None without any.

    A cell is "accuracy (coverage)" in %, over all pixels and over those that truly are a class: the share of
    them that has a pseudo-label, by its weight in the loss, and how much of that share is right.
    """
    rows: list[dict[str, str]] = []
    first: list[Run] = []
    for recipe in results.recipes:
        for split in results.grid.splits:
            runs = [Run(recipe, split, each.seed) for each in results.runs(recipe, split)]
            counts = counted(runs, results.dataset(split).classes)
            if counts is not None:
                seen = counts[counts["true"] > 0]
                cells = {name: _cell(*row) for name, *row in seen.itertuples()}
                rows.append({"recipe": recipe, "share": results.heading(split), **cells})
                first.append(runs[0])
    if not rows:
        return None
    head = tuple(dict.fromkeys(name for row in rows for name in row))
    texts = tuple(tuple(row.get(name, "") for name in head) for row in rows)
    return TextTable(head, texts, names=2, runs=tuple((None, *[run] * (len(head) - 1)) for run in first))


def counted(runs: Sequence[Run], classes: Sequence[str]) -> pd.DataFrame | None:
    """Sum the counts of the last steps of judged ``runs``: a row for all pixels, and one for each class."""
    totals = [found for run in runs if run.history.exists() if (found := _of_run(run, classes)) is not None]
    if not totals:
        return None
    by_class = sum(totals[1:], start=totals[0])
    return pd.concat([by_class.sum().to_frame("all").T, by_class])


def _of_run(run: Run, classes: Sequence[str]) -> pd.DataFrame | None:
    history = histories.read(run.history, histories.SHORT)
    if f"pixels_{COUNTS[0]}_0" not in history:
        return None
    steps = history["step"].diff().fillna(history["step"])  # a row is a mean over so many steps
    steps = steps.where(history["step"] > (1 - LAST) * history["step"].iloc[-1], 0)
    return pd.DataFrame(
        {
            count: [float((history[f"pixels_{count}_{c}"] * steps).sum()) for c in range(len(classes))]
            for count in COUNTS
        },
        index=list(classes),
    )


def _cell(true: float, labelled: float, right: float) -> str:
    """Write "97 (80)", and no accuracy where nothing was labelled."""
    accuracy = f"{100 * right / labelled:.0f}" if labelled else "–"
    return f"{accuracy} ({100 * labelled / true:.0f})"
