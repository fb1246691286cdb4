import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import sources
from semiseg.data.sources import shapes

CLASSES = ("background", "disc", "square", "triangle", "cross", "ring", "star")


def dataset(classes: tuple[str, ...] = CLASSES, /, **options: object) -> parameters.Dataset:
    return parameters.Dataset("shapes", classes, background=0, options=options)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def masks(name: str, count: int) -> list[np.ndarray]:
    folder = Path("data") / name / "SegmentationClass"
    return [np.array(Image.open(path)) for path in sorted(folder.iterdir())[:count]]


def test_the_layout_is_that_of_voc(project: Path) -> None:
    prepared = sources.prepare("shapes", dataset(train=6, val=2))
    assert [len(prepared.ids(listed)) for listed in ("train", "val")] == [6, 2]
    folder = Path("data/shapes")
    ids = (folder / "ImageSets/Segmentation/train.txt").read_text().splitlines()
    assert len(set(ids)) == 6
    assert not set(ids) & set((folder / "ImageSets/Segmentation/val.txt").read_text().splitlines())
    for each in ids:
        with Image.open(folder / f"JPEGImages/{each}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        with Image.open(folder / f"SegmentationClass/{each}.png") as mask:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (64, 64))
            # VOC's palette: aeroplane dark red, bicycle dark green, void cream
            palette = mask.getpalette()
            assert palette is not None
            assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            assert palette[-3:] == [224, 224, 192]


def test_classes_never_touch_and_the_border_is_thin(project: Path) -> None:
    sources.prepare("shapes", dataset(train=8, val=1))
    for mask in masks("shapes", 8):
        for axis in (0, 1):
            before, after = (np.take(mask, range(k, 63 + k), axis) for k in (0, 1))
            assert ((before == after) | (before == 255) | (after == 255)).all()
        # Every border pixel touches a class, so the border is at most two pixels wide.
        padded = np.pad(mask, 1, mode="edge")
        around = [padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]]
        lonely = (mask == 255) & np.logical_and.reduce([each == 255 for each in around])
        assert lonely.mean() < 0.01


def test_the_same_seed_gives_the_same_masks_on_every_platform(project: Path) -> None:
    sources.prepare("one", dataset(train=5, val=2))
    digest = hashlib.sha256(b"".join(mask.tobytes() for mask in masks("one", 7))).hexdigest()
    assert digest == "d825f345a727990e862e49477eed61a8b605d8dc7e0d9416ac6760d37641f677"
    sources.prepare("same", dataset(train=5, val=2))
    for path in sorted(Path("data/one").rglob("*.*")):
        assert path.read_bytes() == (Path("data/same") / path.relative_to("data/one")).read_bytes()
    sources.prepare("other", dataset(train=5, val=2, seed=1))
    assert not np.array_equal(masks("one", 1)[0], masks("other", 1)[0])


def test_an_image_is_the_same_however_many_are_drawn(project: Path) -> None:
    sources.prepare("few", dataset(train=2, val=1))
    sources.prepare("more", dataset(train=4, val=1))
    for few, more in zip(masks("few", 2), masks("more", 2), strict=True):
        np.testing.assert_array_equal(few, more)


def test_every_class_is_common_and_most_is_background(project: Path) -> None:
    sources.prepare("shapes", dataset(train=40, val=1))
    found = masks("shapes", 40)
    share = np.bincount(np.concatenate([mask.ravel() for mask in found]), minlength=256) / (40 * 64 * 64)
    assert 0.5 < share[0] < 0.9
    for label in range(1, 7):
        assert share[label] > 0.005
        assert sum((mask == label).any() for mask in found) >= 8
    assert share[1:7].max() < 8 * share[1:7].min()


def inside(name: str, points: list[tuple[float, float]]) -> list[bool]:
    """Return whether points, in radii from the centre, lie in a form."""
    radius = 20 * shapes.UNIT
    u, v = (np.array([round(point[axis] * radius) for point in points]) for axis in (0, 1))
    return shapes.FORMS[name](u, v, radius).tolist()


@pytest.mark.parametrize(
    ("name", "within", "without"),
    [
        ("disc", [(0, 0), (0.69, 0.69), (-0.98, 0)], [(0.72, 0.72), (0, 1.02)]),
        ("square", [(0, 0), (0.79, 0.79), (-0.79, 0.3)], [(0.82, 0), (0, -0.82)]),
        ("triangle", [(0, 0), (0, 0.95), (0.8, -0.45), (-0.8, -0.45)], [(0, -0.55), (0.3, 0.6), (0.8, 0)]),
        ("cross", [(0, 0), (0.95, 0.25), (-0.2, -0.95)], [(0.4, 0.4), (-0.4, 0.5), (1.05, 0)]),
        ("ring", [(0.8, 0), (0, -0.95), (0.5, 0.5)], [(0, 0), (0.3, 0.3), (1.02, 0)]),
        ("star", [(0, 0), (1.1, 0), (0, -1.1), (0.25, 0.25)], [(0.4, 0.4), (-0.5, 0.4), (1.2, 0)]),
    ],
)
def test_forms_are_what_their_names_say(
    name: str, within: list[tuple[float, float]], without: list[tuple[float, float]]
) -> None:
    assert all(inside(name, within))
    assert not any(inside(name, without))


def test_colour_points_at_a_class_but_does_not_give_it_away(project: Path) -> None:
    sources.prepare("shapes", dataset(train=160, val=1))
    ids = Path("data/shapes/ImageSets/Segmentation/train.txt").read_text().splitlines()
    images = [Image.open(f"data/shapes/JPEGImages/{each}.jpg").convert("HSV") for each in ids]
    hue, saturation, _ = np.moveaxis(np.stack([np.array(image) for image in images]), -1, 0)
    labels = np.stack(masks("shapes", 160))
    for label in range(1, 7):
        away = (hue.astype(int) - round(256 * (label - 1) / 6) + 128) % 256 - 128
        alike = (abs(away) < 11) & (saturation > 128) & (labels != 255)
        # Hue alone finds much of a form, misses some, and mistakes clutter and ground for it.
        assert 0.5 < alike[labels == label].mean() < 0.9
        assert 0.4 < (labels[alike] == label).mean() < 0.9
        assert (labels[alike] == 0).mean() > 0.1


def test_options_set_how_many_forms_there_are_and_how_large(project: Path) -> None:
    discs, few = ("background", "disc"), {"train": 30, "val": 1, "clutter": [0, 0]}
    sources.prepare("three", dataset(discs, **few, forms=[3, 3], radius=["1/16", "1/12"]))
    assert max(ndimage.label(mask == 1)[1] for mask in masks("three", 30)) == 3
    sources.prepare("one", dataset(discs, **few, forms=[1, 1], radius=["1/4", "1/3"]))
    spans = [ndimage.find_objects((mask != 0).astype(int))[0] for mask in masks("one", 30)]
    whole = [rows.stop - rows.start for rows, _ in spans if rows.start > 0 and rows.stop < 64]
    assert len(whole) >= 5
    # a diameter of 64 / 2 to 64 * 2 / 3 pixels, and a pixel of the border on either side
    assert min(whole) >= 32
    assert max(whole) <= 45


def test_without_clutter_the_ground_is_greyish(project: Path) -> None:
    sources.prepare("shapes", dataset(train=20, val=1, clutter=[0, 0]))
    for path in sorted(Path("data/shapes/JPEGImages").glob("train_*.jpg")):
        saturation = np.array(Image.open(path).convert("HSV"))[:, :, 1]
        mask = np.array(Image.open(f"data/shapes/SegmentationClass/{path.stem}.png"))
        assert np.median(saturation[mask == 0]) < 0.45 * 255


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"forms": [0, 2]}, r"forms must be \[fewest, most\], between 1 and 100"),
        ({"clutter": [3, 2]}, r"clutter must be \[fewest, most\], between 0 and 100"),
        ({"radius": ["1/4", "1/4"]}, r"radius must be \[least, most\], shares of a side from 1/16 to 1/2"),
    ],
)
def test_options_out_of_range_are_refused(project: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=f"datasets: shapes: options: {said}"):
        sources.prepare("shapes", dataset(**options))


def test_what_it_cannot_draw_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match="cannot draw 'hexagon'; can disc, square"):
        sources.prepare("shapes", parameters.Dataset("shapes", ("background", "hexagon")))
    with pytest.raises(UserError, match=r"datasets: shapes: options: .*size at least 32"):
        sources.prepare("shapes", dataset(size=8))
    assert not Path("data/shapes").exists()
