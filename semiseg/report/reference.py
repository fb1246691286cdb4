"""Read results/reference/: what papers print, what their authors' training logs hold, and what measures it.

A folder without results/reference/ has no published figures: its tables show what was measured alone.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network, Params, Share
from semiseg.base.paths import RESULTS
from semiseg.base.tree import from_tree, read
from semiseg.report.statistics import Summary, summarise

FOLDER = RESULTS / "reference"
PRINTED = FOLDER / "paper_results.csv"
LOGGED = FOLDER / "peer_logs.csv"
TABLES = FOLDER / "tables.yaml"
PRINTED_COLUMNS = (
    *("table", "dataset", "network", "backbone", "pretraining"),
    *("method", "variant", "ratio", "miou", "source"),
)
LOGGED_COLUMNS = (
    *("dataset", "lists", "labelled", "network", "backbone", "crop", "method"),
    *("evaluation", "validations", "miou_last", "miou_best", "source"),
)

Place = tuple[str, str]
"""A recipe and a split."""

T = TypeVar("T")


@dataclass(frozen=True)
class Printed:
    """A cell of a paper's table."""

    table: str
    dataset: str
    network: tuple[str, str, str]  # head, backbone, pretraining: ("deeplabv3+", "resnet50", "imagenet")
    method: str
    variant: str  # row of an ablation; "" in a main table
    ratio: Fraction  # the labelled share
    miou: float  # in [0, 1]
    source: str

    def fits(self, network: Network) -> bool:
        """Return whether ``network`` is the one that the paper trained."""
        head, backbone, pretraining = self.network
        return (head.replace("+", "plus"), backbone, pretraining) == (
            network.head,
            network.backbone,
            network.weights,
        )


@dataclass(frozen=True)
class Logged:
    """The last and the best validation in the authors' log of one training."""

    dataset: str
    lists: str  # the family of labelled lists
    labelled: str  # a share such as "1/16", a number of images, or "all"
    network: tuple[str, str]  # head, backbone
    crop: int  # pixels
    method: str
    evaluation: str
    last: float  # mIoU in [0, 1]
    best: float
    source: str

    def fits(self, network: Network, share: Share) -> bool:
        """Return whether network and labelled list are those of the log."""
        if self.network != (network.head, network.backbone):
            return False
        if self.labelled == "all":
            return share.ratio == 1
        if self.lists != share.lists:
            return False
        if self.labelled.isdecimal():
            return share.count == int(self.labelled)
        return share.ratio == Fraction(self.labelled)


@dataclass(frozen=True)
class Logs:
    """The logs of a method's trainings on one labelled list with one network."""

    trainings: tuple[Logged, ...]

    @property
    def last(self) -> Summary:
        """mIoU at the last validation, in [0, 1]."""
        return _known(each.last for each in self.trainings)

    @property
    def best(self) -> Summary:
        """mIoU at the validation that scored highest on the evaluation list, in [0, 1]."""
        return _known(each.best for each in self.trainings)


def _known(values: Iterator[float]) -> Summary:
    summary = summarise(values)
    assert summary is not None
    return summary


@dataclass(frozen=True)
class PaperTable:
    """An entry of tables.yaml."""

    title: str
    rows: str  # the value of the column `table` in paper_results.csv
    note: str | None = None
    recipes: Mapping[str, str] = field(default_factory=dict)  # variant -> the recipe that measures it


@dataclass(frozen=True)
class _Tables:
    recipes: Mapping[str, str]
    tables: Mapping[str, PaperTable]
    backbones: Mapping[str, str] = field(default_factory=dict)  # name in peer_logs.csv -> in params.yaml


@dataclass(frozen=True)
class Reference:
    """All published figures."""

    printed: tuple[Printed, ...]  # in the order of paper_results.csv
    logged: tuple[Logged, ...]  # in the order of peer_logs.csv
    recipes: Mapping[str, str]  # method -> the recipe that measures it
    tables: Mapping[str, PaperTable]

    def recipe(self, table: PaperTable, printed: Printed) -> str | None:
        """Return the recipe that measures a cell of ``table``; None for a published figure only."""
        return table.recipes.get(printed.variant) if printed.variant else self.recipes.get(printed.method)

    def printed_beside(self, params: Params, grid: str) -> dict[Place, Printed]:
        """Return the main tables' figures with the dataset, share and network of a cell of ``grid``."""
        found: dict[Place, Printed] = {}
        for cell, dataset, network, share in _cells(params, grid):
            for each in self.printed:
                if (
                    not each.variant
                    and self.recipes.get(each.method) == cell[0]
                    and (each.dataset, each.ratio) == (dataset, share.ratio)
                    and each.fits(network)
                ):
                    found.setdefault(cell, each)
        return found

    def logged_beside(self, params: Params, grid: str) -> dict[Place, Logs]:
        """Return the logs with the dataset, labelled list and network of a cell of ``grid``."""
        found = {}
        for cell, dataset, network, share in _cells(params, grid):
            logs = tuple(
                each
                for each in self.logged
                if self.recipes.get(each.method) == cell[0]
                and each.dataset == dataset
                and each.fits(network, share)
            )
            if logs:
                found[cell] = Logs(logs)
        return found

    def ingredients(self, params: Params, grid: str) -> dict[str, Any]:
        """Return all published figures that the table of ``grid`` shows, as plain data."""
        printed, logged = self.printed_beside(params, grid), self.logged_beside(params, grid)
        beside: dict[str, Any] = {
            "printed": {"/".join(cell): asdict(figure) for cell, figure in printed.items()},
            "logged": {"/".join(cell): asdict(figures) for cell, figures in logged.items()},
        }
        if grid not in self.tables:
            return beside
        table = self.tables[grid]
        rows = [asdict(each) for each in self.printed if each.table == table.rows]
        return {**beside, "table": asdict(table), "rows": rows, "recipes": dict(self.recipes)}


def _cells(params: Params, grid: str) -> Iterator[tuple[Place, str, Network, Share]]:
    """Yield every cell of a grid, with the dataset, the network and the share of its split."""
    for recipe in params.grids[grid].recipes:
        for split in params.grids[grid].splits:
            entry = params.splits[split]
            network = params.protocols[entry.protocol].network
            yield (recipe, split), entry.dataset, network, params.share(split)


def load() -> Reference:
    """Read results/reference/. Raises UserError naming the line or key that is wrong."""
    if not FOLDER.exists():
        return Reference((), (), {}, {})
    named: _Tables = from_tree(_Tables, read(TABLES), str(TABLES))
    printed = _rows(PRINTED, PRINTED_COLUMNS, _printed)
    logged = tuple(
        replace(each, network=(head, named.backbones.get(backbone, backbone)))
        for each in _rows(LOGGED, LOGGED_COLUMNS, _logged)
        for head, backbone in [each.network]
    )
    for name, table in named.tables.items():
        variants = {each.variant for each in printed if each.table == table.rows}
        if not variants:
            raise UserError(f"{TABLES}: tables: {name}: rows: {PRINTED} has no table '{table.rows}'")
        if unknown := sorted(set(table.recipes) - variants):
            raise UserError(f"{TABLES}: tables: {name}: recipes: {PRINTED} has no variant '{unknown[0]}'")
    return Reference(printed, logged, named.recipes, named.tables)


def _rows(path: Path, columns: tuple[str, ...], convert: Callable[[Mapping[str, str]], T]) -> tuple[T, ...]:
    """Read a CSV file. Raises UserError naming the line that ``convert`` refuses with a ValueError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != columns:
                raise UserError(f"{path}: the columns are not {', '.join(columns)}; restore it from git")
            rows = []
            for row in reader:
                try:
                    rows.append(convert(row))
                except (TypeError, ValueError, ZeroDivisionError) as error:
                    raise UserError(f"{path}: line {reader.line_num}: {error}; restore it from git") from None
            return tuple(rows)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; restore it from git") from None


def _printed(row: Mapping[str, str]) -> Printed:
    ratio = Fraction(1) if row["ratio"] == "full" else Fraction(row["ratio"])
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio {row['ratio']} is out of range")
    return Printed(
        table=row["table"],
        dataset=row["dataset"],
        network=(row["network"], row["backbone"], row["pretraining"]),
        method=row["method"],
        variant=row["variant"],
        ratio=ratio,
        miou=_miou(row["miou"]),
        source=row["source"],
    )


def _logged(row: Mapping[str, str]) -> Logged:
    if row["labelled"] != "all" and not row["labelled"].isdecimal():
        Fraction(row["labelled"])
    return Logged(
        dataset=row["dataset"],
        lists=row["lists"],
        labelled=row["labelled"],
        network=(row["network"], row["backbone"]),
        crop=int(row["crop"]),
        method=row["method"],
        evaluation=row["evaluation"],
        last=_miou(row["miou_last"]),
        best=_miou(row["miou_best"]),
        source=row["source"],
    )


def _miou(percent: str) -> float:
    value = float(percent)
    if not 0 <= value <= 100:
        raise ValueError(f"mIoU {percent} is out of range")
    return value / 100
