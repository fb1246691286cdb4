"""The stages as a person runs them: good input ends in a record, bad input in one line and status 2."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from semiseg.data import splits
from semiseg.evaluation import record
from tests import miniature, processes
from tests.slow.faults import NAMES, RUN, edit

NOBODY_THERE = "http://127.0.0.1:9"  # in place of the internet


def stage(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Start a stage in the working directory as a person does, without the internet."""
    command = [sys.executable, miniature.PIPELINE / f"{script}.py", *map(str, arguments)]
    offline = {"https_proxy": NOBODY_THERE, "http_proxy": NOBODY_THERE}
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **offline}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def refusal(script: str, *arguments: object, file_size: int | None = None) -> str:
    """Return the one line of a forked stage that refuses; ``file_size`` bounds its files, in bytes."""
    status, forked = processes.run(script, *arguments, file_size=file_size)
    assert status == 2, forked.said()
    return forked.error().removeprefix("error: ")


def test_a_run_from_params_to_its_record(mini_project: Path) -> None:
    trained = stage("train", *NAMES)
    assert trained.returncode == 0, trained.stderr
    assert "CPU" in trained.stderr
    evaluated = stage("evaluate", *NAMES)
    assert evaluated.returncode == 0, evaluated.stderr
    result = record.read(RUN.metrics)
    assert f"{result.miou:.1%}" in evaluated.stdout
    assert (result.labelled, result.ratio, result.last.step) == (2, "1/4", miniature.STEPS)
    assert 0 <= result.miou <= 1
    assert result.best.step in (3, 6)
    assert set(result.last.networks[result.headline].iou) == {"background", "disc", "square"}
    provenance = result.provenance
    assert provenance.packages["torch"] == importlib.metadata.version("torch")
    assert "CPU" in provenance.device
    assert provenance.images_per_second > 0
    assert provenance.config["protocol"]["steps"] == miniature.STEPS
    history = pd.read_csv(RUN.history)
    assert history["step"].tolist() == [2, 3, 4, 6]
    assert history[f"val_miou_{result.headline}"].notna().tolist() == [False, True, False, True]
    assert history[f"val_true_negatives_{result.headline}"].notna().tolist() == [False, True, False, True]
    assert not RUN.checkpoints.exists()

    model = torch.load(RUN.artefacts / "model.pt", weights_only=True)
    torch.save({**model, "config_sha256": "another"}, RUN.artefacts / "model.pt")
    before = RUN.metrics.read_bytes()
    assert refusal("evaluate", *NAMES).startswith(f"{RUN.artefacts}/model.pt: ")
    assert RUN.metrics.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "by", "key"),
    [
        ("steps: 6", "stepz: 6", "protocols: mini: unknown key 'stepz'"),
        ("source: shapes", "source: imagenet", "datasets: mini: source: "),
        ("backbone: timm:test_resnet", "backbone: vgg16", "protocols: mini: network: backbone: "),
        ("1/4: {}", "5/4: {}", "datasets: mini: shares: 5/4: "),
        ("  cmb: {}", "  magic: {}", "recipes: magic: "),
        ("memory_size: 8", "memory_sise: 8", "unknown key 'memory_sise'"),
    ],
)
def test_wrong_params_are_refused_before_any_work(mini_project: Path, change: str, by: str, key: str) -> None:
    edit(change, by)
    line = refusal("check")
    assert line.startswith("params.yaml: ")
    assert key in line
    assert not Path("data/ingredients").exists()


def test_fewer_labelled_images_than_a_batch_are_refused(mini_project: Path) -> None:
    edit("labelled_batch: 2", "labelled_batch: 3")
    line = refusal("split", RUN.split, RUN.seed)
    assert line.startswith("params.yaml: datasets: mini: shares: 1/4: ")
    assert "labelled_batch" in line


def test_a_broken_image_and_a_wrong_mask_are_named(mini_project: Path) -> None:
    images, masks = Path("data/mini/JPEGImages"), Path("data/mini/SegmentationClass")
    labelled = splits.read(RUN.split, RUN.seed).labelled
    mask = masks / f"{labelled[0]}.png"
    whole = mask.read_bytes()
    for broken, said in (
        (Image.new("L", (48, 40)), "48x40.*48x48"),
        (Image.new("L", (48, 48), 9), r"\b9\b.*\b3\b"),
    ):
        broken.save(mask)
        assert re.search(rf"{mask.name}: .*{said}", refusal("train", *NAMES))
    mask.write_bytes(whole)
    image = images / f"{labelled[1]}.jpg"
    image.write_bytes(image.read_bytes()[:300])
    assert f"{image.name}: " in refusal("train", *NAMES)
    assert not (RUN.artefacts / "model.pt").exists()


def test_a_disk_without_room_ends_in_one_line_and_nothing_half_written(mini_project: Path) -> None:
    said = refusal("train", *NAMES, file_size=1 << 20)
    assert said.startswith(f"{RUN.checkpoints}/next.pt: File too large")
    assert list(mini_project.rglob("*.pt*")) == []
    status, forked = processes.run("train", *NAMES)
    assert status == 0, forked.said()


def test_missing_weights_name_the_address_the_file_and_the_folder(mini_project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["protocols"]["mini"]["network"] |= {"backbone": "resnet18", "weights": "imagenet"}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    refused = stage("train", *NAMES)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    for part in ("https://download.pytorch.org/models", "resnet18-f37072fd.pth", "data/archives"):
        assert part in line
