"""Tables of a grid: CSV for programs, Markdown and LaTeX for people, plain text for a terminal."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from semiseg.base.files import write_text
from semiseg.base.parameters import Protocol
from semiseg.base.paths import RESULTS, Run
from semiseg.evaluation.record import Record
from semiseg.report.collect import BASELINE, Pick, Results, Summary, best, command, last
from semiseg.report.published import Printed

NO_GAIN = "–"  # the baseline's own gain; an empty cell means that nothing was run
CELLS_NAMED = 6  # of those that were not run; the empty cells of the table show the others


@dataclass(frozen=True)
class TextTable:
    """Text in rows and columns; the first ``names`` columns name the rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1

    def aligned(self) -> tuple[str, ...]:
        """left or right for each column."""
        return ("left",) * self.names + ("right",) * (len(self.head) - self.names)


def write(results: Results) -> list[Path]:
    """Write results/tables/<grid>.csv, .md and .tex; return their paths."""
    stem = RESULTS / "tables" / results.name
    texts = {
        stem.with_suffix(".csv"): csv(results),
        stem.with_suffix(".md"): markdown(results),
        stem.with_suffix(".tex"): latex(text_table(results, last)),
    }
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def cell(summary: Summary | None) -> str:
    """ "61.3 ± 0.4 (3)": per cent, standard deviation, seeds; empty for what was not run."""
    if summary is None:
        return ""
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread} ({summary.count})"


def gain_cell(recipe: str, gain: Summary | None, miou: Summary | None) -> str:
    """ "+2.1 [+1.7, +2.6]", of two seeds "+2.1 ± 0.3"; and their number where it is not the cell's own."""
    if gain is None:
        return NO_GAIN if recipe == BASELINE and miou is not None else ""
    spread = "" if gain.std is None else f" ± {100 * gain.std:.1f}"
    if gain.interval is not None:
        spread = f" [{100 * gain.interval[0]:+.1f}, {100 * gain.interval[1]:+.1f}]"
    count = "" if miou is not None and miou.count == gain.count else f" ({gain.count})"
    return f"{100 * gain.mean:+.1f}{spread}{count}"


def published_cell(printed: Printed | None) -> str:
    """ "71.3"; empty for what was not seen in print."""
    return "" if printed is None else f"{100 * printed.miou:.1f}"


def difference_cell(printed: Printed | None, miou: Summary | None) -> str:
    """ "+0.4": measured minus published; empty unless there are both."""
    return "" if printed is None or miou is None else f"{100 * (miou.mean - printed.miou):+.1f}"


def text_table(results: Results, pick: Pick) -> TextTable:
    """Rows recipes; for each split its mIoU, the gain over the baseline and what papers print, if they do."""
    printed = {split for _, split in results.published}
    head = ["recipe"]
    for split in results.grid.splits:
        head += [results.heading(split), "gain", *(("published", "difference") if split in printed else ())]
    rows = []
    for recipe in results.recipes:
        row = [recipe]
        for split in results.grid.splits:
            miou = results.miou(recipe, split, pick)
            row += [cell(miou), gain_cell(recipe, results.gain(recipe, split, pick), miou)]
            if split in printed:
                figure = results.published.get((recipe, split))
                row += [published_cell(figure), difference_cell(figure, miou)]
        rows.append(tuple(row))
    return TextTable(tuple(head), tuple(rows))


def tidy(results: Results) -> pd.DataFrame:
    """One row for each recipe and split; mIoU and gains in [0, 1], empty where nothing was run."""
    rows = []
    for recipe in results.recipes:
        for split in results.grid.splits:
            runs = results.runs(recipe, split)
            declared = results.params.splits[split]
            printed = results.published.get((recipe, split))
            rows.append(
                {
                    "recipe": recipe,
                    "method": results.params.recipes[recipe].method,
                    "split": split,
                    "dataset": declared.dataset,
                    "ratio": str(results.params.share(split).ratio),
                    "labelled": results.labelled(split),
                    "evaluated_on": results.dataset(split).evaluate,
                    "seeds": len(runs),
                    "seed_list": " ".join(str(run.seed) for run in runs),
                    **_columns("miou", results.miou(recipe, split, last)),
                    **_columns("gain", results.gain(recipe, split, last), count=True),
                    **_interval(results.gain(recipe, split, last)),
                    **_columns("best_miou", results.miou(recipe, split, best)),
                    **_columns("best_gain", results.gain(recipe, split, best)),
                    "published": None if printed is None else printed.miou,
                    "published_in": None if printed is None else printed.source,
                }
            )
    frame = pd.DataFrame(rows)
    return frame.astype({"labelled": "Int64", "seeds": "Int64", "gain_seeds": "Int64"})


def _columns(name: str, summary: Summary | None, count: bool = False) -> dict[str, float | int | None]:
    columns: dict[str, float | int | None] = {
        f"{name}_mean": None if summary is None else summary.mean,
        f"{name}_std": None if summary is None else summary.std,
    }
    if count:
        columns[f"{name}_seeds"] = 0 if summary is None else summary.count
    return columns


def _interval(gain: Summary | None) -> dict[str, float | None]:
    low, high = (None, None) if gain is None or gain.interval is None else gain.interval
    return {"gain_low": low, "gain_high": high}


def csv(results: Results) -> str:
    return tidy(results).to_csv(index=False, float_format="%.6f", lineterminator="\n")


def latex(table: TextTable) -> str:
    """A booktabs table."""
    frame = pd.DataFrame(table.rows)
    frame.columns = pd.Index(table.head)
    text = frame.to_latex(
        index=False, escape=True, column_format="".join(side[0] for side in table.aligned())
    )
    return re.sub(r"(?<=[\s\[])-(?=\d)", "$-$", text).replace("±", r"$\pm$").replace(NO_GAIN, "--")


def markdown(results: Results) -> str:
    """The whole page of a grid: headline, what it rests on, and the best-on-validation table."""
    parts = [f"# {results.grid.title}", headline(results), drawn_as("pipe", text_table(results, last))]
    parts += ["\n".join(f"- {note}" for note in notes(results))]
    said = missing(results)
    if said:
        parts += ["\n".join(["Not run yet:", "", *(f"- {line}" for line in said)])]
    parts += ["## Best on validation", warning(results), drawn_as("pipe", text_table(results, best))]
    return "\n\n".join(parts) + "\n"


def terminal(results: Results) -> str:
    """The headline table for a terminal."""
    table = text_table(results, last)
    drawn = drawn_as("simple", table)
    legend = f"Columns: labelled share (images). Cells: mean ± std (seeds). Gain: over {BASELINE}, paired."
    lines = [results.grid.title, plain(headline(results)), legend, "", drawn]
    said = missing(results)
    if said:
        lines += ["", "Not run yet:", *(f"  {plain(line)}" for line in said)]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Without Markdown's marks."""
    return text.replace("**", "").replace("`", "")


def drawn_as(form: str, table: TextTable) -> str:
    """In one of tabulate's forms: pipe for Markdown, simple for a terminal."""
    return tabulate(table.rows, table.head, tablefmt=form, disable_numparse=True, colalign=table.aligned())


def headline(results: Results) -> str:
    """What the numbers are."""
    return f"mIoU (%) on the {_lists(results)} list at the **last step**, whole images."


def notes(results: Results) -> list[str]:
    """How to read a cell, what the figures are compared with, and what they rest on."""
    return [reading(results), *compared(results), *setting(results), *origin(results.records.values())]


def reading(results: Results) -> str:
    """How to read a cell."""
    return (
        "Columns: labelled share of the training set (labelled images). Cells: mean ± standard deviation "
        f"over seeds (number of seeds). Gain: difference to {BASELINE} on the same split and seeds; from "
        "three seeds on with its 95 % interval by bootstrap, which so few make too short. An empty cell was "
        "not run."
    )


def compared(results: Results) -> list[str]:
    """Where the published figures are from."""
    if not results.published:
        return []
    sources = ", ".join(dict.fromkeys(each.source for each in results.published.values()))
    return [
        f"Published: {sources}, for the same network and labelled share under the paper's own settings. "
        "Difference: measured minus published; a figure that was not seen in print is an empty cell."
    ]


def setting(results: Results) -> list[str]:
    """Network, steps and batches of each protocol, and which network is scored."""
    notes = [describe(name, protocol) for name, protocol in results.protocols().items()]
    scored: dict[str, list[str]] = {}
    for run, record in results.records.items():
        recipes = scored.setdefault(record.headline, [])
        if run.recipe not in recipes:
            recipes.append(run.recipe)
    if len(scored) > 1:
        said = "; ".join(f"the {headline} of {', '.join(scored[headline])}" for headline in sorted(scored))
        notes.append(f"Scored network: {said}.")
    return notes


def describe(name: str, protocol: Protocol) -> str:
    network = protocol.network
    return (
        f"Protocol `{name}`: {network.head} on {network.backbone} (weights: {network.weights}, output stride "
        f"{network.output_stride}), {protocol.steps:,} steps, batch {protocol.labelled_batch} labelled + "
        f"{protocol.unlabelled_batch} unlabelled, crop {protocol.geometry.crop}, {protocol.precision}."
    )


def origin(records: Iterable[Record]) -> list[str]:
    """Revisions, devices and days of the runs in a table."""
    provenances = [record.provenance for record in records]
    if not provenances:
        return []
    return [
        f"Revision: {_counted(f'`{each.revision}`' for each in provenances)}.",
        f"Device: {_counted(each.device for each in provenances)}.",
        f"Date (UTC): {_counted(each.finished[:10] for each in provenances)}.",
    ]


def missing(results: Results) -> list[str]:
    """Return what was not run and the command that runs it, as at most one line."""
    runs = results.missing()
    return [f"{grouped(runs)}. Run `{command(results.name)}`"] if runs else []


def warning(results: Results) -> str:
    """What the second table is, and why it is not the headline."""
    return (
        "Not the headline: each run at the step whose network scored highest on the val list, scored on "
        f"the {_lists(results)} list. Picking a checkpoint with labels that training was not given flatters "
        "every method."
    )


def _lists(results: Results) -> str:
    lists = sorted({results.dataset(split).evaluate for split in results.grid.splits})
    return " or ".join(lists)


def _counted(values: Iterable[str]) -> str:
    """The distinct values, with the number of runs of each where they differ."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({runs_of(counts[value])})" for value in sorted(counts))


def runs_of(count: int) -> str:
    """ "1 run", "2 runs"."""
    return f"{count} run" if count == 1 else f"{count} runs"


def grouped(runs: list[Run]) -> str:
    """ "3 runs: cmb on voc-1_8 (seeds 0, 1), dcc on …", cell by cell, cut short where there are many."""
    cells: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        cells.setdefault((run.recipe, run.split), []).append(run.seed)
    said = [
        f"{recipe} on {split} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))})"
        for (recipe, split), seeds in cells.items()
    ]
    if len(said) > CELLS_NAMED:
        said = [*said[:CELLS_NAMED], f"and {len(said) - CELLS_NAMED} more cells"]
    return f"{runs_of(len(runs))}: {', '.join(said)}"
