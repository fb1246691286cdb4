from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import prepared, sources
from tests import releases

OWN = parameters.Dataset("folder", ("nothing", "thing"), options={"path": "mine"})
MASK = np.array([[0, 1, 1], [255, 0, 1]], dtype=np.uint8)


def mask(values: np.ndarray = MASK) -> bytes:
    return releases.png(values)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mine/: four training images, of which two have masks, and a validation image; the working directory."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images/trip", "masks/trip"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for each in ("a", "b", "trip/c", "trip/d", "v"):
        (tmp_path / f"mine/images/{each}.png").write_bytes(releases.picture(each, "PNG", (2, 3)))
    for each in ("a", "trip/c", "v"):
        (tmp_path / f"mine/masks/{each}.png").write_bytes(mask())
    (tmp_path / "mine/train.txt").write_text("# my images\na\nb\ntrip/c\ntrip/d\n")
    (tmp_path / "mine/val.txt").write_text("v\n")
    return tmp_path / "mine"


def test_a_folder_is_a_dataset(own: Path) -> None:
    assert sources.prepare("own", OWN) == "data/own: 4 train, 1 val images, 2 classes"
    dataset = prepared.open_dataset("own", OWN)
    assert dataset.ids("train") == ("a", "b", "trip/c", "trip/d")
    assert dataset.image_path("trip/d").read_bytes() == (own / "images/trip/d.png").read_bytes()
    assert [dataset.mask_path(each).exists() for each in dataset.ids("train")] == [True, False, True, False]
    manifest = prepared.read_manifest(dataset.folder)
    assert manifest is not None
    assert manifest["pixels"]["train"] == {"nothing": 4, "thing": 6, "(ignored)": 2}
    assert manifest["source"]["path"] == "mine"


def test_a_list_of_test_images_is_one_more(own: Path) -> None:
    (own / "test.txt").write_text("v\n")
    (own / "val.txt").write_text("a\n")
    (own / "train.txt").write_text("b\ntrip/c\n")
    assert sources.prepare("own", OWN) == "data/own: 2 train, 1 val, 1 test images, 2 classes"


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda own: (own / "val.txt").unlink(), r"mine/val\.txt: not there"),
    "an empty list": (lambda own: (own / "val.txt").write_text("\n"), r"mine/val\.txt: lists no image"),
    "twice": (
        lambda own: (own / "train.txt").write_text("a\na\n"),
        r"'a' stands in train\.txt too",
    ),
    "trained and scored": (
        lambda own: (own / "val.txt").write_text("a\n"),
        r"mine/val\.txt: 'a' stands in train\.txt too",
    ),
    "outside": (
        lambda own: (own / "train.txt").write_text("../x\n"),
        r"'\.\./x' is not the name of an image",
    ),
    "absolute": (
        lambda own: (own / "train.txt").write_text("/etc/x\n"),
        "'/etc/x' is not the name of an image",
    ),
    "no image": (lambda own: (own / "images/trip/d.png").unlink(), r"mine/images/trip/d\.png: not there"),
    "no first image": (lambda own: (own / "images/a.png").unlink(), "mine/images/a: no such image"),
    "no mask to score": (lambda own: (own / "masks/v.png").unlink(), r"mine/masks/v\.png: not there"),
    "not an image": (
        lambda own: (own / "images/b.png").write_bytes(b"?"),
        r"mine/images/b\.png: unreadable image",
    ),
    "a class too many": (
        lambda own: (own / "masks/a.png").write_bytes(mask(np.full((2, 3), 2, np.uint8))),
        r"mine/masks/a\.png: holds the value 2",
    ),
    "another size": (
        lambda own: (own / "masks/a.png").write_bytes(mask(np.zeros((4, 4), np.uint8))),
        r"mine/masks/a\.png: the mask is 4x4, its image 3x2",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_wrong_in_the_folder_is_said_in_one_line(bad: str, own: Path) -> None:
    spoil, words = BAD[bad]
    spoil(own)
    with pytest.raises(UserError, match=words) as refusal:
        sources.prepare("own", OWN)
    assert "\n" not in str(refusal.value)
    assert not any(path.is_dir() for path in Path("data").iterdir())


def test_the_folder_must_be_named() -> None:
    with pytest.raises(UserError, match=r"datasets: own: options: missing key 'path'"):
        sources.prepare("own", parameters.Dataset("folder", OWN.classes))
