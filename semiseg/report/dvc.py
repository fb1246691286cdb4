"""Write what `dvc metrics` and `dvc plots` read: the tables' figures and the runs' losses.

DVC shows whole files, and complains of each one that dvc.yaml names and no run has made yet. So dvc.yaml
names the folders of these files, where only what was run has one.
"""

import json
from pathlib import Path

import pandas as pd

from semiseg.base.files import read_json, write_text
from semiseg.base.paths import RESULTS
from semiseg.evaluation import histories
from semiseg.report import tables
from semiseg.report.collect import Results

METRICS = RESULTS / "metrics"
PLOTS = RESULTS / "plots"
FIGURES = {"miou", "std", "gain", "seeds"}  # of a cell
DIGITS = 6  # as in the tables' CSV


def write_metrics(results: Results) -> Path:
    """Write results/metrics/<grid>/<split>/<recipe>.json for each cell with runs; remove those of others.

    A file holds mIoU at the last step (mean and std over labelled sets, in [0, 1]), the mean gain over the
    baseline and the number of runs, as the grid's CSV has them; what is not known is left out. Returns the
    folder.
    """
    folder = METRICS / results.name
    written = set()
    for cell in finished(results).to_dict("records"):
        figures = {
            "miou": cell["miou_mean"],
            "std": cell["miou_std"],
            "gain": cell["gain_mean"],
            "seeds": cell["seeds"],
        }
        known = {name: round(value, DIGITS) for name, value in figures.items() if pd.notna(value)}
        path = folder / cell["split"] / f"{cell['recipe']}.json"
        write_text(path, json.dumps(known, indent=1) + "\n")
        written.add(path)
    for path in set(folder.glob("*/*.json")) - written:
        found = read_json(path)
        if isinstance(found, dict) and found.keys() <= FIGURES:  # else not written by this suite
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    folder.mkdir(parents=True, exist_ok=True)  # both engines expect it, even without a cell
    return folder


def write_plots(results: Results) -> list[Path]:
    """Write results/plots/miou/<grid>.csv and loss/<grid>.csv if there is anything to draw; return paths."""
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
    """Return a row for each cell with runs: mIoU in [0, 1], and one standard deviation to both sides."""
    cells = finished(results)
    spread = cells["miou_std"].astype(float).fillna(0)
    return cells[["recipe", "split", "labelled", "seeds"]].assign(
        miou=cells["miou_mean"], low=cells["miou_mean"] - spread, high=cells["miou_mean"] + spread
    )


def losses(results: Results) -> pd.DataFrame:
    """Return the whole loss by step, a row for each row of the runs' short histories."""
    frames = [
        histories.read(run.history, histories.SHORT, "loss").assign(
            recipe=run.recipe, split=run.split, seed=run.seed
        )
        for run in results.records
        if run.history.exists()
    ]
    columns = ["recipe", "split", "seed", "step", "loss"]
    return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)


def finished(results: Results) -> pd.DataFrame:
    """Return the rows of the grid's CSV with at least one run."""
    cells = tables.tidy(results)
    return cells[cells["seeds"] > 0]
