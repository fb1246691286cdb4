"""The papers' tables: every printed row, and what the runs of the grid of that name measured for it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pandas as pd

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import Grid, Params
from semiseg.base.paths import RESULTS, Run
from semiseg.evaluation.record import Record
from semiseg.report import published, tables
from semiseg.report.collect import Summary, command, finished, share, summarise
from semiseg.report.published import PaperTable, Printed, Reference
from semiseg.report.tables import TextTable


@dataclass(frozen=True)
class Cell:
    """A printed figure and the runs that measure it, finished or not."""

    printed: Printed
    runs: tuple[Run, ...]  # none where the grid has no split like the paper's

    @property
    def split(self) -> str | None:
        return self.runs[0].split if self.runs else None


@dataclass(frozen=True)
class Row:
    """A row of the paper, once for each protocol that measures it."""

    name: str  # the variant, or the method
    dataset: str
    network: tuple[str, str, str]
    recipe: str | None  # None for a published figure only: the grid's table has no recipe that measures it
    protocol: str | None  # None where there are no runs
    cells: Mapping[Fraction, Cell]


@dataclass(frozen=True)
class Paper:
    """A table, its rows in the paper's order and the finished runs."""

    name: str
    table: PaperTable
    params: Params
    rows: tuple[Row, ...]
    records: Mapping[Run, Record]

    @property
    def ratios(self) -> list[Fraction]:
        """Ascending."""
        return sorted({ratio for row in self.rows for ratio in row.cells})

    @property
    def runs(self) -> list[Run]:
        """Those that measure a cell, finished or not, each once."""
        return _measuring(self.rows)

    def finished(self, cell: Cell) -> list[Record]:
        """By seed."""
        return [self.records[run] for run in cell.runs if run in self.records]

    def measured(self, cell: Cell) -> Summary | None:
        """mIoU in [0, 1] at the last step over seeds."""
        return summarise([each.miou for each in self.finished(cell)])


def collect(params: Params, name: str) -> Paper:
    """The table ``name`` of results/reference/tables.yaml.

    Its runs are those in the table of the grid ``name``; where params.yaml has no such grid, every row is a
    published figure only. Raises UserError for an unknown table, and for a record of another configuration.
    """
    reference = published.load()
    if name not in reference.tables:
        known = ", ".join(reference.tables) or "none"
        raise UserError(f"{published.TABLES}: tables: there is no '{name}'; there are {known}")
    table = reference.tables[name]
    rows = tuple(_rows(params, params.grids.get(name), reference, table))
    return Paper(name, table, params, rows, finished(params, _measuring(rows)))


def _measuring(rows: Iterable[Row]) -> list[Run]:
    """The runs that measure ``rows``, each once."""
    return list(dict.fromkeys(run for row in rows for cell in row.cells.values() for run in cell.runs))


def _rows(params: Params, grid: Grid | None, reference: Reference, table: PaperTable) -> Iterable[Row]:
    printed: dict[tuple[str, tuple[str, str, str], str], list[Printed]] = {}
    for each in reference.figures:
        if each.table == table.rows:
            printed.setdefault((each.dataset, each.network, each.variant or each.method), []).append(each)
    for (dataset, network, name), figures in printed.items():
        recipe = reference.recipe(table, figures[0])
        if grid is None or recipe not in grid.recipes:
            recipe = None
        runs = {} if grid is None or recipe is None else _runs(params, grid, recipe, figures)
        for protocol in dict.fromkeys(protocol for protocol, _ in runs) or [None]:
            cells = {each.ratio: Cell(each, runs.get((protocol, each.ratio), ())) for each in figures}
            yield Row(name, dataset, network, recipe, protocol, cells)


def _runs(
    params: Params, grid: Grid, recipe: str, figures: Iterable[Printed]
) -> dict[tuple[str | None, Fraction], tuple[Run, ...]]:
    """The runs that measure each figure, by protocol and share, in the order of the grid's splits."""
    found: dict[tuple[str | None, Fraction], tuple[Run, ...]] = {}
    for split in grid.splits:
        entry = params.splits[split]
        network = params.protocols[entry.protocol].network
        for each in figures:
            if (each.dataset, each.ratio) == (entry.dataset, params.share(split).ratio) and each.fits(
                network
            ):
                place = (entry.protocol, each.ratio)
                if place in found:
                    raise UserError(
                        f"params.yaml: grids: {found[place][0].split} and {split} both measure {recipe} on "
                        f"{share(each.ratio)} of {each.dataset} in one paper's table; leave one of them out"
                    )
                found[place] = tuple(Run(recipe, split, seed) for seed in grid.seeds)
    return found


def write(paper: Paper) -> list[Path]:
    """Write results/tables/<name>.csv, .md and .tex; return their paths."""
    stem = RESULTS / "tables" / paper.name
    texts = {
        stem.with_suffix(".csv"): csv(paper),
        stem.with_suffix(".md"): markdown(paper),
        stem.with_suffix(".tex"): tables.latex(text_table(paper)),
    }
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def text_table(paper: Paper) -> TextTable:
    """The paper's rows; for each labelled share the published figure, the measured one, the difference."""
    names = ["row" if any(_variants(paper)) else "method"]
    networks = len({row.network for row in paper.rows}) > 1
    rows_of = Counter((row.dataset, row.network, row.name) for row in paper.rows)
    protocols = max(rows_of.values()) > 1  # where a row stands more than once, by what it was measured under
    names += ["network"] * networks + ["measured under"] * protocols
    head = list(names)
    for ratio in paper.ratios:
        head += [f"{share(ratio)} published", "measured", "difference"]
    rows = []
    for row in paper.rows:
        texts = [row.name]
        texts += [network_name(row.network)] * networks + [row.protocol or ""] * protocols
        for ratio in paper.ratios:
            cell = row.cells.get(ratio)
            printed = None if cell is None else cell.printed
            miou = None if cell is None else paper.measured(cell)
            texts += [
                tables.published_cell(printed),
                tables.cell(miou),
                tables.difference_cell(printed, miou),
            ]
        rows.append(tuple(texts))
    return TextTable(tuple(head), tuple(rows), names=len(names))


def network_name(network: tuple[str, str, str]) -> str:
    """ "deeplabv3+, resnet50 (imagenet)": head, backbone, pretraining."""
    head, backbone, pretraining = network
    return f"{head}, {backbone} ({pretraining})"


def _variants(paper: Paper) -> list[str]:
    return [cell.printed.variant for row in paper.rows for cell in row.cells.values()]


def csv(paper: Paper) -> str:
    """A row for each printed figure and protocol; mIoU in [0, 1], empty where nothing was run."""
    rows = []
    for row in paper.rows:
        for cell in row.cells.values():
            printed, miou, records = cell.printed, paper.measured(cell), paper.finished(cell)
            rows.append(
                {
                    "dataset": printed.dataset,
                    "network": printed.network[0],
                    "backbone": printed.network[1],
                    "pretraining": printed.network[2],
                    "method": printed.method,
                    "variant": printed.variant,
                    "ratio": str(printed.ratio),
                    "published": printed.miou,
                    "published_in": printed.source,
                    "recipe": row.recipe,
                    "protocol": row.protocol,
                    "split": cell.split,
                    "seeds": len(records),
                    "seed_list": " ".join(str(record.seed) for record in records),
                    "miou_mean": None if miou is None else miou.mean,
                    "miou_std": None if miou is None else miou.std,
                    "difference": None if miou is None else miou.mean - printed.miou,
                }
            )
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6f", lineterminator="\n")


def markdown(paper: Paper) -> str:
    """The table, what its cells are, and how to fill the empty ones."""
    parts = [f"# {paper.table.title}", headline(paper), tables.drawn_as("pipe", text_table(paper))]
    parts += ["\n".join(f"- {note}" for note in notes(paper))]
    said = missing(paper)
    if said:
        parts += ["\n".join(["Not run yet:", "", *(f"- {line}" for line in said)])]
    return "\n\n".join(parts) + "\n"


def terminal(paper: Paper) -> str:
    """The table for a terminal."""
    lines = [
        paper.table.title,
        tables.plain(headline(paper)),
        "",
        tables.drawn_as("simple", text_table(paper)),
    ]
    said = missing(paper)
    if said:
        lines += ["", "Not run yet:", *(f"  {tables.plain(line)}" for line in said)]
    return "\n".join(lines)


def headline(paper: Paper) -> str:
    """What the numbers are, and of which network where it is one."""
    sources = ", ".join(
        dict.fromkeys(cell.printed.source for row in paper.rows for cell in row.cells.values())
    )
    networks = {row.network for row in paper.rows}
    network = f" {network_name(next(iter(networks)))}." if len(networks) == 1 else ""
    return f"mIoU (%): **published** ({sources}) and **measured** here at the last step.{network}"


def notes(paper: Paper) -> list[str]:
    """How to read a cell, the protocols that measured it, and what cannot be measured."""
    said = [
        "Columns: labelled share of the training set. Published: under the paper's own settings. Measured: "
        "mean ± standard deviation over seeds (number of seeds), under the row's protocol below. "
        "Difference: measured minus published. An empty published cell was not seen in print; an empty "
        "measured one was not run."
    ]
    said += [] if paper.table.note is None else [paper.table.note]
    for name in dict.fromkeys(row.protocol for row in paper.rows if row.protocol is not None):
        said.append(tables.describe(name, paper.params.protocols[name]))
    others = dict.fromkeys(row.name for row in paper.rows if row.recipe is None)
    if others:
        said.append(f"Published figures only: {', '.join(others)}.")
    said += [f"No split of the grid measures {cells}." for cells in _without_runs(paper)]
    return [*said, *tables.origin(paper.records.values())]


def _without_runs(paper: Paper) -> list[str]:
    """ "cmb with deeplabv2, resnet101 (coco) on voc, 1/8, full", of the rows that are not others'."""
    lacking: dict[tuple[str, str, tuple[Fraction, ...]], list[str]] = {}
    for row in paper.rows:
        ratios = tuple(sorted(ratio for ratio, cell in row.cells.items() if not cell.runs))
        if row.recipe is not None and ratios:
            lacking.setdefault((row.dataset, network_name(row.network), ratios), []).append(row.name)
    return [
        f"{', '.join(names)} with {network} on {dataset}, {', '.join(map(share, ratios))}"
        for (dataset, network, ratios), names in lacking.items()
    ]


def missing(paper: Paper) -> list[str]:
    """Return what was not run and the command that runs it, as at most one line."""
    wanted = [run for run in paper.runs if run not in paper.records]
    return [f"{tables.grouped(wanted)}. Run `{command(paper.name)}`"] if wanted else []
