import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, PngImagePlugin

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import prepared, sources, splits, summary
from semiseg.data.contents import pixels_sha256
from semiseg.data.sources import shapes
from tests import miniature

OWN = prepared.Layout()
DATASET = parameters.Dataset("shapes", ("ground", "thing"))


def own(folder: Path, layout: prepared.Layout = OWN) -> None:
    """Make two training images and one for validation; the second has no mask."""
    for part in (layout.images, layout.masks, layout.lists):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 3)).save(folder / layout.image(name))
        if name != "b":
            mask = np.array([[0, 1, 255, 0]] * 3, dtype=np.uint8)
            Image.fromarray(mask).save(folder / layout.mask(name))
    (folder / layout.lists / "train.txt").write_text("a\nb\n")
    (folder / layout.lists / "val.txt").write_text("c\n")


def write(folder: Path = Path("data/mine"), config: parameters.Dataset = DATASET) -> None:
    prepared.write_manifest(folder, config, OWN, ("train", "val"), {})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "layout",
    [
        prepared.VOC,
        prepared.Layout(image_suffix=".png"),
        prepared.Layout(other_suffixes={"a": ".png"}),
    ],
)
def test_a_dataset_is_found_by_its_manifest_in_any_layout(project: Path, layout: prepared.Layout) -> None:
    own(Path("data/mine"), layout)
    with pytest.raises(UserError, match=r"not prepared; .*python pipeline/download\.py mine"):
        prepared.open_dataset("mine", DATASET)
    prepared.write_manifest(Path("data/mine"), DATASET, layout, ("train", "val"), {"from": "here"})
    dataset = prepared.open_dataset("mine", DATASET)
    assert (dataset.ids("train"), dataset.ids("val")) == (("a", "b"), ("c",))
    assert dataset.by_mask() == (("a",), ("b",))
    assert all(dataset.image_path(each).is_file() for each in ("a", "b", "c"))
    assert dataset.mask_path("a").is_file()
    assert dataset.classes == ("ground", "thing")
    with pytest.raises(UserError, match=r"test\.txt: this dataset has no such list"):
        dataset.ids("test")
    manifest = json.loads(Path("data/mine/manifest.json").read_text())
    assert manifest["counts"] == {"train": 2, "val": 1}
    assert manifest["masks"] == {"train": 1, "val": 1}
    assert manifest["pixels"]["train"] == {"ground": 6, "thing": 3, "(ignored)": 3}
    assert manifest["occurs"]["train"] == {"ground": 1, "thing": 1, "(ignored)": 1}
    assert manifest["source"] == {"from": "here"}
    assert manifest["versions"].keys() == {"numpy", "pillow"}


def test_the_list_of_files_holds_a_digest_of_each(project: Path) -> None:
    own(Path("data/mine"))
    write()
    files = prepared.read_files(Path("data/mine"))
    images, masks = [f"images/{name}.jpg" for name in "abc"], ["masks/a.png", "masks/c.png"]
    assert files.keys() == {*images, *masks, "train.txt", "val.txt"}
    assert files["val.txt"] == hashlib.sha256(b"c\n").hexdigest()
    black = hashlib.sha256(b"3x4x3\n" + bytes(36)).hexdigest()
    assert files["images/a.jpg"] == files["images/b.jpg"] == black
    text = Path("data/mine/files.txt").read_bytes()
    assert prepared.open_dataset("mine", DATASET).digest == hashlib.sha256(text).hexdigest()


def test_the_digest_follows_ids_images_and_masks_but_no_encoder(project: Path) -> None:
    def digest() -> str:
        write()
        return prepared.open_dataset("mine", DATASET).digest

    own(Path("data/mine"))
    first = digest()
    assert digest() == first
    mask = Image.open("data/mine/masks/c.png")
    extra = PngImagePlugin.PngInfo()
    extra.add_text("written", "by another program")
    mask.convert("P").save("data/mine/masks/c.png", compress_level=0, pnginfo=extra)
    assert digest() == first
    digests = [first]
    Path("data/mine/train.txt").write_text("b\na\n")
    digests.append(digest())
    Image.new("L", (4, 3)).save("data/mine/masks/c.png")
    digests.append(digest())
    Image.new("RGB", (4, 3), (0, 0, 200)).save("data/mine/images/b.jpg")
    digests.append(digest())
    Path("data/mine/masks/b.png").write_bytes(Path("data/mine/masks/a.png").read_bytes())
    digests.append(digest())
    assert len(set(digests)) == 5


def test_pixels_of_another_shape_have_another_digest() -> None:
    pixels = np.zeros((2, 6), dtype=np.uint8)
    assert pixels_sha256(pixels) != pixels_sha256(pixels.reshape(3, 4))
    assert pixels_sha256(pixels[:, ::2]) == pixels_sha256(np.zeros((2, 3), dtype=np.uint8))


def test_other_settings_are_not_taken_for_the_prepared_ones(project: Path) -> None:
    own(Path("data/mine"))
    write()
    other = parameters.Dataset("shapes", ("ground", "thing", "more"))
    assert prepared.is_prepared("mine", DATASET)
    assert not prepared.is_prepared("mine", other)
    with pytest.raises(UserError, match=r"from other settings .*python pipeline/download\.py mine"):
        prepared.open_dataset("mine", other)
    # the scored list and the shares say nothing about the files
    shares = {"1/2": parameters.Share()}
    scored = parameters.Dataset("shapes", ("ground", "thing"), evaluate="test", background=0, shares=shares)
    assert prepared.is_prepared("mine", scored)


@pytest.mark.parametrize("text", ["{", "[]", '{"counts": {}}', "\udcff"])
def test_a_broken_manifest_is_named(project: Path, text: str) -> None:
    Path("data/mine").mkdir(parents=True)
    Path("data/mine/manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        UserError,
        match=r"data/mine/manifest\.json: not a dataset's manifest .* python pipeline/download\.py mine",
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
        write()
    assert not prepared.is_prepared("mine", DATASET)


# --- masks that cannot train or be scored -----------------------------------------------------------------


def masks(**values: list[int]) -> None:
    """Write masks of one row for images a and c (4 pixels) to data/mine."""
    own(Path("data/mine"))
    for name, row in values.items():
        Image.fromarray(np.array([row] * 3, dtype=np.uint8)).save(f"data/mine/masks/{name}.png")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": [255] * 4}, "no mask of the list 'train' has a pixel that is not 255"),
        ({"c": [255] * 4}, "no mask of the list 'val' has a pixel that is not 255"),
        (
            {"a": [0, 255, 255, 0], "c": [255, 0, 0, 0]},
            r"one class alone, 0 \('ground'\), and 255, .* if 255 stands for a class, store",
        ),
        ({"a": [1] * 4, "c": [1] * 4}, r"one class alone, 1 \('thing'\), so there is nothing to tell apart"),
    ],
)
def test_masks_that_teach_or_score_nothing_are_refused(
    values: dict[str, list[int]], words: str, project: Path
) -> None:
    masks(**values)
    with pytest.raises(UserError, match=words) as refusal:
        write()
    assert "\n" not in str(refusal.value)
    assert not prepared.is_prepared("mine", DATASET)


def test_a_class_that_a_list_lacks_is_warned_of(project: Path) -> None:
    masks(a=[0, 0, 0, 255])
    write()
    lines = summary.warnings(prepared.open_dataset("mine", DATASET))
    assert len(lines) == 1
    assert "'train'" in lines[0]
    assert "thing" in lines[0]
    masks(a=[0, 1, 0, 255])
    write()
    assert summary.warnings(prepared.open_dataset("mine", DATASET)) == []


def test_a_list_is_scored_only_if_it_is_there_and_has_a_pixel(project: Path) -> None:
    own(Path("data/mine"))
    write()
    dataset = prepared.open_dataset("mine", DATASET)
    prepared.check_scored(dataset, "val")
    with pytest.raises(UserError, match=r"data/mine: there is no list 'test' .* one of train, val"):
        prepared.check_scored(dataset, "test")
    manifest = json.loads(Path("data/mine/manifest.json").read_text())
    manifest["pixels"]["val"] = {"ground": 0, "thing": 0, "(ignored)": 12}
    Path("data/mine/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="every pixel of 'val' is 255"):
        prepared.check_scored(dataset, "val")


def test_labelled_images_need_one_labelled_pixel_among_them(project: Path) -> None:
    own(Path("data/mine"))
    write()
    dataset = prepared.open_dataset("mine", DATASET)
    prepared.check_labelled(dataset, ["c"])
    Image.new("L", (4, 3), 255).save("data/mine/masks/a.png")
    prepared.check_labelled(dataset, ["a", "c"])
    with pytest.raises(UserError, match="every pixel of the labelled images is 255"):
        prepared.check_labelled(dataset, ["a"])


# --- prepared once ----------------------------------------------------------------------------------------

MINI = parameters.Dataset("shapes", ("background", "disc"), options={"train": 4, "val": 2, "size": 32})


def test_what_is_prepared_is_made_once_until_settings_or_source_change(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []
    draw = shapes.prepare

    def counted(folder: Path, *rest: Any) -> None:
        drawn.append(folder)
        draw(folder, *rest)

    monkeypatch.setattr(shapes, "prepare", counted)
    sources.prepare("mini", MINI)
    sources.prepare("mini", MINI)
    assert len(drawn) == 1
    other = parameters.Dataset("shapes", MINI.classes, options={**MINI.options, "seed": 9})
    sources.prepare("mini", other)
    assert len(drawn) == 2
    monkeypatch.setattr(shapes, "REVISION", shapes.REVISION + 1)
    sources.prepare("mini", other)
    assert len(drawn) == 3


def test_a_list_that_cannot_be_scored_is_refused_when_it_is_prepared(project: Path) -> None:
    scored = parameters.Dataset("shapes", MINI.classes, evaluate="test", options=MINI.options)
    with pytest.raises(UserError, match="there is no list 'test'"):
        sources.prepare("mini", scored)
    with pytest.raises(UserError, match="there is no list 'test'"):
        sources.prepare("mini", scored)
    sources.prepare("mini", MINI)


def test_training_refuses_what_cannot_be_scored_or_learnt_from(mini_project: Path) -> None:
    def train() -> str:
        command = [sys.executable, str(miniature.PIPELINE / "train.py"), "supervised", miniature.SPLIT, "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        return done.stderr.splitlines()[-1]

    text = Path("params.yaml").read_text()
    tree = yaml.safe_load(text)
    tree["datasets"]["mini"]["evaluate"] = "test"
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    assert train().startswith("error: data/mini: there is no list 'test'")
    Path("params.yaml").write_text(text)
    for each in splits.read(miniature.SPLIT, 0).labelled:
        Image.new("L", (48, 48), 255).save(f"data/mini/SegmentationClass/{each}.png")
    assert train().startswith("error: data/mini: every pixel of the labelled images is 255")
    assert not Path("runs").exists()


def test_the_summary_counts_images_masks_and_pixels(project: Path) -> None:
    own(Path("data/mine"))
    write()
    lines = summary.summary(prepared.open_dataset("mine", DATASET)).splitlines()
    assert lines[0] == "data/mine: 2 train, 1 val images, 2 classes"
    cells = [line.split() for line in lines]
    assert ["train", "2", "1", "1"] in cells
    assert ["val", "1", "1", "0"] in cells
    assert ["thing", "3", "1", "3", "1"] in cells
    assert ["(ignored)", "3", "1", "3", "1"] in cells
