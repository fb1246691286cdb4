"""The papers' tables: every printed row, and what the runs of the grid of that name measured."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pandas as pd

from semiseg.base.errors import UserError
from semiseg.base.parameters import Grid, Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import foot, reference, tables, trust
from semiseg.report.collect import over_sets
from semiseg.report.markup import escape, one_line, to_plain
from semiseg.report.reference import PaperTable, Printed, Reference
from semiseg.report.statistics import Summary
from semiseg.report.tables import TextTable
from semiseg.report.trust import Records, command


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
    """A paper's table: its rows in their order, and the finished runs."""

    name: str
    table: PaperTable
    params: Params
    rows: tuple[Row, ...]
    records: Mapping[Run, Record]

    @property
    def ratios(self) -> list[Fraction]:
        """Labelled shares, ascending."""
        return sorted({ratio for row in self.rows for ratio in row.cells})

    @property
    def runs(self) -> list[Run]:
        """Return the runs that measure a cell, finished or not, each once."""
        runs = (run for row in self.rows for cell in row.cells.values() for run in cell.runs)
        return list(dict.fromkeys(runs))

    def finished(self, cell: Cell) -> list[Record]:
        """Return a cell's finished runs, by seed."""
        return [self.records[run] for run in cell.runs if run in self.records]

    def measured(self, cell: Cell) -> Summary | None:
        """Summarise a cell's mIoU at the last step, in [0, 1]."""
        return over_sets((each, each.miou) for each in self.finished(cell))


def collect(params: Params, name: str) -> Paper:
    """Read the table ``name`` of results/reference/tables.yaml and the records that measure it.

    Its runs are those of the grid ``name``; if params.yaml has no such grid, every row is a published figure
    only. Raises UserError for an unknown table, and for a record that trust.read refuses.
    """
    paper = outline(params, name, reference.load())
    return gather(paper, trust.read(params, paper.runs))


def outline(params: Params, name: str, published: Reference) -> Paper:
    """Return the table ``name`` without records. Raises UserError for an unknown table."""
    if name not in published.tables:
        known = ", ".join(published.tables) or "none"
        raise UserError(f"{reference.TABLES}: tables: there is no '{name}'; there are {known}")
    table = published.tables[name]
    return Paper(name, table, params, tuple(_rows(params, params.grids.get(name), published, table)), {})


def gather(paper: Paper, records: Records) -> Paper:
    """Return ``paper`` with those of ``records`` that measure it. Raises UserError if one was refused."""
    records.check(paper.runs)
    accepted = {run: records.accepted[run] for run in paper.runs if run in records.accepted}
    return dataclasses.replace(paper, records=accepted)


def _rows(params: Params, grid: Grid | None, published: Reference, table: PaperTable) -> Iterable[Row]:
    printed: dict[tuple[str, tuple[str, str, str], str], list[Printed]] = {}
    for each in published.printed:
        if each.table == table.rows:
            printed.setdefault((each.dataset, each.network, each.variant or each.method), []).append(each)
    for (dataset, network, name), figures in printed.items():
        recipe = published.recipe(table, figures[0])
        if grid is None or recipe not in grid.recipes:
            recipe = None
        runs = {} if grid is None or recipe is None else _runs(params, grid, recipe, figures)
        for protocol in dict.fromkeys(protocol for protocol, _ in runs) or [None]:
            cells = {each.ratio: Cell(each, runs.get((protocol, each.ratio), ())) for each in figures}
            yield Row(name, dataset, network, recipe, protocol, cells)


def _runs(
    params: Params, grid: Grid, recipe: str, figures: Iterable[Printed]
) -> dict[tuple[str | None, Fraction], tuple[Run, ...]]:
    """Return the runs that measure each figure, by protocol and share, in the order of the grid's splits."""
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
    text = tables.latex(paper.table.title, text_table(paper))
    return tables.write_files(paper.name, csv(paper), markdown(paper), text)


def text_table(paper: Paper) -> TextTable:
    """Lay out the paper's rows, and for each share the published figure, the measured one, the difference."""
    names = ["row" if any(_variants(paper)) else "method"]
    networks = len({row.network for row in paper.rows}) > 1
    rows_of = Counter((row.dataset, row.network, row.name) for row in paper.rows)
    protocols = max(rows_of.values()) > 1  # where a row stands more than once, by what it was measured under
    names += ["network"] * networks + ["measured under"] * protocols
    head = list(names)
    for ratio in paper.ratios:
        head += [f"{share(ratio)} published", "measured", "difference"]
    rows, runs = [], []
    for row in paper.rows:
        texts = [row.name]
        texts += [network_name(row.network)] * networks + [row.protocol or ""] * protocols
        behind: list[Run | None] = [None] * len(texts)
        for ratio in paper.ratios:
            cell = row.cells.get(ratio)
            printed = None if cell is None else cell.printed
            miou = None if cell is None else paper.measured(cell)
            texts += [
                tables.printed_cell(printed),
                tables.cell(miou),
                tables.difference_cell(printed, miou),
            ]
            finished = () if cell is None else (run for run in cell.runs if run in paper.records)
            first = next(iter(finished), None)
            behind += [None, first, first]
        rows.append(tuple(texts))
        runs.append(tuple(behind))
    return TextTable(tuple(head), tuple(rows), len(names), tuple(runs))


def network_name(network: tuple[str, str, str]) -> str:
    """Write head, backbone and pretraining: "deeplabv3+, resnet50 (imagenet)"."""
    head, backbone, pretraining = network
    return f"{head}, {backbone} ({pretraining})"


def _variants(paper: Paper) -> list[str]:
    return [cell.printed.variant for row in paper.rows for cell in row.cells.values()]


def csv(paper: Paper) -> str:
    """Write a row for each printed figure and protocol; mIoU in [0, 1], empty where nothing was run."""
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
    """Write the table, what its cells are, and how to fill the empty ones."""
    parts = [f"# {escape(paper.table.title)}", headline(paper)]
    parts += [tables.drawn_as("pipe", text_table(paper)), tables.listed(notes(paper))]
    if said := missing(paper):
        parts.append("\n".join(["Not run yet:", "", tables.listed(said)]))
    return "\n\n".join(parts) + "\n"


def terminal(paper: Paper) -> str:
    """Write the table for a terminal."""
    drawn = tables.drawn_as("simple", text_table(paper))
    lines = [one_line(paper.table.title), to_plain(headline(paper)), "", drawn]
    if said := missing(paper):
        lines += ["", "Not run yet:", *(f"  {to_plain(line)}" for line in said)]
    return "\n".join(lines)


def headline(paper: Paper) -> str:
    """Say what the numbers are, and name the network if there is one."""
    sources = ", ".join(
        dict.fromkeys(cell.printed.source for row in paper.rows for cell in row.cells.values())
    )
    networks = {row.network for row in paper.rows}
    network = f" {escape(network_name(next(iter(networks))))}." if len(networks) == 1 else ""
    return f"mIoU (%): **published** ({escape(sources)}) and **measured** here at the last step.{network}"


def notes(paper: Paper) -> list[str]:
    """Say how to read a cell, which protocols measured it, and what cannot be measured."""
    said = [
        "Columns: labelled share of the training set. Published: under the paper's own settings. Measured: "
        "mean ± standard deviation over labelled sets (their number), under the row's protocol below. "
        "Difference: measured minus published. An empty published cell was not seen in print; an empty "
        "measured one was not run."
    ]
    said += [] if paper.table.note is None else [escape(paper.table.note)]
    for name in dict.fromkeys(row.protocol for row in paper.rows if row.protocol is not None):
        said.append(foot.describe(paper.params, name))
    others = dict.fromkeys(row.name for row in paper.rows if row.recipe is None)
    if others:
        said.append(f"Published figures only: {escape(', '.join(others))}.")
    said += [f"No split of the grid measures {escape(cells)}." for cells in unmeasured(paper)]
    return [*said, *foot.origin(paper.records.values())]


def unmeasured(paper: Paper) -> list[str]:
    """Name the cells of measured methods without a run: "cmb with deeplabv2, … on voc, 1/8, full"."""
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
    return [f"{foot.grouped(wanted)}. Run `{command(paper.name)}`"] if wanted else []


def share(ratio: Fraction) -> str:
    """Write a labelled share as papers do: "1/8", or "full"."""
    return "full" if ratio == 1 else str(ratio)
