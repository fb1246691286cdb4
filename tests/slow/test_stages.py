"""The stages as a person runs them: good input ends in a record, bad input in one line and status 2."""

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from semiseg.base import paths
from semiseg.evaluation import record
from semiseg.evaluation.metrics import confusion_matrix, mean_iou
from tests import miniature

RUN = paths.Run("supervised", "mini-1_4", 0)


def stage(script: str, *arguments: object, file_size: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a stage in the working directory; ``file_size`` bounds the files that it can write, in bytes."""

    def bound() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    command = [sys.executable, miniature.PIPELINE / f"{script}.py", *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, env=environment)


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a stage that refused."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def edit(change: str, by: str) -> None:
    path = Path("params.yaml")
    text = path.read_text()
    assert change in text
    path.write_text(text.replace(change, by))


def test_a_run_from_params_to_its_record(mini_project: Path) -> None:
    trained = stage("train", *str(RUN).split("/"))
    assert trained.returncode == 0, trained.stderr
    assert "no GPU on this machine: running on the CPU" in trained.stderr
    evaluated = stage("evaluate", *str(RUN).split("/"))
    assert evaluated.returncode == 0, evaluated.stderr
    result = record.read(RUN.metrics)
    assert evaluated.stdout == f"{RUN}: mIoU {result.miou:.1%} on val (student, last step)\n"
    assert (result.labelled, result.ratio, result.last.step) == (2, "1/4", miniature.STEPS)
    assert 0 <= result.miou <= 1
    assert result.best.step in (3, 6)
    assert set(result.last.student.iou) == {"background", "disc", "square"}
    provenance = result.provenance
    assert provenance.packages["torch"] == importlib.metadata.version("torch")
    assert "CPU" in provenance.device
    assert provenance.images_per_second > 0
    assert provenance.data_sha256 == json.loads(Path("data/mini/manifest.json").read_text())["digest"]
    assert provenance.config["protocol"]["steps"] == miniature.STEPS
    images = pd.read_csv(RUN.artefacts / "images.csv", index_col="id")["miou"]
    written = sorted((RUN.artefacts / "predictions").glob("*.png"))
    assert [path.stem for path in written] == sorted(images.index)
    counts, truth = torch.zeros(3, 3, dtype=torch.int64), Path("data/mini/SegmentationClass")
    for path in written:
        predicted, target = (
            torch.from_numpy(np.array(Image.open(each))) for each in (path, truth / path.name)
        )
        matrix = confusion_matrix(predicted, target, 3)
        assert images[path.stem] == pytest.approx(mean_iou(matrix).item())
        counts += matrix
    assert result.confusion == tuple(map(tuple, counts.tolist()))
    assert result.miou == pytest.approx(mean_iou(counts).item())
    history = pd.read_csv(RUN.history)
    assert history["step"].tolist() == [2, 3, 4, 6]
    assert history["val_miou_student"].notna().tolist() == [False, True, False, True]
    assert history["val_true_negatives_student"].notna().tolist() == [False, True, False, True]

    model = torch.load(RUN.artefacts / "model.pt", weights_only=True)
    torch.save({**model, "config_sha256": "another"}, RUN.artefacts / "model.pt")
    assert "trained with another configuration" in refusal(stage("evaluate", *str(RUN).split("/")))
    (RUN.artefacts / "model.pt").unlink()
    assert "model.pt: not there; train the run first" in refusal(stage("evaluate", *str(RUN).split("/")))


@pytest.mark.parametrize(
    ("change", "by", "said"),
    [
        ("steps: 6", "stepz: 6", "protocols: mini: unknown key 'stepz'"),
        ("source: shapes", "source: imagenet", "datasets: mini: source: there is no 'imagenet'"),
        ("backbone: resnet18", "backbone: vgg16", "there is no 'vgg16'; there are resnet18"),
        ("ratio: 1/4", "ratio: 5/4", "splits: mini-1_4: ratio: 5/4 is outside (0, 1]"),
        ("method: cmb", "method: magic", "method: there is no 'magic'"),
        ("memory_size: 8", "memory_sise: 8", "unknown key 'memory_sise'"),
    ],
)
def test_wrong_params_are_refused_before_any_work(
    mini_project: Path, change: str, by: str, said: str
) -> None:
    edit(change, by)
    assert said in refusal(stage("check"))


def test_fewer_labelled_images_than_a_batch_are_refused(mini_project: Path) -> None:
    edit("labelled_batch: 2", "labelled_batch: 3")
    assert "2 labelled images are fewer than a batch of 3" in refusal(stage("split", "mini-1_4", 0))


def test_a_broken_image_and_a_wrong_mask_are_named(mini_project: Path) -> None:
    images, masks = Path("data/mini/JPEGImages"), Path("data/mini/SegmentationClass")
    labelled = [
        line
        for line in Path("data/splits/mini-1_4/0/labelled.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    mask = masks / f"{labelled[0]}.png"
    whole = mask.read_bytes()
    for broken, said in (
        (Image.new("L", (48, 40)), "the mask is 48x40, its image 48x48"),
        (Image.new("L", (48, 48), 9), "holds the value 9, but there are 3 classes and 255"),
    ):
        broken.save(mask)
        line = refusal(stage("train", *str(RUN).split("/")))
        assert f"{mask.name}: " in line
        assert said in line
    mask.write_bytes(whole)
    image = images / f"{labelled[1]}.jpg"
    image.write_bytes(image.read_bytes()[:300])
    line = refusal(stage("train", *str(RUN).split("/")))
    assert f"{image.name}: " in line
    assert "unreadable image" in line
    assert not (RUN.artefacts / "model.pt").exists()


def test_a_disk_without_room_ends_in_one_line_and_nothing_half_written(mini_project: Path) -> None:
    said = refusal(stage("train", *str(RUN).split("/"), file_size=1 << 20))
    assert "next.pt: File too large; free space or change permissions" in said
    assert list(mini_project.rglob("*.pt*")) == []
    again = stage("train", *str(RUN).split("/"))
    assert again.returncode == 0, again.stderr


def test_missing_weights_name_the_address_the_file_and_the_folder(mini_project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["protocols"]["mini"]["network"]["weights"] = "imagenet"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    line = refusal(stage("train", *str(RUN).split("/")))
    for part in ("https://download.pytorch.org/models", "resnet18-f37072fd.pth", "data/archives"):
        assert part in line
