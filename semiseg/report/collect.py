"""The runs of a grid that are there, checked against params.yaml, and what they say together."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy.stats import bootstrap

from semiseg.base.errors import UserError
from semiseg.base.parameters import Dataset, Grid, Params, Protocol, look_up
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Record, Scores
from semiseg.report import published
from semiseg.report.published import Printed

BASELINE = "supervised"  # the recipe that gains are measured against
ENOUGH = 3  # seeds: of fewer, a bootstrap says nothing

Pick = Callable[[Record], Scores]


def last(run: Record) -> Scores:
    """The headline's step."""
    return run.last


def best(run: Record) -> Scores:
    """The step that scored highest on the val list."""
    return run.best


@dataclass(frozen=True)
class Summary:
    """Of figures over seeds."""

    mean: float
    std: float | None  # with n - 1; None for one figure
    count: int
    interval: tuple[float, float] | None = None  # of the mean: 95 %, by bootstrap


def summarise(values: Sequence[float]) -> Summary | None:
    """None where there is nothing to summarise."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Summary(mean, None, 1)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Summary(mean, math.sqrt(squares / (len(values) - 1)), len(values))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % of the mean by the percentile bootstrap, the same at every call; None for fewer than 3 values.

    Of three values it runs from the lowest to the highest: all three resamples are one value with probability
    1/27, more than 2.5 %. Few seeds make it too short rather than too long.
    """
    if len(values) < ENOUGH:
        return None
    found = bootstrap(
        (np.asarray(values),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Results:
    """A grid and the finished runs of its table."""

    name: str
    grid: Grid
    params: Params
    records: Mapping[Run, Record]  # in the table's order: recipe, split, seed
    published: Mapping[tuple[str, str], Printed]  # by recipe and split

    @property
    def recipes(self) -> tuple[str, ...]:
        """The rows of the table."""
        return self.grid.recipes

    def runs(self, recipe: str, split: str) -> list[Record]:
        """The finished runs of one cell, by seed."""
        runs = (Run(recipe, split, seed) for seed in self.grid.seeds)
        return [self.records[run] for run in runs if run in self.records]

    def miou(self, recipe: str, split: str, pick: Pick) -> Summary | None:
        """mIoU in [0, 1] of the predictor over the cell's seeds."""
        return summarise([each.score(pick(each)).miou for each in self.runs(recipe, split)])

    def gain(self, recipe: str, split: str, pick: Pick) -> Summary | None:
        """mIoU minus the baseline's on the same split and seed; None for the baseline itself."""
        return None if recipe == BASELINE else self.difference(recipe, BASELINE, split, pick)

    def difference(self, recipe: str, other: str, split: str, pick: Pick) -> Summary | None:
        """mIoU of ``recipe`` minus that of ``other``, over the seeds that both have."""
        differences = [
            one.score(pick(one)).miou - two.score(pick(two)).miou
            for one, two in self.pairs(recipe, other, split)
        ]
        summary = summarise(differences)
        return None if summary is None else replace(summary, interval=interval(differences))

    def class_gain(self, recipe: str, split: str, label: str) -> Summary | None:
        """A class's IoU at the last step minus the baseline's, over the paired seeds where both have one."""
        pairs = [
            (each.score(each.last).iou.get(label), baseline.score(baseline.last).iou.get(label))
            for each, baseline in (self.pairs(recipe, BASELINE, split) if recipe != BASELINE else [])
        ]
        return summarise([own - other for own, other in pairs if own is not None and other is not None])

    def pairs(self, recipe: str, other: str, split: str) -> list[tuple[Record, Record]]:
        """The finished runs of two recipes on one split, seed by seed."""
        others = {each.seed: each for each in self.runs(other, split)}
        return [(each, others[each.seed]) for each in self.runs(recipe, split) if each.seed in others]

    def missing(self) -> list[Run]:
        """Return the runs of the table that have no record."""
        return [run for run in self.grid.runs() if run not in self.records]

    def ratio(self, split: str) -> Fraction:
        """Return the labelled share of a split."""
        ratio = self.params.share(split).ratio
        assert ratio is not None
        return ratio

    def dataset(self, split: str) -> Dataset:
        return self.params.datasets[self.params.splits[split].dataset]

    def protocols(self) -> dict[str, Protocol]:
        """The protocols of the grid's splits, by name, in the order of the splits."""
        names = dict.fromkeys(self.params.splits[split].protocol for split in self.grid.splits)
        return {name: self.params.protocols[name] for name in names}

    def labelled(self, split: str) -> int | None:
        """The number of labelled images, where a record or params.yaml tells it."""
        for recipe in self.recipes:
            for each in self.runs(recipe, split):
                return each.labelled
        return self.params.share(split).count

    def heading(self, split: str) -> str:
        """ "1/8 (46)": the labelled share and the images; the split's name where the share is ambiguous."""
        splits = self.grid.splits
        one_dataset = len({self.params.splits[name].dataset for name in splits}) == 1
        plain = one_dataset and len({self.ratio(name) for name in splits}) == len(splits)
        name = share(self.ratio(split)) if plain else split
        labelled = self.labelled(split)
        return name if labelled is None else f"{name} ({labelled})"


def share(ratio: Fraction) -> str:
    """A labelled share as text: 1/8, or full."""
    return "full" if ratio == 1 else str(ratio)


def command(grid: str) -> str:
    """What runs what is missing of a grid. The target comes first: --resources would swallow it."""
    return f"snakemake {grid} --cores 8 --resources gpu=4"


def collect(params: Params, name: str) -> Results:
    """Read the records of the table of the grid ``name``.

    Raises UserError for an unknown grid, and for a record of another configuration than params.yaml has now.
    """
    grid = look_up(params.grids, name, "grids")
    beside = published.load().beside(params, grid.recipes, grid.splits)
    return Results(name, grid, params, finished(params, grid.runs()), beside)


def finished(params: Params, runs: Iterable[Run]) -> dict[Run, Record]:
    """The records of those of ``runs`` that have one.

    Raises UserError for a record of another configuration than params.yaml has.
    """
    return {run: _read(params, run) for run in runs if run.metrics.exists()}


def _read(params: Params, run: Run) -> Record:
    found = record.read(run.metrics)
    if found.provenance.config_sha256 != params.run(run).digest():
        raise UserError(
            f"{run.metrics}: the run {run} was made with another configuration than params.yaml has now; "
            f"restore params.yaml, or remove this file and run it again: {command(params.grids_of(run)[0])}"
        )
    return found
