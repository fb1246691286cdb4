"""Estimates from records that were made up, worked out by hand."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from semiseg.base import parameters
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import plan
from semiseg.report.collect import collect, survey
from tests.report.test_stages import stage

Finish = Callable[..., Record]


@pytest.fixture
def took(params: Params, finish: Finish) -> Callable[..., Record]:
    """Finish a run that took this long; ``changes`` to its protocol make it one of another params.yaml."""

    def write(recipe: str, split: str, seed: int, seconds: float, **changes) -> Record:
        device = changes.pop("device", "A GPU")
        finished = changes.pop("finished", "2026-03-01T11:30:00Z")
        decided = params.run(Run(recipe, split, seed))
        decided = dataclasses.replace(decided, protocol=dataclasses.replace(decided.protocol, **changes))
        tree = json.loads(parameters.canonical(decided))
        return finish(
            *(recipe, split, seed, 0.5), config=tree, train_seconds=seconds, device=device, finished=finished
        )

    return write


def guess(params: Params, recipe: str) -> plan.Estimate | None:
    return plan.estimate(params.run(Run(recipe, "small-1_8", 2)), plan.finished())


def planned(params: Params, grid: str) -> str:
    return plan.terminal(*survey(params, grid))


def test_nothing_run_is_no_estimate_and_says_so(params: Params) -> None:
    assert guess(params, "cmb") is None
    text = planned(params, "main")
    assert "Runs: 0 done, 18 left." in text
    assert "Time: cannot be estimated" in text
    assert "Disk: cannot be estimated" in text
    assert "Measure some steps for an estimate: python pipeline/plan.py main --measure" in text
    assert "Run snakemake main --cores 8" in text


def test_what_was_measured_stands_where_no_finished_run_is_like_it(
    params: Params, took: Callable[..., Record]
) -> None:
    results = collect(params, "main")
    configs = plan.without_estimate(results)
    assert [str(each.run) for each in configs] == [f"{recipe}/small-1_8/0" for recipe in results.recipes]
    measured = {("cmb", "small"): plan.Estimate(3600.0, 2.0**30, "5 steps")}
    text = plan.terminal(results, {}, measured)
    # Six runs of cmb, of an hour and a GiB each; of the two others nothing is known
    assert "Time (6 of 18 runs): 6.0 device-hours" in text
    assert "Disk (6 of 18 runs): 6.00 GiB" in text
    assert "plan.py main --measure" in text
    whole = {(recipe, "small"): measured["cmb", "small"] for recipe in results.recipes}
    assert "--measure" not in plan.terminal(results, {}, whole)
    for seed in (0, 1, 2):
        took("cmb", "small-1_8", seed, 7200.0)
    after = collect(params, "main")
    assert plan.without_estimate(after) == []  # all are like cmb, on a protocol of the same speed
    rows = {(line.recipe, line.split): line.estimate for line in plan.lines(after, measured)}
    assert rows["cmb", "small-1_8"] is None  # nothing is left
    own = rows["cmb", "small-full"]
    assert own is not None
    assert own.seconds == 7200.0  # a finished run goes before a measurement


def test_a_record_without_its_configuration_is_no_ground_for_an_estimate(
    params: Params, finish: Finish
) -> None:
    finish("cmb", "small-1_8", 0, 0.5, config={})
    assert guess(params, "cmb") is None


def test_the_runs_most_like_it_are_taken(params: Params, took: Callable[..., Record]) -> None:
    # A batch of 4 + 12 for 500 steps: 8,000 images in 400 s. Of the plan: 1,500 steps of 4 + 6 are 15,000.
    took("dcc", "small-full", 0, 400.0, unlabelled_batch=12, steps=500)
    scaled = guess(params, "cmb")
    assert scaled is not None
    assert scaled.seconds == pytest.approx(750.0)
    assert scaled.basis == "1 run of dcc on shapes, another protocol, A GPU"
    # At the speed of the plan's own protocol, though for a tenth of the steps
    took("supervised", "small-full", 0, 100.0, steps=150)
    same = guess(params, "cmb")
    assert same is not None
    assert (same.seconds, same.basis) == (pytest.approx(1000.0), "1 run of supervised on shapes, A GPU")
    took("cmb", "small-1_8", 0, 3000.0)
    took("cmb", "small-full", 1, 4000.0)
    own = guess(params, "cmb")
    assert own is not None
    assert (own.seconds, own.basis) == (pytest.approx(3500.0), "2 runs of cmb on shapes, A GPU")
    assert own.size is None  # nothing of them lies here


def test_another_crop_or_network_is_not_alike(params: Params, took: Callable[..., Record]) -> None:
    protocol = params.protocols["small"]
    took("cmb", "small-full", 0, 100.0, geometry=dataclasses.replace(protocol.geometry, crop=128))
    took("cmb", "small-full", 1, 100.0, network=dataclasses.replace(protocol.network, backbone="resnet50"))
    assert guess(params, "cmb") is None


def test_one_device_is_not_averaged_with_another(params: Params, took: Callable[..., Record]) -> None:
    took("cmb", "small-1_8", 0, 90_000.0, device="A CPU")
    took("cmb", "small-1_8", 1, 1800.0, device="A GPU", finished="2026-04-01T00:00:00Z")
    found = guess(params, "cmb")
    assert found is not None
    assert (found.seconds, found.basis) == (1800.0, "1 run of cmb on shapes, A GPU")


def test_an_estimate_is_of_all_devices_together(params: Params, took: Callable[..., Record]) -> None:
    took("cmb", "small-1_8", 0, 1800.0, device="4 x A GPU")
    found = guess(params, "cmb")
    assert found is not None
    assert found.seconds == 4 * 1800.0


def test_totals_of_time_and_disk(params: Params, took: Callable[..., Record]) -> None:
    for recipe, seconds in (("supervised", 1800.0), ("cmb", 7200.0), ("dcc", 3600.0)):
        for seed in (0, 1):
            took(recipe, "small-1_8", seed, seconds)
            folder = Run(recipe, "small-1_8", seed).artefacts
            folder.mkdir(parents=True)
            with (folder / "model.pt").open("wb") as file:
                file.truncate(2**30)  # sparse
    rows = {(line.recipe, line.split): line for line in plan.lines(collect(params, "main"))}
    assert (rows[("cmb", "small-1_8")].done, len(rows[("cmb", "small-1_8")].left)) == (2, 1)
    text = planned(params, "main")
    # Left are one seed of 1/8 and three of full for each: 4 x (0.5 + 2 + 1) hours, 12 x 1 GiB
    assert "Runs: 6 done, 12 left." in text
    assert "Time: 14.0 device-hours of training" in text
    assert "Disk: 12.00 GiB under runs/" in text
    cells = next(
        line for line in text.splitlines() if line.startswith("cmb") and "small-full" in line
    ).split()
    assert cells[:6] == ["cmb", "small-full", "0", "3", "2.0", "6.0"]


def test_every_row_of_a_table_is_planned(params: Params, took: Callable[..., Record]) -> None:
    took("cmb", "small-1_8", 0, 3600.0)
    text = planned(params, "ablation")
    # four recipes, two seeds; all by what cmb took
    assert "Runs: 1 done, 7 left." in text
    assert "Time: 7.0 device-hours" in text
    assert "Run snakemake ablation" in text


def test_a_finished_grid_leaves_nothing(params: Params, took: Callable[..., Record]) -> None:
    for recipe in ("supervised", "cmb", "dcc", "cmb-no_attention"):
        for seed in (0, 1):
            took(recipe, "small-1_8", seed, 60.0)
    text = planned(params, "ablation")
    assert text.endswith("Runs: 8 done, 0 left.")


def test_the_stage_prints_the_plan(params: Params, took: Callable[..., Record]) -> None:
    took("cmb", "small-1_8", 0, 3600.0)
    done = stage("plan", "main")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Runs: 1 done, 17 left." in done.stdout
    assert not list(Path("results").glob("tables*"))  # it writes nothing
    assert stage("plan", "nowhere").returncode == 2
    again = stage("plan", "main", "--measure")  # of each recipe a run is like it: there is nothing to measure
    free = r"Free here: [\d.]+ GiB"  # which others change meanwhile
    assert re.search(free, done.stdout)
    assert (re.sub(free, "", again.stdout), again.stderr) == (re.sub(free, "", done.stdout), "")
