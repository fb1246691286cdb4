"""A folder of images and masks is described in any layout, with its problems."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.base.parameters import Dataset
from semiseg.data import inspection, sources
from tests import releases
from tests.project import ROOT

NAMES = ("a", "b_1", "trip/c", "trip/d", "e")
MASK = np.array([[0, 1, 1], [255, 0, 2]], dtype=np.uint8)

Place = Callable[[str], str]


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lay(image: Place, mask: Place, names: tuple[str, ...] = NAMES, values: np.ndarray = MASK) -> None:
    """Write an image and a mask of each name, at the paths in mine/ that the two functions give."""
    for name in names:
        for path, content in (
            (image(name), releases.picture(name, "JPEG", (2, 3))),
            (mask(name), releases.png(values)),
        ):
            Path("mine", path).parent.mkdir(parents=True, exist_ok=True)
            Path("mine", path).write_bytes(content)


def usual(values: np.ndarray = MASK) -> None:
    lay(lambda name: f"images/{name}.jpg", lambda name: f"masks/{name}.png", values=values)


LAYOUTS: dict[str, tuple[Place, Place, tuple[str, str, str]]] = {
    "usual": (lambda n: f"images/{n}.jpg", lambda n: f"masks/{n}.png", ("images", "masks", "")),
    "other names": (lambda n: f"photos/{n}.JPG", lambda n: f"gt/{n}.png", ("photos", "gt", "")),
    "names that say nothing": (lambda n: f"y/{n}.png", lambda n: f"x/{n}.png", ("y", "x", "")),
    "a suffix": (
        lambda n: f"images/{n}.jpg",
        lambda n: f"labels/{n}_mask.png",
        ("images", "labels", "_mask"),
    ),
    "side by side": (lambda n: f"{n}.jpg", lambda n: f"{n}-seg.png", (".", ".", "-seg")),
    "side by side, one name": (lambda n: f"{n}.jpg", lambda n: f"{n}.png", (".", ".", "")),
    "masks below the images": (lambda n: f"{n}.jpg", lambda n: f"masks/{n}.png", (".", "masks", "")),
    "deeper": (
        lambda n: f"data/img/{n}.jpg",
        lambda n: f"data/masks/{n}.png",
        ("data/img", "data/masks", ""),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_found_and_what_it_gives_is_prepared(layout: str) -> None:
    image, mask, expected = LAYOUTS[layout]
    lay(image, mask)
    found = inspection.inspect("mine")
    options = found.options
    assert (options.images, options.masks, options.mask_suffix) == expected
    assert found.problems == ()
    assert found.remarks == ()
    assert {listed: len(ids) for listed, ids in found.lists.items()} == {"train": 4, "val": 1}
    assert found.pixels[[0, 1, 2, 255]].tolist() == [10, 10, 5, 5]
    assert found.occurs[[0, 1, 2, 3]].tolist() == [5, 5, 5, 0]
    assert (found.num_classes, found.long_side, found.short_side) == (3, 3, 2)
    dataset = sources.prepare(
        "own", Dataset("folder", ("x", "y", "z"), options=vars(options) | {"validation": "1/5"})
    )
    assert {listed: dataset.ids(listed) for listed in ("train", "val")} == found.lists
    assert sorted(sum(found.lists.values(), ())) == sorted(NAMES)


def test_nothing_is_written() -> None:
    usual()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    inspection.report(inspection.inspect("mine"), ["x", "y", "z"])
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_lists_that_are_there_are_taken() -> None:
    usual()
    Path("mine/train.txt").write_text("a\nb_1\n")
    Path("mine/val.txt").write_text("e\n")
    found = inspection.inspect("mine")
    assert found.options.validation is None
    assert found.lists == {"train": ("a", "b_1"), "val": ("e",)}
    Path("mine/val.txt").unlink()
    (problem,) = inspection.inspect("mine").problems
    assert problem.startswith("mine/val.txt: ")


def test_the_drawn_list_depends_on_names_alone() -> None:
    usual()
    before = inspection.inspect("mine").lists
    lay(lambda name: f"images/{name}.jpg", lambda name: f"masks/{name}.png", values=MASK[::-1])
    assert inspection.inspect("mine").lists == before


def test_images_without_a_mask_are_told_and_trained_on() -> None:
    usual()
    Path("mine/masks/a.png").unlink()
    Path("mine/masks/stray.png").write_bytes(releases.png(MASK))
    found = inspection.inspect("mine")
    assert found.problems == ()
    assert "a" in found.lists["train"]
    assert sum(found.masks.values()) == 4
    assert len(found.remarks) == 2
    assert found.remarks[0].startswith("1 images have no mask")
    assert "stray.png" in found.remarks[1]


def test_another_pair_of_folders_is_told() -> None:
    lay(lambda name: f"train/images/{name}.jpg", lambda name: f"train/masks/{name}.png")
    lay(lambda name: f"val/images/{name}.jpg", lambda name: f"val/masks/{name}.png", NAMES[:2])
    found = inspection.inspect("mine")
    assert (found.options.images, found.options.masks) == ("train/images", "train/masks")
    (remark,) = found.remarks
    assert remark.startswith("val/images and val/masks pair 2 more images")


def test_classes_that_masks_lack_are_told() -> None:
    usual(np.array([[0, 1, 3]] * 2, dtype=np.uint8))
    found = inspection.inspect("mine")
    (scored,) = found.lists["val"]
    Path(f"mine/masks/{scored}.png").write_bytes(releases.png(np.array([[0, 1, 1]] * 2, dtype=np.uint8)))
    found = inspection.inspect("mine")
    assert found.problems == ()
    assert found.num_classes == 4
    assert [each.partition(":")[0] for each in found.remarks] == [
        "no mask holds 2",
        "no mask of 'val' holds 3",
    ]


# --- what is wrong ----------------------------------------------------------------------------------------


def in_colours(path: Path) -> None:
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], dtype=np.uint8)
    Image.fromarray(colours[MASK.clip(0, 2)]).save(path)


def as_jpeg(path: Path) -> None:
    path.unlink()
    Image.fromarray(MASK).save(path.with_suffix(".jpg"))


SPOILT: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "0 and 255": (
        lambda path: path.write_bytes(releases.png(MASK.clip(0, 1) * np.uint8(255))),
        ("mine: the masks hold 0 and 255 alone",),
    ),
    "all 255": (lambda path: path.write_bytes(releases.png(MASK | 255)), ("mine: every pixel",)),
    "one class": (lambda path: path.write_bytes(releases.png(MASK * 0)), ("mine: the masks hold the value",)),
    "shades": (
        lambda path: path.write_bytes(releases.png(MASK.clip(0, 2) * np.uint8(100))),
        ("mine: the masks hold the values 0, 100, 200: ",),
    ),
    "in colours": (in_colours, ("mine/masks/", "RGB", "#800000", "(and 4 more such files)")),
    "JPEG": (as_jpeg, ("mine/masks/", "this is JPEG", "(and 4 more such files)")),
    "another size": (
        lambda path: path.write_bytes(releases.png(MASK.T.copy())),
        ("mine/masks/", "the mask is 2x3, its image 3x2", "(and 4 more such files)"),
    ),
    "not an image": (lambda path: path.write_bytes(b"?"), ("mine/masks/", "unreadable", "(and 4 more")),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_is_wrong_with_masks_is_one_problem(spoilt: str) -> None:
    usual()
    spoil, words = SPOILT[spoilt]
    for path in sorted(Path("mine/masks").rglob("*.png")):
        spoil(path)
    found = inspection.inspect("mine")
    (problem,) = found.problems
    assert problem.startswith(words[0])
    for each in words:
        assert each in problem
    assert f"problem: {problem}" in inspection.report(found, ["x", "y"]).splitlines()


@pytest.mark.parametrize(
    ("spoilt", "colours"),
    [("0 and 255", [(0, 0, 0), (255, 255, 255)]), ("in colours", [(0, 0, 0), (128, 0, 0), (0, 128, 0)])],
)
def test_the_loop_of_the_documentation_mends_masks(
    spoilt: str, colours: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual()
    for path in sorted(Path("mine/masks").rglob("*.png")):
        SPOILT[spoilt][0](path)
    page = (ROOT / "docs" / "datasets.md").read_text()
    code = page.partition("### Masks in colours")[2].partition("```python\n")[2].partition("```")[0]
    code, changed = re.subn(r"(?m)^colours = .*$", f"colours = {colours}", code)
    assert changed == 1
    Path("suite").mkdir()
    monkeypatch.chdir("suite")
    exec(code, {})
    found = inspection.inspect("../mine")
    assert found.problems == ()
    assert found.num_classes == len(colours)
    assert found.occurs[: len(colours)].tolist() == [5] * len(colours)


def test_each_kind_of_problem_is_told() -> None:
    usual()
    as_jpeg(Path("mine/masks/a.png"))
    in_colours(Path("mine/masks/b_1.png"))
    Path("mine/images/e.PNG").write_bytes(releases.picture("e", "PNG", (2, 3)))
    assert len(inspection.inspect("mine").problems) == 3


@pytest.mark.parametrize("folder", ["nowhere", "mine/images/a.jpg", "mine/images"])
def test_a_folder_without_pairs_is_refused(folder: str) -> None:
    usual()
    with pytest.raises(UserError) as error:
        inspection.inspect(folder)
    assert str(error.value).startswith(f"{folder}: ")
