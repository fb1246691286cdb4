"""A record is read only if its figures follow from each other and it lies at its own path."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.base.errors import UserError
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Provenance, Record, Scores
from semiseg.evaluation.score import score

RUN = Run("cmb", "mini-1_4", 3)
CLASSES = ("sky", "road", "car", "tree")
LEFT = ((10, 2, 0, 0), (3, 10**12, 1, 0), (0, 0, 4, 0), (0, 0, 0, 0))  # no tree anywhere
RIGHT = ((5, 5, 0, 2), (1, 8, 1, 0), (2, 0, 2, 0), (0, 0, 0, 0))
PROVENANCE = Provenance(
    config_sha256="c" * 64,
    config={"protocol": {"steps": 6}},
    data_sha256="d" * 64,
    labelled_sha256="1" * 64,
    labelled_set_sha256="2" * 64,
    revision="unknown",
    packages={"torch": "2.11.0"},
    device="One CPU",
    started="2026-03-01T10:00:00Z",
    finished="2026-03-01T11:30:00Z",
    train_seconds=5400.0,
    images_per_second=12.5,
    peak_memory_mib=None,
)


def made() -> Record:
    """Return a record of two networks, the first of them the headline."""
    left, right = (score(torch.tensor(matrix), CLASSES) for matrix in (LEFT, RIGHT))
    return Record(
        recipe=RUN.recipe,
        method="cmb",
        split=RUN.split,
        dataset="mini",
        ratio="1/4",
        labelled=2,
        seed=RUN.seed,
        evaluated_on="val",
        headline="left",
        last=Scores(6, {"left": left, "right": right}),
        best=Scores(3, {"left": right, "right": left}),
        provenance=PROVENANCE,
        confusion=LEFT,
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / RUN.metrics
    record.write(made(), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        record.read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_written_is_read(written: Path) -> None:
    assert record.read(written) == made()
    assert record.read(written).miou == made().last.networks["left"].miou
    assert made().last.networks["left"].iou["tree"] is None


def test_a_row_of_the_matrix_stands_on_one_line(written: Path) -> None:
    lines = [line.strip() for line in written.read_text().splitlines()]
    assert "[ 3, 1000000000000, 1, 0 ]," in lines


def test_an_older_record_without_a_matrix_is_refused(written: Path) -> None:
    tree = json.loads(written.read_text())
    del tree["confusion"]
    written.write_text(json.dumps(tree))
    assert "'confusion'" in refusal(written)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"recipe": 1}', "\x00", '{"recipe": NaN}'])
def test_what_is_no_record_is_refused(written: Path, content: str) -> None:
    written.write_text(content)
    refusal(written)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (Run("dcc", RUN.split, RUN.seed), "recipe: "),
        (Run(RUN.recipe, "mini-full", RUN.seed), "split: "),
        (Run(RUN.recipe, RUN.split, 4), "seed: "),
    ],
)
def test_a_record_at_another_runs_path_is_refused(written: Path, place: Run, named: str) -> None:
    other = written.parents[5] / place.metrics.relative_to("results")
    other.parent.mkdir(parents=True, exist_ok=True)
    written.rename(other)
    assert named in refusal(other)


def change_iou(tree: dict[str, Any]) -> None:
    tree["last"]["networks"]["left"]["iou"]["sky"] += 0.01


def change_miou(tree: dict[str, Any]) -> None:
    tree["last"]["networks"]["left"]["miou"] += 1e-6


def change_both(tree: dict[str, Any]) -> None:
    """The mean is right again, and the matrix tells it all the same."""
    change_iou(tree)
    figures = tree["last"]["networks"]["left"]
    known = [value for value in figures["iou"].values() if value is not None]
    figures["miou"] = sum(known) / len(known)


def change_another_network(tree: dict[str, Any]) -> None:
    tree["last"]["networks"]["right"]["miou"] = 0.99


def change_the_best(tree: dict[str, Any]) -> None:
    tree["best"]["networks"]["left"]["miou"] = 0.99


def change_a_count(tree: dict[str, Any]) -> None:
    tree["confusion"][0][0] += 1


def give_the_absent_class_a_figure(tree: dict[str, Any]) -> None:
    tree["last"]["networks"]["left"]["iou"]["tree"] = tree["last"]["networks"]["left"]["miou"]


def leave_no_class_a_figure(tree: dict[str, Any]) -> None:
    figures = tree["best"]["networks"]["right"]
    figures["iou"] = dict.fromkeys(figures["iou"])


def change_the_headline(tree: dict[str, Any]) -> None:
    tree["headline"] = "right"


def name_an_absent_headline(tree: dict[str, Any]) -> None:
    tree["headline"] = "teacher"


def drop_a_row(tree: dict[str, Any]) -> None:
    tree["confusion"].pop()


def drop_a_column(tree: dict[str, Any]) -> None:
    for row in tree["confusion"]:
        row.pop()


def drop_the_matrix(tree: dict[str, Any]) -> None:
    tree["confusion"] = []


def lengthen_one_row(tree: dict[str, Any]) -> None:
    tree["confusion"][3].append(0)


def take_a_negative_count(tree: dict[str, Any]) -> None:
    tree["confusion"][3][3] = -1


@pytest.mark.parametrize(
    "edit",
    [
        change_iou,
        change_miou,
        change_both,
        change_another_network,
        change_the_best,
        change_a_count,
        give_the_absent_class_a_figure,
        leave_no_class_a_figure,
        change_the_headline,
        name_an_absent_headline,
        drop_a_row,
        drop_a_column,
        drop_the_matrix,
        lengthen_one_row,
        take_a_negative_count,
    ],
)
def test_edited_figures_are_refused(written: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(written.read_text())
    edit(tree)
    written.write_text(json.dumps(tree))
    refusal(written)


def test_a_figure_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(
        made(), provenance=dataclasses.replace(PROVENANCE, train_seconds=float("nan"))
    )
    with pytest.raises(ValueError, match="JSON"):
        record.write(broken, tmp_path / RUN.metrics)
    assert not (tmp_path / RUN.metrics).exists()
