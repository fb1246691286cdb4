"""Gather the finished runs of a grid, and compute what they say together."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from semiseg.base.parameters import Dataset, Grid, Params, Protocol, look_up
from semiseg.base.paths import PretrainingRun, Run
from semiseg.evaluation.record import Record, Scores
from semiseg.report import reference, trust
from semiseg.report.reference import Logs, Place, Printed, Reference
from semiseg.report.statistics import Summary, summarise
from semiseg.report.trust import Records

BASELINE = "supervised"  # the recipe that gains are measured against

Pick = Callable[[Record], Scores]


def last(run: Record) -> Scores:
    """Return the scores at the last step: the headline."""
    return run.last


def best(run: Record) -> Scores:
    """Return the scores at the step that scored highest on the val list."""
    return run.best


def over_sets(figures: Iterable[tuple[Record, float]]) -> Summary | None:
    """Summarise figures of runs of one split, one for each labelled set.

    Runs that share a labelled set are no independent sample of it: their figures are averaged first. With all
    images labelled there is one set by design, and each seed counts.
    """
    sets: dict[object, list[float]] = {}
    for run, figure in figures:
        unit = run.seed if run.ratio == "1" else run.provenance.labelled_set_sha256
        sets.setdefault(unit, []).append(figure)
    return summarise(math.fsum(each) / len(each) for each in sets.values())


@dataclass(frozen=True)
class Results:
    """A grid and its finished runs."""

    name: str
    grid: Grid
    params: Params
    records: Mapping[Run, Record]  # in the table's order: recipe, split, seed
    printed: Mapping[Place, Printed]  # the papers' figures
    logged: Mapping[Place, Logs]  # their authors' logs

    @property
    def recipes(self) -> tuple[str, ...]:
        """Rows of the table."""
        return self.grid.recipes

    def runs(self, recipe: str, split: str) -> list[Record]:
        """Return the finished runs of one cell, by seed."""
        runs = (Run(recipe, split, seed) for seed in self.grid.seeds)
        return [self.records[run] for run in runs if run in self.records]

    def miou(self, recipe: str, split: str, pick: Pick) -> Summary | None:
        """Summarise the mIoU of a cell's headline network, in [0, 1]."""
        return over_sets((each, each.score(pick(each)).miou) for each in self.runs(recipe, split))

    def gain(self, recipe: str, split: str, pick: Pick) -> Summary | None:
        """Summarise mIoU minus the baseline's; None for the baseline itself."""
        return None if recipe == BASELINE else self.difference(recipe, BASELINE, split, pick)

    def difference(self, recipe: str, other: str, split: str, pick: Pick) -> Summary | None:
        """Summarise mIoU of ``recipe`` minus that of ``other``, over the seeds that both have."""
        return over_sets(
            (one, one.score(pick(one)).miou - two.score(pick(two)).miou)
            for one, two in self.pairs(recipe, other, split)
        )

    def figure_names(self) -> list[str]:
        """Return the names of the further figures that records hold."""
        scores = (record.score(record.last) for record in self.records.values())
        return list(dict.fromkeys(name for score in scores for name in score.figures))

    def figure(self, recipe: str, split: str, name: str) -> Summary | None:
        """Summarise a further figure of the headline network at the last step, over runs that have it."""
        figures = [(each, each.score(each.last).figures.get(name)) for each in self.runs(recipe, split)]
        return over_sets((each, figure) for each, figure in figures if figure is not None)

    def class_iou(self, recipe: str, split: str, label: str) -> Summary | None:
        """Summarise a class's IoU at the last step, over the runs that have one."""
        ious = [(each, each.score(each.last).iou.get(label)) for each in self.runs(recipe, split)]
        return over_sets((each, iou) for each, iou in ious if iou is not None)

    def class_gain(self, recipe: str, split: str, label: str) -> Summary | None:
        """Summarise a class's IoU at the last step minus the baseline's, over seeds where both have one."""
        pairs = [
            (each, each.score(each.last).iou.get(label), baseline.score(baseline.last).iou.get(label))
            for each, baseline in self.gained(recipe, split)
        ]
        return over_sets(
            (each, own - other) for each, own, other in pairs if own is not None and other is not None
        )

    def shared_sets(self) -> dict[str, list[tuple[int, ...]]]:
        """Return by split the seeds whose labelled lists hold the same images, where not all are labelled."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for split in self.grid.splits:
            seeds: dict[str, set[int]] = {}
            for run, each in self.records.items():
                if run.split == split and each.ratio != "1":
                    seeds.setdefault(each.provenance.labelled_set_sha256, set()).add(run.seed)
            if shared := sorted(tuple(sorted(each)) for each in seeds.values() if len(each) > 1):
                found[split] = shared
        return found

    def pairs(self, recipe: str, other: str, split: str) -> list[tuple[Record, Record]]:
        """Return the finished runs of two recipes on one split, seed by seed."""
        others = {each.seed: each for each in self.runs(other, split)}
        return [(each, others[each.seed]) for each in self.runs(recipe, split) if each.seed in others]

    def gained(self, recipe: str, split: str) -> list[tuple[Record, Record]]:
        """Return the finished runs of a recipe and of the baseline, seed by seed; none for the baseline."""
        return [] if recipe == BASELINE else self.pairs(recipe, BASELINE, split)

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
        """Return the protocols of the grid's splits by name, in the order of the splits."""
        names = dict.fromkeys(self.params.splits[split].protocol for split in self.grid.splits)
        return {name: self.params.protocols[name] for name in names}

    def labelled(self, split: str) -> int | None:
        """Return the number of labelled images, if a record or params.yaml tells it."""
        for recipe in self.recipes:
            for each in self.runs(recipe, split):
                return each.labelled
        return self.params.share(split).count

    def heading(self, split: str) -> str:
        """Return the share and its images, "1/8 (46)"; the split's name where there are several protocols.

        Where one of them starts from a pretraining, each says what it starts from.
        """
        entry, start = self.params.splits[split], self.start(split)
        name = entry.share if len(self.protocols()) == 1 else split
        if start is not None:
            name = f"{entry.share} from {start}"
        labelled = self.labelled(split)
        return name if labelled is None or name == str(labelled) else f"{name} ({labelled})"

    def start(self, split: str) -> str | None:
        """Return what a split starts from, "random weights"; None if no split starts from a pretraining."""
        weights = {protocol: each.network.weights for protocol, each in self.protocols().items()}
        if not any(map(PretrainingRun.named, weights.values())):
            return None
        return self.params.start(weights[self.params.splits[split].protocol])


def share(ratio: Fraction) -> str:
    """Write a labelled share: "1/8", or "full"."""
    return "full" if ratio == 1 else str(ratio)


def collect(params: Params, name: str) -> Results:
    """Read the records of the grid ``name``.

    Raises UserError for an unknown grid, and for a record that trust.read refuses.
    """
    grid = look_up(params.grids, name, "grids")
    return gather(params, name, trust.read(params, grid.runs()), reference.load())


def gather(params: Params, name: str, records: Records, published: Reference) -> Results:
    """Return the grid ``name`` with those of ``records`` and published figures that belong to it.

    Raises UserError if one of its runs was refused.
    """
    records.check(params.grids[name].runs())
    return _results(params, name, records, published)


def survey(params: Params, name: str) -> tuple[Results, Mapping[Run, str]]:
    """Read the records of the grid ``name``; return also why runs were refused.

    Raises UserError for an unknown grid.
    """
    records = trust.read(params, look_up(params.grids, name, "grids").runs())
    return _results(params, name, records, reference.load()), records.refused


def _results(params: Params, name: str, records: Records, published: Reference) -> Results:
    grid = params.grids[name]
    accepted = {run: records.accepted[run] for run in grid.runs() if run in records.accepted}
    return Results(
        name,
        grid,
        params,
        accepted,
        published.printed_beside(params, name),
        published.logged_beside(params, name),
    )
