import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import prepared, sources, verification
from tests import miniature

IMAGES, MASKS = Path("data/mini/JPEGImages"), Path("data/mini/SegmentationClass")


def changed() -> list[str]:
    dataset = prepared.open_dataset("mini", parameters.load().datasets["mini"])
    return list(verification.changed(dataset))


def stage(script: str, name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(miniature.PIPELINE / f"{script}.py"), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dataset_as_it_was_prepared_has_no_problem(mini_project: Path) -> None:
    assert changed() == []
    done = stage("verify", "mini")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("data/mini: ")


def test_every_changed_file_is_named_and_preparing_again_mends_them(mini_project: Path) -> None:
    before = prepared.open_dataset("mini", parameters.load().datasets["mini"]).digest
    (IMAGES / "train_0001.jpg").write_bytes((IMAGES / "train_0001.jpg").read_bytes()[:99])
    Image.fromarray(np.ones((48, 48), np.uint8)).save(MASKS / "train_0001.png")  # beside a broken image
    Image.fromarray(np.full((48, 48), 3, np.uint8)).save(MASKS / "train_0002.png")
    Image.fromarray(np.zeros((48, 47), np.uint8)).save(MASKS / "train_0004.png")
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(MASKS / "train_0005.png")  # legal, but another
    (IMAGES / "train_0006.jpg").write_bytes((IMAGES / "train_0007.jpg").read_bytes())
    (MASKS / "val_0000.png").unlink()
    (IMAGES / "val_0001.jpg").unlink()
    (MASKS / "train_0003.png").unlink()
    Path("data/mini/ImageSets/Segmentation/val.txt").write_text("val_0000\n")
    expected = {
        "JPEGImages/train_0001.jpg": "unreadable image",
        "SegmentationClass/train_0001.png": "its pixels are not those",
        "SegmentationClass/train_0002.png": "holds the value 3",
        "SegmentationClass/train_0003.png": "unreadable mask (No such file",
        "SegmentationClass/train_0004.png": "the mask is 47x48, its image 48x48",
        "SegmentationClass/train_0005.png": "its pixels are not those",
        "JPEGImages/train_0006.jpg": "its pixels are not those",
        "SegmentationClass/val_0000.png": "unreadable mask (No such file",
        "JPEGImages/val_0001.jpg": "unreadable image (No such file",
        "ImageSets/Segmentation/val.txt": "not the list of ids",
    }
    found = changed()
    assert len(found) == len(expected)
    for name, words in expected.items():
        assert [line.startswith(f"data/mini/{name}: ") and words in line for line in found].count(True) == 1
    done = stage("verify", "mini")
    assert done.returncode == 1
    *lines, last = done.stderr.splitlines()
    assert lines == [f"error: {line}" for line in found]
    assert last.endswith("python pipeline/download.py mini")
    done = stage("download", "mini")
    assert done.returncode == 0
    assert found[0] in done.stderr
    assert stage("verify", "mini").returncode == 0
    assert prepared.open_dataset("mini", parameters.load().datasets["mini"]).digest == before


def test_a_file_that_was_added_is_named_and_not_removed(mini_project: Path) -> None:
    Path("data/mini/SegmentationClass/extra.png").write_bytes((MASKS / "val_0000.png").read_bytes())
    assert changed() == []
    done = stage("verify", "mini")
    assert done.returncode == 1
    assert done.stderr == (
        "error: data/mini/SegmentationClass/extra.png: not among the prepared files; move it away\n"
    )
    assert stage("download", "mini").returncode == 0
    assert Path("data/mini/SegmentationClass/extra.png").is_file()


def test_an_edited_list_of_files_is_seen(mini_project: Path) -> None:
    path = Path("data/mini/files.txt")
    path.write_text(path.read_text().replace("train_0000.jpg", "train_9999.jpg"))
    assert [line.partition(":")[0] for line in changed()] == ["data/mini/files.txt"]
    for content in ("", "[1]\n"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"^data/mini/files\.txt: .* move data/mini away"):
            prepared.open_dataset("mini", parameters.load().datasets["mini"]).by_mask()


@pytest.mark.parametrize("content", [b"train_0000\n", b"", b"\xff\xfe"])
def test_an_edited_list_of_ids_is_not_used(mini_project: Path, content: bytes) -> None:
    dataset = prepared.open_dataset("mini", parameters.load().datasets["mini"])
    (dataset.folder / dataset.layout.list("val")).write_bytes(content)
    with pytest.raises(UserError, match=r"val\.txt: .* python pipeline/download\.py mini"):
        dataset.ids("val")
    assert len(dataset.ids("train")) == 8


def test_masks_of_training_images_that_had_none_are_not_missed(mini_project: Path) -> None:
    own = Path("own")
    for part in ("images", "masks"):
        (own / part).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 3), (9, 9, 9)).save(own / f"images/{name}.png")
        if name != "b":
            Image.fromarray(np.array([[0, 1, 1, 0]] * 3, np.uint8)).save(own / f"masks/{name}.png")
    (own / "train.txt").write_text("a\nb\n")
    (own / "val.txt").write_text("c\n")
    dataset = sources.prepare("own", parameters.Dataset("folder", ("x", "y"), options={"path": "own"}))
    assert list(verification.changed(dataset)) == []


def test_what_is_not_prepared_is_said_in_one_line(mini_project: Path) -> None:
    done = stage("verify", "other")
    assert done.returncode == 2
    assert done.stderr == "error: params.yaml: datasets: there is no 'other'; there are mini\n"
