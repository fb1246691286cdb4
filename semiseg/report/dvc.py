"""What `dvc metrics` and `dvc plots` read: the tables' figures and the runs' losses, in files of their own.

DVC shows whole files, and complains of each that dvc.yaml names and no run has made yet. So dvc.yaml names
the folders of these files, in which only what was run has one.
"""

import json
import shutil
from pathlib import Path

import pandas as pd

from semiseg.base.files import write_text
from semiseg.base.paths import RESULTS
from semiseg.report import tables
from semiseg.report.collect import Results

METRICS = RESULTS / "metrics"
PLOTS = RESULTS / "plots"
DIGITS = 6  # as in the tables' CSV


def write_metrics(results: Results) -> Path:
    """Write results/metrics/<grid>/<split>/<recipe>.json for each cell with runs, and no other.

    A file holds mIoU at the last step (mean and std over seeds, in [0, 1]), the mean gain over the baseline
    and the number of seeds, as the grid's CSV has them; what is not known is left out. Returns the folder.
    """
    folder = METRICS / results.name
    if folder.exists():
        shutil.rmtree(folder)  # of cells that are no longer there
    for cell in finished(results).to_dict("records"):
        figures = {
            "miou": cell["miou_mean"],
            "std": cell["miou_std"],
            "gain": cell["gain_mean"],
            "seeds": cell["seeds"],
        }
        known = {name: round(value, DIGITS) for name, value in figures.items() if pd.notna(value)}
        write_text(folder / cell["split"] / f"{cell['recipe']}.json", json.dumps(known, indent=1) + "\n")
    return folder


def write_plots(results: Results) -> list[Path]:
    """Write results/plots/miou/<grid>.csv and loss/<grid>.csv, if there is anything to draw; their paths."""
    written = []
    for name, frame in {"miou": miou(results), "loss": losses(results)}.items():
        path = PLOTS / name / f"{results.name}.csv"
        if frame.empty:
            path.unlink(missing_ok=True)
        else:
            write_text(path, frame.to_csv(index=False, float_format=f"%.{DIGITS}f", lineterminator="\n"))
            written.append(path)
    return written


def miou(results: Results) -> pd.DataFrame:
    """A row a cell with runs: mIoU in [0, 1], and one standard deviation (0 for one seed) to both sides."""
    cells = finished(results)
    spread = cells["miou_std"].astype(float).fillna(0)
    return cells[["recipe", "split", "labelled", "seeds"]].assign(
        miou=cells["miou_mean"], low=cells["miou_mean"] - spread, high=cells["miou_mean"] + spread
    )


def losses(results: Results) -> pd.DataFrame:
    """The whole loss by step: a row for each of the runs' short histories."""
    frames = [
        pd.read_csv(run.history, usecols=["step", "loss"]).assign(
            recipe=run.recipe, split=run.split, seed=run.seed
        )
        for run in results.records
        if run.history.exists()
    ]
    columns = ["recipe", "split", "seed", "step", "loss"]
    return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)


def finished(results: Results) -> pd.DataFrame:
    """The rows of the grid's CSV with at least one run."""
    cells = tables.tidy(results)
    return cells[cells["seeds"] > 0]
