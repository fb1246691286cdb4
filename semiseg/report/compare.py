"""Rank the recipes of each split over all grids, and put their gains on one axis."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from semiseg.base.parameters import Grid, Params
from semiseg.base.paths import Run
from semiseg.report.collect import BASELINE, Results, last
from semiseg.report.statistics import Summary

INTERVALS = 12  # an axis: at most this many
LEAST = 2.0  # points of mIoU that an axis spans to either side of zero, so that it does not magnify noise


@dataclass(frozen=True)
class Entry:
    """A recipe in a ranking; figures are in per cent and points of mIoU."""

    recipe: str
    method: str
    miou: Summary
    gain: Summary | None  # over the baseline
    gains: tuple[tuple[Run, float], ...]  # each run's gain over the baseline's of the same seed
    published: float | None  # as printed
    published_best: float | None  # in the authors' logs
    published_last: float | None
    runs: tuple[Run, ...]

    @property
    def supported(self) -> bool | None:
        """Whether the interval of the gain excludes zero; None without an interval."""
        if self.gain is None or self.gain.interval is None:
            return None
        low, high = self.gain.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Ranking:
    """The recipes of one split, the highest gain first."""

    dataset: str
    share: str
    labelled: int
    protocol: str
    evaluated_on: str
    entries: tuple[Entry, ...]


def rankings(params: Params, grids: Sequence[Results]) -> list[Ranking]:
    """Rank the recipes of every split that was run, in the order of the datasets in params.yaml."""
    found = [_ranking(merged) for split in params.splits for merged in _merged(params, grids, split)]
    datasets = list(params.datasets)
    return sorted(found, key=lambda ranking: datasets.index(ranking.dataset))


def _merged(params: Params, grids: Sequence[Results], split: str) -> Iterator[Results]:
    """Yield the runs of a split in all grids as one grid; nothing if there are none."""
    records = {run: record for each in grids for run, record in each.records.items() if run.split == split}
    if records:
        entry = params.splits[split]
        grid = Grid(
            title=split,
            recipes=tuple(dict.fromkeys(run.recipe for run in records)),
            seeds=tuple(sorted({run.seed for run in records})),
            protocol=entry.protocol,
            shares=(entry.share,),
        )
        printed = {place: figure for each in grids for place, figure in each.printed.items()}
        logged = {place: logs for each in grids for place, logs in each.logged.items()}
        yield Results(split, grid, params, records, printed, logged)


def _ranking(results: Results) -> Ranking:
    (split,) = results.grid.splits
    entry = results.params.splits[split]
    first = next(iter(results.records.values()))
    entries = [_entry(results, recipe, split) for recipe in results.recipes]
    return Ranking(
        dataset=entry.dataset,
        share=entry.share,
        labelled=first.labelled,
        protocol=entry.protocol,
        evaluated_on=first.evaluated_on,
        entries=tuple(sorted(entries, key=_rank)),
    )


def _rank(entry: Entry) -> tuple[bool, float]:
    """Order by gain, which compares the same labelled sets; recipes without one come last, by mIoU."""
    gain = 0.0 if entry.recipe == BASELINE else None if entry.gain is None else entry.gain.mean
    return gain is None, -(entry.miou.mean if gain is None else gain)


def _entry(results: Results, recipe: str, split: str) -> Entry:
    miou, gain = results.miou(recipe, split, last), results.gain(recipe, split, last)
    assert miou is not None
    printed, logs = results.printed.get((recipe, split)), results.logged.get((recipe, split))
    return Entry(
        recipe=recipe,
        method=results.params.recipes[recipe].method,
        miou=_in_per_cent(miou),
        gain=None if gain is None else _in_per_cent(gain),
        gains=tuple(
            (Run(recipe, split, own.seed), 100 * (own.miou - other.miou))
            for own, other in results.gained(recipe, split)
        ),
        published=None if printed is None else 100 * printed.miou,
        published_best=None if logs is None else 100 * logs.best.mean,
        published_last=None if logs is None else 100 * logs.last.mean,
        runs=tuple(Run(recipe, split, run.seed) for run in results.runs(recipe, split)),
    )


def _in_per_cent(summary: Summary) -> Summary:
    return Summary(tuple(100 * value for value in summary.values))


@dataclass(frozen=True)
class Axis:
    """A linear axis of gains, in points of mIoU."""

    low: float
    high: float
    step: float  # between ticks

    @property
    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + place * self.step for place in range(count + 1)]

    def place(self, value: float) -> float:
        """Return where ``value`` lies, in per cent of the axis; what lies outside is put to its end."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))


def axis(ranked: Iterable[Ranking]) -> Axis:
    """Return the axis that holds every run's gain, and the intervals unless they are far wider than that."""
    entries = [each for ranking in ranked for each in ranking.entries if each.gain is not None]
    gains = [0.0, *(gain for each in entries for _, gain in each.gains)]
    ends = [end for each in entries if each.gain and each.gain.interval for end in each.gain.interval]
    span = max(max(gains) - min(gains), LEAST)
    low = max(min([*gains, *ends, -LEAST]), min(gains) - span)
    high = min(max([*gains, *ends, LEAST]), max(gains) + span)
    step = _round_step((high - low) / INTERVALS)
    return Axis(math.floor(low / step) * step, math.ceil(high / step) * step, step)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, … (times a power of ten) that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
