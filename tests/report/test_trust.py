"""Records count or are refused, each for its reason."""

import dataclasses
import json
from collections.abc import Callable

import pytest

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.data import prepared, sources, splits
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report import tables, trust
from semiseg.report.collect import collect, survey
from tests.report.conftest import PARAMS, edited, fabricate
from tests.report.test_stages import stage

Finish = Callable[..., Record]
RUN = Run("cmb", "small-1_8", 0)


def refusal(params: Params, run: Run = RUN) -> str:
    """Return why ``run`` is refused, after checking that every reader refuses it in one line."""
    records = trust.read(params, params.grids["main"].runs())
    assert run not in records.accepted
    reason = records.refused[run]
    assert reason.startswith(f"{run.metrics}: ")
    assert "\n" not in reason
    with pytest.raises(UserError) as caught:
        collect(params, "main")
    assert str(caught.value) in records.refused.values()
    return reason


def test_a_record_of_another_configuration_is_refused(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.40)
    finish(*dataclasses.astuple(RUN), 0.50, config_sha256="0" * 64)
    reason = refusal(params)
    assert "restore params.yaml" in reason
    assert reason.endswith("snakemake main --cores 8 --resources gpu=4")
    assert list(trust.read(params, params.grids["main"].runs()).accepted) == [
        Run("supervised", "small-1_8", 0)
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree["last"]["networks"]["student"].update(miou=0.9), "miou"),
        (lambda tree: tree["last"]["networks"]["student"]["iou"].update(disc=0.9), "miou"),
        (lambda tree: tree["confusion"][0].__setitem__(0, 1), "iou: background"),
        (lambda tree: tree["confusion"][0].pop(), "confusion"),
        (lambda tree: tree["confusion"][0].__setitem__(1, -5), "confusion"),
        (lambda tree: tree["best"]["networks"]["student"].update(miou=float("nan")), "miou"),
        (lambda tree: tree.update(seed=1), "seed"),
        (lambda tree: tree.update(recipe="dcc"), "recipe"),
        (lambda tree: tree.update(method="dcc"), "method"),
        (lambda tree: tree.update(dataset="voc"), "dataset"),
        (lambda tree: tree.update(ratio="1/4"), "ratio"),
        (lambda tree: tree.update(evaluated_on="val"), "evaluated_on"),
        (lambda tree: tree.update(headline="teacher"), "teacher"),
        (lambda tree: tree["last"].update(step=7), "step"),
        (lambda tree: tree["provenance"]["config"]["protocol"].update(steps=7), "config"),
        (lambda tree: tree["provenance"].pop("labelled_set_sha256"), "labelled_set_sha256"),
        (lambda tree: tree.pop("confusion"), "confusion"),
    ],
)
def test_a_record_edited_by_hand_is_refused_by_the_name_of_the_field(
    params: Params, finish: Finish, change: Callable[[dict], None], named: str
) -> None:
    finish(*dataclasses.astuple(RUN), 0.50)
    tree = json.loads(RUN.metrics.read_text())
    change(tree)
    RUN.metrics.write_text(json.dumps(tree))
    assert named in refusal(params).removeprefix(f"{RUN.metrics}: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_record_is_refused(params: Params, finish: Finish, content: bytes) -> None:
    finish(*dataclasses.astuple(RUN), 0.50)
    RUN.metrics.write_bytes(content)
    refusal(params)


@pytest.fixture
def there(params: Params, finish: Finish) -> Params:
    """Prepare the benchmark's dataset and a list, and finish a run that was trained on them."""
    text = PARAMS.replace(
        "    background: 0\n", "    background: 0\n    options: {train: 8, val: 2, size: 32}\n"
    )
    small = edited(text.replace("evaluate: test", "evaluate: val"))
    dataset = small.datasets["shapes"]
    sources.prepare("shapes", dataset)
    opened = prepared.open_dataset("shapes", dataset)
    split = splits.write("small-1_8", 0, opened.ids("train"), 4, "shapes")
    write_record(small, opened.digest, split.labelled_sha256, split.labelled_set_sha256)
    return small


def write_record(params: Params, data: str, labelled: str, labelled_set: str) -> None:
    origin = {"data_sha256": data, "labelled_sha256": labelled, "labelled_set_sha256": labelled_set}
    record.write(fabricate(params, RUN, 0.5, **origin), RUN.metrics)


def test_a_record_of_the_data_and_list_that_are_here_counts(there: Params) -> None:
    assert list(collect(there, "main").records) == [RUN]


def test_a_record_of_other_data_is_refused_and_named_by_the_plan(there: Params) -> None:
    manifest = paths.dataset("shapes") / "manifest.json"
    tree = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**tree, "digest": "0" * 64}))
    assert "data/shapes" in refusal(there)
    for name in ("tables", "report"):
        done = stage(name, "main")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert str(RUN.metrics) in done.stderr
    done = stage("plan", "main")
    assert done.returncode == 0
    assert "Runs: 0 done, 18 left." in done.stdout
    assert "data/shapes" in done.stdout
    assert f"rm {RUN.metrics}" in done.stdout
    manifest.unlink()  # as in a fresh clone
    assert list(collect(there, "main").records) == [RUN]


def test_a_record_of_another_labelled_list_is_refused(there: Params) -> None:
    ids = prepared.open_dataset("shapes", there.datasets["shapes"]).ids("train")
    splits.write("small-1_8", 0, ids, 3, "shapes")
    assert str(paths.split("small-1_8", 0)) in refusal(there)


@pytest.mark.parametrize("name", ["data_sha256", "labelled_sha256"])
def test_the_older_of_two_that_were_trained_on_unlike_data_is_refused(
    params: Params, finish: Finish, name: str
) -> None:
    finish("supervised", "small-1_8", 0, 0.4, finished="2026-03-02T00:00:00Z")
    finish(*dataclasses.astuple(RUN), 0.5, **{name: "9" * 64})
    finish("dcc", "small-1_8", 1, 0.5)
    assert "results/runs/supervised/small-1_8/0/metrics.json" in refusal(params)
    results, refused = survey(params, "main")
    assert list(refused) == [RUN]
    assert len(results.records) == 2
    assert "cmb" in tables.markdown(results)
