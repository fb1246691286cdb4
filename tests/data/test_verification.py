import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from semiseg.base import parameters
from semiseg.data import prepared, verification
from tests import miniature


def problems() -> list[str]:
    dataset = prepared.open_dataset("mini", parameters.load().datasets["mini"])
    return list(verification.problems(dataset))


def verify(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(miniature.PIPELINE / "verify.py"), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dataset_as_it_was_prepared_has_no_problem(mini_project: Path) -> None:
    assert problems() == []
    done = verify("mini")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "data/mini: every image and mask is as it was prepared\n"


def test_every_bad_file_is_named(mini_project: Path) -> None:
    images, masks = Path("data/mini/JPEGImages"), Path("data/mini/SegmentationClass")
    (images / "train_0001.jpg").write_bytes((images / "train_0001.jpg").read_bytes()[:99])
    Image.fromarray(np.full((48, 48), 3, np.uint8)).save(masks / "train_0002.png")
    Image.fromarray(np.zeros((48, 47), np.uint8)).save(masks / "train_0004.png")
    (masks / "val_0000.png").unlink()
    (images / "val_0001.jpg").unlink()
    found = problems()
    for name, words in {
        "train_0001.jpg": "unreadable image",
        "train_0002.png": "holds the value 3",
        "train_0004.png": "the mask is 47x48, its image 48x48",
        "val_0000.png": "unreadable mask",
        "val_0001.jpg": "unreadable image",
    }.items():
        assert [name in line and words in line for line in found].count(True) == 1
    assert len(found) == 5
    done = verify("mini")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {line}" for line in found]


def test_a_legal_mask_that_is_another_is_seen(mini_project: Path) -> None:
    Image.fromarray(np.zeros((48, 48), np.uint8)).save("data/mini/SegmentationClass/train_0002.png")
    assert problems() == ["data/mini: its ids or masks are not those that were prepared"]


def test_a_list_that_was_cut_is_seen(mini_project: Path) -> None:
    Path("data/mini/ImageSets/Segmentation/val.txt").write_text("val_0000\n")
    assert problems()[0] == "data/mini: val has 1 images, the manifest says 2"
    assert verify("mini").returncode == 1


def test_an_image_for_training_may_have_no_mask(mini_project: Path) -> None:
    Path("data/mini/SegmentationClass/train_0002.png").unlink()
    assert problems() == ["data/mini: its ids or masks are not those that were prepared"]


def test_what_is_not_prepared_is_said_in_one_line(mini_project: Path) -> None:
    done = verify("other")
    assert done.returncode == 2
    assert done.stderr == "error: params.yaml: datasets: there is no 'other'; there are mini\n"
