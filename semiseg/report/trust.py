"""Read the records of runs, and refuse those that do not belong to the configuration and the data here."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from semiseg.base.errors import UserError
from semiseg.base.parameters import Params, RunConfig
from semiseg.base.paths import Run, split
from semiseg.data import prepared, splits
from semiseg.evaluation import record
from semiseg.evaluation.record import Record


@dataclass(frozen=True)
class Records:
    """The records of some runs: those that count, and why the others do not."""

    accepted: Mapping[Run, Record]
    refused: Mapping[Run, str]  # a line each, which names the file and what to do

    def check(self, runs: Iterable[Run]) -> None:
        """Raise a UserError if one of ``runs`` was refused."""
        for run in runs:
            if run in self.refused:
                raise UserError(self.refused[run])


def read(params: Params, runs: Iterable[Run]) -> Records:
    """Read the records of those of ``runs`` that have one, in their order.

    A record is refused if it cannot be read or contradicts itself, if it was made with another configuration
    than params.yaml has now, and if the run was trained on other images, masks or labelled images than are
    prepared here, or than the newest record that it would stand beside. Of a dataset that is not prepared
    here nothing is asked: a fresh clone builds its tables.
    """
    accepted: dict[Run, Record] = {}
    refused: dict[Run, str] = {}
    digests = _Prepared(params)
    for run in runs:
        if not run.metrics.exists():
            continue
        try:
            found = record.read(run.metrics)
        except UserError as error:
            refused[run] = str(error)
            continue
        reason = _other_configuration(found, params.run(run)) or digests.difference(run, found)
        if reason is None:
            accepted[run] = found
        else:
            refused[run] = _again(params, run, reason)
    for run, reason in list(_odd_ones(accepted)):
        accepted.pop(run, None)
        refused[run] = _again(params, run, reason)
    return Records(accepted, refused)


def command(grid: str) -> str:
    """Return the command that runs what a grid lacks; its target comes first, or --resources swallows it."""
    return f"snakemake {grid} --cores 8 --resources gpu=4"


def _again(params: Params, run: Run, reason: str) -> str:
    return f"{run.metrics}: {reason} remove this file and run it again: {command(params.grids_of(run)[0])}"


def _other_configuration(found: Record, config: RunConfig) -> str | None:
    """Return how a record differs from a configuration; None if it does not."""
    origin = found.provenance
    if origin.config_sha256 != config.digest():
        return "made with another configuration than params.yaml has now; restore params.yaml, or"
    written = json.dumps(origin.config, sort_keys=True)
    if hashlib.sha256(written.encode()).hexdigest() != origin.config_sha256:
        return "provenance: config: does not have the digest config_sha256;"
    for name, value, expected in (
        ("method", found.method, config.method),
        ("dataset", found.dataset, config.dataset_name),
        ("ratio", found.ratio, str(config.share.ratio)),
        ("evaluated_on", found.evaluated_on, config.dataset.evaluate),
        ("last: step", found.last.step, config.protocol.steps),
        ("last: iou: classes", tuple(found.score(found.last).iou), config.dataset.classes),
    ):
        if value != expected:
            return f"{name}: is {value}, but params.yaml has {expected};"
    return None


class _Prepared:
    """The digests of the datasets and of the labelled lists that are prepared here."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._data = functools.cache(self._data_digest)
        self._labelled = functools.cache(self._labelled_digest)

    def difference(self, run: Run, found: Record) -> str | None:
        """Return what a run was trained on that is no longer here; None if all is, or nothing is."""
        data, labelled = self._data(found.dataset), self._labelled(run.split, run.seed)
        if data is not None and data != found.provenance.data_sha256:
            return f"trained or scored on other images or masks than data/{found.dataset} has now;"
        if labelled is not None and labelled != found.provenance.labelled_sha256:
            return f"trained on other labelled images than {split(run.split, run.seed)} lists now;"
        return None

    def _data_digest(self, name: str) -> str | None:
        dataset = self._params.datasets[name]
        return prepared.open_dataset(name, dataset).digest if prepared.is_prepared(name, dataset) else None

    def _labelled_digest(self, name: str, seed: int) -> str | None:
        return splits.read(name, seed).labelled_sha256 if split(name, seed).exists() else None


def _odd_ones(records: Mapping[Run, Record]) -> Iterator[tuple[Run, str]]:
    """Yield the records that differ in data or labelled list from the newest one they are compared with."""
    newest: dict[tuple[object, ...], Record] = {}
    for run, found in sorted(records.items(), key=lambda item: item[1].provenance.finished):
        newest[found.dataset,] = newest[run.split, run.seed] = found
    for run, found in records.items():
        for other, name, what in (
            (newest[found.dataset,], "data_sha256", "images or masks"),
            (newest[run.split, run.seed], "labelled_sha256", "labelled images"),
        ):
            if getattr(found.provenance, name) != getattr(other.provenance, name):
                path = Run(other.recipe, other.split, other.seed).metrics
                yield run, f"trained on other {what} than {path}, which is newer;"
                break
