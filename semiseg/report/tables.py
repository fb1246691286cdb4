"""Write a grid's tables: CSV for programs, Markdown and LaTeX for people, plain text for a terminal."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from semiseg.base.files import write_text
from semiseg.base.paths import RESULTS, Run
from semiseg.report import foot
from semiseg.report.collect import BASELINE, Pick, Results, best, last
from semiseg.report.markup import escape, one_line, to_plain
from semiseg.report.reference import Printed
from semiseg.report.statistics import Summary

NO_GAIN = "–"  # the baseline's own gain; an empty cell means that nothing was run


@dataclass(frozen=True)
class TextTable:
    """Text in rows and columns; the first ``names`` columns name the rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    runs: tuple[tuple[Run | None, ...], ...] = ()  # the first run behind the text in the same place

    def aligned(self) -> tuple[str, ...]:
        """Return left or right for each column."""
        return ("left",) * self.names + ("right",) * (len(self.head) - self.names)


def write(results: Results) -> list[Path]:
    """Write results/tables/<grid>.csv, .md and .tex; return their paths."""
    title = results.grid.title
    return write_files(results.name, csv(results), markdown(results), latex(title, text_table(results, last)))


def write_files(name: str, csv_text: str, markdown_text: str, latex_text: str) -> list[Path]:
    """Write the three files of the table ``name``, which may have dots in it; return their paths."""
    texts = {"csv": csv_text, "md": markdown_text, "tex": latex_text}
    written = [RESULTS / "tables" / f"{name}.{kind}" for kind in texts]
    for path, text in zip(written, texts.values(), strict=True):
        write_text(path, text)
    return written


def cell(summary: Summary | None) -> str:
    """Write per cent, standard deviation and number of labelled sets, "61.3 ± 0.4 (3)"; "" if not run."""
    if summary is None:
        return ""
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread} ({summary.count})"


def gain_cell(recipe: str, gain: Summary | None, miou: Summary | None) -> str:
    """Write a gain in points and its interval, "+2.1 [+1.7, +2.6]", and its count if the cell's differs."""
    if gain is None:
        return NO_GAIN if recipe == BASELINE and miou is not None else ""
    count = "" if miou is not None and miou.count == gain.count else f" ({gain.count})"
    return f"{100 * gain.mean:+.1f}{interval(gain)}{count}"


def interval(gain: Summary) -> str:
    """Write the 95 % interval of a gain in points, " [+1.7, +2.6]"; "" for one labelled set."""
    if gain.interval is None:
        return ""
    low, high = gain.interval
    return f" [{100 * low:+.1f}, {100 * high:+.1f}]"


def printed_cell(printed: Printed | None) -> str:
    """Write a published figure, "71.3"; "" if none was seen in print."""
    return "" if printed is None else f"{100 * printed.miou:.1f}"


def difference_cell(printed: Printed | None, miou: Summary | None) -> str:
    """Write measured minus published, "+0.4"; "" unless there are both."""
    return "" if printed is None or miou is None else f"{100 * (miou.mean - printed.miou):+.1f}"


def text_table(results: Results, pick: Pick) -> TextTable:
    """Lay out a row for each recipe, and for each split its mIoU, gain and published figures, if any."""
    printed, logged = ({split for _, split in each} for each in (results.printed, results.logged))
    head = ["recipe"]
    for split in results.grid.splits:
        head += [results.heading(split), "gain"]
        head += ["published", "difference"] if split in printed else []
        head += ["published best", "published last"] if split in logged else []
    rows, runs = [], []
    for recipe in results.recipes:
        row: list[str] = [recipe]
        behind: list[Run | None] = [None]
        for split in results.grid.splits:
            miou = results.miou(recipe, split, pick)
            done = results.runs(recipe, split)
            first = Run(recipe, split, done[0].seed) if done else None
            row += [cell(miou), gain_cell(recipe, results.gain(recipe, split, pick), miou)]
            behind += [first, first]
            if split in printed:
                figure = results.printed.get((recipe, split))
                row += [printed_cell(figure), difference_cell(figure, miou)]
                behind += [None, first]
            if split in logged:
                logs = results.logged.get((recipe, split))
                row += ["", ""] if logs is None else [cell(logs.best), cell(logs.last)]
                behind += [None, None]
        rows.append(tuple(row))
        runs.append(tuple(behind))
    return TextTable(tuple(head), tuple(rows), runs=tuple(runs))


def tidy(results: Results) -> pd.DataFrame:
    """Return a row for each recipe and split; mIoU and gains in [0, 1], empty where nothing was run."""
    rows = []
    for recipe in results.recipes:
        for split in results.grid.splits:
            runs = results.runs(recipe, split)
            entry = results.params.splits[split]
            printed = results.printed.get((recipe, split))
            logs = results.logged.get((recipe, split))
            miou, gain = results.miou(recipe, split, last), results.gain(recipe, split, last)
            rows.append(
                {
                    "recipe": recipe,
                    "method": results.params.recipes[recipe].method,
                    "split": split,
                    "dataset": entry.dataset,
                    "share": entry.share,
                    "ratio": str(results.ratio(split)),
                    "labelled": results.labelled(split),
                    "evaluated_on": results.dataset(split).evaluate,
                    "seeds": len(runs),
                    "seed_list": " ".join(str(run.seed) for run in runs),
                    "labelled_sets": 0 if miou is None else miou.count,
                    **_columns("miou", miou),
                    **_columns("gain", gain),
                    "gain_labelled_sets": 0 if gain is None else gain.count,
                    **_interval(gain),
                    **_columns("best_miou", results.miou(recipe, split, best)),
                    **_columns("best_gain", results.gain(recipe, split, best)),
                    **_figures(results, recipe, split),
                    "published": None if printed is None else printed.miou,
                    "published_in": None if printed is None else printed.source,
                    "published_best": None if logs is None else logs.best.mean,
                    "published_last": None if logs is None else logs.last.mean,
                    "published_trainings": None if logs is None else len(logs.trainings),
                }
            )
    whole = ("labelled", "seeds", "labelled_sets", "gain_labelled_sets", "published_trainings")
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def _columns(name: str, summary: Summary | None) -> dict[str, float | None]:
    return {
        f"{name}_mean": None if summary is None else summary.mean,
        f"{name}_std": None if summary is None else summary.std,
    }


def _figures(results: Results, recipe: str, split: str) -> dict[str, float | None]:
    figures = {name: results.figure(recipe, split, name) for name in results.figure_names()}
    return {f"{name}_mean": None if each is None else each.mean for name, each in figures.items()}


def _interval(gain: Summary | None) -> dict[str, float | None]:
    low, high = (None, None) if gain is None or gain.interval is None else gain.interval
    return {"gain_low": low, "gain_high": high, "gain_smallest": None if gain is None else gain.smallest}


def csv(results: Results) -> str:
    """Write the tidy table as CSV."""
    return tidy(results).to_csv(index=False, float_format="%.6f", lineterminator="\n")


def latex(title: str, table: TextTable) -> str:
    """Write a booktabs table, and its title in a comment."""
    frame = pd.DataFrame(table.rows)
    frame.columns = pd.Index(table.head)
    text = frame.to_latex(
        index=False, escape=True, column_format="".join(side[0] for side in table.aligned())
    )
    for sign, name in (("<", r"\textless{}"), (">", r"\textgreater{}"), ("|", r"\textbar{}")):
        text = text.replace(sign, name)
    text = re.sub(r"(?<=[\s\[])-(?=\d)", "$-$", text).replace("±", r"$\pm$").replace(NO_GAIN, "--")
    return f"% {one_line(title)}\n{text}"


def markdown(results: Results) -> str:
    """Write the whole page of a grid: headline, what it rests on, and the best-on-validation table."""
    parts = [f"# {escape(results.grid.title)}", foot.headline(results)]
    parts += [drawn_as("pipe", text_table(results, last)), listed(foot.notes(results))]
    if said := foot.missing(results):
        parts.append("\n".join(["Not run yet:", "", listed(said)]))
    parts += ["## Best on validation", foot.warning(results), drawn_as("pipe", text_table(results, best))]
    return "\n\n".join(parts) + "\n"


def listed(lines: Iterable[str]) -> str:
    """Write lines as a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def terminal(results: Results) -> str:
    """Write the headline table for a terminal."""
    legend = (
        f"Columns: labelled share (images). Cells: mean ± std (labelled sets). Gain: over {BASELINE}, paired."
    )
    lines = [one_line(results.grid.title), to_plain(foot.headline(results)), legend]
    lines += [to_plain(line) for line in foot.shared_sets(results)]
    lines += ["", drawn_as("simple", text_table(results, last))]
    if said := foot.missing(results):
        lines += ["", "Not run yet:", *(f"  {to_plain(line)}" for line in said)]
    return "\n".join(lines)


def drawn_as(form: str, table: TextTable) -> str:
    """Draw a table in one of tabulate's forms: pipe for Markdown, simple for a terminal."""
    head, *rows = [tuple(map(escape if form == "pipe" else str, row)) for row in (table.head, *table.rows)]
    return tabulate(rows, head, tablefmt=form, disable_numparse=True, colalign=table.aligned())
