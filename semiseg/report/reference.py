"""results/reference/: what the papers print, and which recipes measure it.

A folder without results/reference/ has no published figures: its tables show what was measured alone.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import yaml

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network, Params
from semiseg.base.paths import RESULTS
from semiseg.base.tree import from_tree

FIGURES = RESULTS / "reference" / "paper_results.csv"
TABLES = RESULTS / "reference" / "tables.yaml"
COLUMNS = (
    *("table", "dataset", "network", "backbone", "pretraining"),
    *("method", "variant", "ratio", "miou", "source"),
)


@dataclass(frozen=True)
class Printed:
    """A cell of a paper's table."""

    table: str
    dataset: str
    network: tuple[str, str, str]  # head, backbone, pretraining: ("deeplabv3+", "resnet50", "imagenet")
    method: str
    variant: str  # of an ablation; "" in a main table
    ratio: Fraction  # the labelled share
    miou: float  # in [0, 1]
    source: str

    def fits(self, network: Network) -> bool:
        """Whether ``network`` is the one that the paper trained."""
        head, backbone, pretraining = self.network
        return (head.replace("+", "plus"), backbone, pretraining) == (
            network.head,
            network.backbone,
            network.weights,
        )


@dataclass(frozen=True)
class PaperTable:
    """One of tables.yaml."""

    title: str
    rows: str  # the value of the column `table` in paper_results.csv
    note: str | None = None
    recipes: Mapping[str, str] = field(default_factory=dict)  # variant -> the recipe that measures it


@dataclass(frozen=True)
class _Tables:
    recipes: Mapping[str, str]
    tables: Mapping[str, PaperTable]


@dataclass(frozen=True)
class Reference:
    figures: tuple[Printed, ...]  # in the order of paper_results.csv
    recipes: Mapping[str, str]  # method -> the recipe that measures it
    tables: Mapping[str, PaperTable]

    def recipe(self, table: PaperTable, printed: Printed) -> str | None:
        """The recipe that measures a cell of ``table``; None for what is a published figure only."""
        return table.recipes.get(printed.variant) if printed.variant else self.recipes.get(printed.method)

    def numbers(self, name: str) -> dict[str, Any]:
        """All that decides the paper's table ``name``; nothing for a grid that is none."""
        if name not in self.tables:
            return {}
        table = self.tables[name]
        figures = [asdict(each) for each in self.figures if each.table == table.rows]
        return {"table": asdict(table), "figures": figures, "recipes": dict(self.recipes)}

    def beside(
        self, params: Params, recipes: Sequence[str], splits: Sequence[str]
    ) -> dict[tuple[str, str], Printed]:
        """(recipe, split) -> the figure of a main table with the split's dataset, share and network."""
        found: dict[tuple[str, str], Printed] = {}
        for split in splits:
            entry = params.splits[split]
            network = params.protocols[entry.protocol].network
            for each in self.figures:
                recipe = None if each.variant else self.recipes.get(each.method)
                alike = (each.dataset, each.ratio) == (
                    entry.dataset,
                    params.share(split).ratio,
                ) and each.fits(network)
                if recipe is not None and recipe in recipes and alike:
                    found.setdefault((recipe, split), each)
        return found


def load() -> Reference:
    """Read results/reference/. Raises UserError naming the line or key that is wrong."""
    if not FIGURES.exists() and not TABLES.exists():
        return Reference((), {}, {})
    try:
        tree = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
        with FIGURES.open(encoding="utf-8", newline="") as file:
            figures = _figures(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not found; restore it from git") from None
    except yaml.YAMLError as error:
        raise UserError(f"{TABLES}: not YAML: {' '.join(str(error).split())}") from None
    named: _Tables = from_tree(_Tables, tree, str(TABLES))
    for name, table in named.tables.items():
        of_table = [each for each in figures if each.table == table.rows]
        if not of_table:
            raise UserError(f"{TABLES}: tables: {name}: rows: {FIGURES} has no table '{table.rows}'")
        unknown = sorted(set(table.recipes) - {each.variant for each in of_table})
        if unknown:
            raise UserError(f"{TABLES}: tables: {name}: recipes: {FIGURES} has no variant '{unknown[0]}'")
    return Reference(figures, named.recipes, named.tables)


def _figures(reader: "csv.DictReader[str]") -> tuple[Printed, ...]:
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{FIGURES}: the columns are not {', '.join(COLUMNS)}; restore it from git")
    return tuple(_printed(row, f"{FIGURES}: line {reader.line_num}") for row in reader)


def _printed(row: Mapping[str, str], key: str) -> Printed:
    try:
        ratio = Fraction(1) if row["ratio"] == "full" else Fraction(row["ratio"])
        percent = float(row["miou"])
    except (TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{key}: ratio or miou is not a number") from None
    if not 0 < ratio <= 1 or not 0 <= percent <= 100:
        raise UserError(f"{key}: ratio {row['ratio']} or miou {row['miou']} is out of range")
    return Printed(
        table=row["table"],
        dataset=row["dataset"],
        network=(row["network"], row["backbone"], row["pretraining"]),
        method=row["method"],
        variant=row["variant"],
        ratio=ratio,
        miou=percent / 100,
        source=row["source"],
    )
