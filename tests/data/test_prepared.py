import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.tree import from_tree
from semiseg.data import prepared, sources
from semiseg.data.sources import shapes
from tests import miniature

OWN = prepared.Layout()
DATASET = parameters.Dataset("shapes", ("ground", "thing"))


def own(folder: Path, layout: prepared.Layout = OWN) -> None:
    """Two training images and one for validation; the second has no mask."""
    for part in (layout.images, layout.masks, layout.lists):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 3)).save(folder / layout.images / f"{name}{layout.image_suffix}")
        if name != "b":
            mask = np.array([[0, 1, 255, 0]] * 3, dtype=np.uint8)
            Image.fromarray(mask).save(folder / layout.masks / f"{name}.png")
    (folder / layout.lists / "train.txt").write_text("a\nb\n")
    (folder / layout.lists / "val.txt").write_text("c\n")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("layout", [prepared.VOC, prepared.Layout(image_suffix=".png")])
def test_a_dataset_is_found_by_its_manifest_in_any_layout(project: Path, layout: prepared.Layout) -> None:
    own(Path("data/mine"), layout)
    with pytest.raises(UserError, match=r"not prepared; .*python pipeline/download\.py mine"):
        prepared.open_dataset("mine", DATASET)
    prepared.write_manifest(Path("data/mine"), DATASET, layout, ("train", "val"), {"from": "here"})
    dataset = prepared.open_dataset("mine", DATASET)
    assert (dataset.ids("train"), dataset.ids("val")) == (("a", "b"), ("c",))
    assert dataset.image_path("a").is_file()
    assert dataset.mask_path("a").is_file()
    assert dataset.classes == ("ground", "thing")
    with pytest.raises(UserError, match=r"test\.txt: this dataset has no such list"):
        dataset.ids("test")
    manifest = json.loads(Path("data/mine/manifest.json").read_text())
    assert manifest["counts"] == {"train": 2, "val": 1}
    assert manifest["source"] == {"from": "here"}
    assert manifest["versions"].keys() == {"numpy", "pillow"}


def test_the_digest_follows_ids_and_labels(project: Path) -> None:
    def digest() -> str:
        prepared.write_manifest(Path("data/mine"), DATASET, OWN, ("train", "val"), {})
        return prepared.open_dataset("mine", DATASET).digest

    own(Path("data/mine"))
    digests = [digest(), digest()]
    assert digests[0] == digests[1]
    Path("data/mine/train.txt").write_text("b\na\n")
    digests.append(digest())
    Image.new("L", (4, 3)).save("data/mine/masks/c.png")
    digests.append(digest())
    assert len(set(digests)) == 3


def test_other_settings_are_not_taken_for_the_prepared_ones(project: Path) -> None:
    own(Path("data/mine"))
    prepared.write_manifest(Path("data/mine"), DATASET, OWN, ("train", "val"), {})
    other = parameters.Dataset("shapes", ("ground", "thing", "more"))
    assert prepared.is_prepared("mine", DATASET)
    assert not prepared.is_prepared("mine", other)
    with pytest.raises(UserError, match=r"from other settings .*python pipeline/download\.py mine"):
        prepared.open_dataset("mine", other)
    # where it is scored says nothing about the files
    assert prepared.is_prepared("mine", parameters.Dataset("shapes", ("ground", "thing"), evaluate="test"))


@pytest.mark.parametrize("text", ["{", "[]", '{"counts": {}}'])
def test_a_broken_manifest_is_named(project: Path, text: str) -> None:
    Path("data/mine").mkdir(parents=True)
    Path("data/mine/manifest.json").write_text(text)
    with pytest.raises(
        UserError, match=r"data/mine/manifest\.json: not a dataset's manifest; remove data/mine"
    ):
        prepared.open_dataset("mine", DATASET)


def break_image(folder: Path) -> None:
    (folder / "images/b.jpg").write_bytes(b"no image")


def break_size(folder: Path) -> None:
    Image.new("L", (3, 4)).save(folder / "masks/a.png")


def break_value(folder: Path) -> None:
    Image.new("L", (4, 3), 2).save(folder / "masks/c.png")


def lose_mask(folder: Path) -> None:
    (folder / "masks/c.png").unlink()


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (break_image, r"b\.jpg: unreadable image"),
        (break_size, r"a\.png: the mask is 3x4, its image 4x3"),
        (break_value, r"c\.png: holds the value 2, but there are 2 classes and 255"),
        (lose_mask, r"c\.png: unreadable mask \(No such file"),
    ],
)
def test_what_training_could_not_read_has_no_manifest(project: Path, breaking: Any, words: str) -> None:
    own(Path("data/mine"))
    breaking(Path("data/mine"))
    with pytest.raises(UserError, match=words):
        prepared.write_manifest(Path("data/mine"), DATASET, OWN, ("train", "val"), {})
    assert not prepared.is_prepared("mine", DATASET)


MINI = from_tree(parameters.Dataset, miniature.PARAMS["datasets"]["mini"], "mini")


def test_an_interrupted_preparation_leaves_nothing_that_passes_for_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, *_: object) -> None:
        own(folder)
        raise KeyboardInterrupt

    def full(folder: Path, *_: object) -> None:
        own(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    for failing, error in ((interrupted, KeyboardInterrupt), (full, OSError)):
        with monkeypatch.context() as patch:
            patch.setattr(shapes, "prepare", failing)
            with pytest.raises(error):
                sources.prepare("mini", MINI)
        assert [path.name for path in Path("data").iterdir() if path.is_dir()] == []
    # killed: no clean-up ran
    own(Path("data/.mini.partial"))
    assert not prepared.is_prepared("mini", MINI)
    assert sources.prepare("mini", MINI) == "data/mini: 8 train, 2 val images, 3 classes"
    assert [path.name for path in Path("data").iterdir() if path.is_dir()] == ["mini"]


def test_a_failed_preparation_leaves_the_earlier_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.prepare("mini", MINI)
    before = Path("data/mini/manifest.json").read_bytes()

    def failing(*_: object) -> None:
        raise UserError("no archive")

    monkeypatch.setattr(shapes, "prepare", failing)
    with pytest.raises(UserError, match="no archive"):
        sources.prepare("mini", parameters.Dataset("shapes", MINI.classes, options={"seed": 9}))
    assert Path("data/mini/manifest.json").read_bytes() == before


def test_what_is_prepared_is_left_as_it_is_until_settings_or_source_change(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources.prepare("mini", MINI)
    mark = Path("data/mini/mark")
    mark.touch()
    sources.prepare("mini", MINI)
    assert mark.exists()
    sources.prepare("mini", parameters.Dataset("shapes", MINI.classes, options={**MINI.options, "seed": 9}))
    assert not mark.exists()
    mark.touch()
    monkeypatch.setattr(shapes, "REVISION", shapes.REVISION + 1)
    sources.prepare("mini", parameters.Dataset("shapes", MINI.classes, options={**MINI.options, "seed": 9}))
    assert not mark.exists()


def test_the_stage_prepares_and_refuses_in_one_line(mini_project: Path) -> None:
    def download(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(miniature.PIPELINE / "download.py"), name]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = download("mini")
    assert (done.returncode, done.stdout) == (0, "data/mini: 8 train, 2 val images, 3 classes\n")
    done = download("mimi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: params.yaml: datasets: there is no 'mimi'; there are mini\n"
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["datasets"]["mini"]["options"] = {"trian": 8}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    done = download("mini")
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: datasets: mini: options: unknown key 'trian'")
