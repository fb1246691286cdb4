import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import prepared, sources, splits, summary
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.stages import Stages, Wildcards
from tests import miniature, releases

OWN = parameters.Dataset("folder", ("nothing", "thing"), options={"path": "mine"})
MASK = np.array([[0, 1, 1], [255, 0, 1]], dtype=np.uint8)


def mask(values: np.ndarray = MASK) -> bytes:
    return releases.png(values)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make mine/ in the working directory: four training images, two with masks, and a validation image."""
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
    dataset = sources.prepare("own", OWN)
    assert dataset == prepared.open_dataset("own", OWN)
    assert dataset.ids("train") == ("a", "b", "trip/c", "trip/d")
    assert dataset.by_mask() == (("a", "trip/c"), ("b", "trip/d"))
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
    dataset = sources.prepare("own", OWN)
    assert [dataset.ids(listed) for listed in ("train", "val", "test")] == [("b", "trip/c"), ("a",), ("v",)]


# --- names of files ---------------------------------------------------------------------------------------


def test_suffixes_may_be_in_any_case_and_mixed(own: Path) -> None:
    (own / "images/a.png").rename(own / "images/a.PNG")
    (own / "masks/a.png").rename(own / "masks/a.Png")
    (own / "images/b.png").unlink()
    (own / "images/b.JPEG").write_bytes(releases.picture("b", "JPEG", (2, 3)))
    (own / "images/v.png").unlink()
    (own / "images/v.jpg").write_bytes(releases.picture("v", "JPEG", (2, 3)))
    dataset = sources.prepare("own", OWN)
    for each, user in (("a", "a.PNG"), ("b", "b.JPEG"), ("trip/d", "trip/d.png"), ("v", "v.jpg")):
        assert dataset.image_path(each).read_bytes() == (own / "images" / user).read_bytes()
    assert {dataset.image_path(each).suffix for each in ("b", "v")} == {".jpg"}
    assert dataset.mask_path("a").is_file()
    assert dataset == prepared.open_dataset("own", OWN)


@pytest.mark.parametrize(("part", "words"), [("images", "images/a"), ("masks", "masks/a")])
def test_two_files_of_one_id_are_refused(part: str, words: str, own: Path) -> None:
    (own / part / "a.PNG").write_bytes((own / part / "a.png").read_bytes())
    refused(rf"mine/{words}\.P?p?.*lies beside it, of the same id")


def test_a_picture_beside_a_mask_is_no_mask(own: Path) -> None:
    (own / "masks/a.jpg").write_bytes(releases.picture("a", "JPEG", (2, 3)))
    assert sources.prepare("own", OWN).by_mask()[0] == ("a", "trip/c")


def test_files_that_no_list_names_are_reported(own: Path) -> None:
    (own / "masks/A.png").write_bytes(mask())
    (own / "masks/b_mask.png").write_bytes(mask())
    (own / "images/extra.jpg").write_bytes(b"not even an image")
    (own / "images/.DS_Store").touch()
    lines = summary.warnings(sources.prepare("own", OWN))
    assert len(lines) == 1
    assert ": 3 (" in lines[0]
    for name in ("masks/A.png", "masks/b_mask.png", "images/extra.jpg"):
        assert name in lines[0]


# --- lists ------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_and_windows_line_ends_are_dropped(own: Path) -> None:
    (own / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\ntrip/c\r\ntrip/d\r\n")
    assert sources.prepare("own", OWN).ids("train") == ("a", "b", "trip/c", "trip/d")


BAD_LISTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"\n# nothing\n", "lists no image"),
    "twice": (b"a\nb\na\n", "'a' is listed twice"),
    "outside": (b"../x\n", r"'\.\./x' is not the plain path"),
    "inside and outside": (b"trip/../../x\n", "is not the plain path"),
    "absolute": (b"/etc/x\n", "'/etc/x' is not the plain path"),
    "dot": (b"./a\n", r"'\./a' is not the plain path"),
    "two slashes": (b"trip//c\n", "is not the plain path"),
    "a folder": (b"trip/\n", "is not the plain path"),
    "hash": (b"a\n#b\n", "'#b' begins with '#'"),
    "invisible": ("a\u200b\n".encode(), "holds a character that cannot be seen"),
    "a suffix": (b"a.png\n", r"mine/images/a\.png: listed, but .*an id has no suffix"),
    "UTF-16": ("a\nb\n".encode("utf-16"), "not a text file in UTF-8"),
    "UTF-16 without a mark": ("a\nb\n".encode("utf-16-le"), "not a text file in UTF-8"),
    "Latin 1": ("é\n".encode("latin-1"), "not a text file in UTF-8"),
    "an image": (releases.png(MASK), "not a text file in UTF-8"),
}


@pytest.mark.parametrize("listed", ["train", "val"])
@pytest.mark.parametrize("bad", BAD_LISTS)
def test_a_list_that_cannot_be_meant_is_refused(bad: str, listed: str, own: Path) -> None:
    content, words = BAD_LISTS[bad]
    (own / f"{listed}.txt").write_bytes(content)
    if listed == "val":
        (own / "train.txt").write_text("trip/d\n")
    line = refused(words)
    assert line.startswith("mine/images/a.png: " if bad == "a suffix" else f"mine/{listed}.txt: ")


# --- files ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda own: (own / "val.txt").unlink(), r"mine/val\.txt: no such file"),
    "trained and scored": (
        lambda own: (own / "val.txt").write_text("a\n"),
        r"mine/val\.txt: 'a' is listed in train\.txt too",
    ),
    "no image": (lambda own: (own / "images/trip/d.png").unlink(), "mine/images/trip/d: listed, but there"),
    "no mask to score": (lambda own: (own / "masks/v.png").unlink(), r"mine/masks/v\.png: not there"),
    "a list that is a folder": (
        lambda own: (own / "val.txt").unlink() or (own / "val.txt").mkdir(),
        r"mine/val\.txt: no such file",
    ),
    "a link to nowhere": (
        lambda own: (own / "images/b.png").unlink() or (own / "images/b.png").symlink_to("/nowhere"),
        "mine/images/b: listed, but there",
    ),
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
    "a JPEG mask": (
        lambda own: (
            (own / "masks/a.png").rename(own / "masks/a.jpg")
            and Image.new("L", (3, 2)).save(own / "masks/a.jpg")
        ),
        r"mine/masks/a\.jpg: a mask must be a PNG file, this is JPEG",
    ),
    "a progressive JPEG called PNG": (
        lambda own: (
            (own / "masks/a.png").unlink()
            or Image.new("L", (3, 2)).save(own / "masks/a.PNG", "JPEG", progressive=True)
        ),
        r"mine/masks/a\.PNG: a mask must be a PNG file, this is JPEG",
    ),
    "16 bits": (
        lambda own: Image.fromarray(np.full((2, 3), 999, np.uint16)).save(own / "images/b.png"),
        r"mine/images/b\.png: has more than 8 bits",
    ),
    "all ignored": (
        lambda own: [(own / f"masks/{n}.png").write_bytes(mask(MASK | 255)) for n in ("a", "trip/c")],
        "mine: no mask of the list 'train' has a pixel that is not 255",
    ),
    "nothing to score": (
        lambda own: (own / "masks/v.png").write_bytes(mask(MASK | 255)),
        "mine: no mask of the list 'val' has a pixel that is not 255",
    ),
    "0 and 255": (
        lambda own: [
            (own / f"masks/{n}.png").write_bytes(mask(MASK.clip(0, 1) * 255)) for n in ("a", "trip/c", "v")
        ],
        r"mine: the masks hold one class alone, 0 \('nothing'\), and 255, .* if 255 stands for a class",
    ),
}


def refused(words: str) -> str:
    with pytest.raises(UserError, match=words) as refusal:
        sources.prepare("own", OWN)
    line = str(refusal.value)
    assert "\n" not in line
    assert ".semiseg.partial" not in line
    assert "download.py" not in line  # preparing again cannot mend a user's file
    assert not any(path.is_dir() for path in Path("data").iterdir())
    return line


@pytest.mark.parametrize("bad", BAD)
def test_what_is_wrong_in_the_folder_is_said_in_one_line(bad: str, own: Path) -> None:
    spoil, words = BAD[bad]
    spoil(own)
    refused(words)


def test_the_folder_must_be_named_and_be_there() -> None:
    with pytest.raises(UserError, match=r"datasets: own: options: missing key 'path'"):
        sources.prepare("own", parameters.Dataset("folder", OWN.classes))
    with pytest.raises(UserError, match=r"nowhere/train\.txt: no such file"):
        sources.prepare("own", parameters.Dataset("folder", OWN.classes, options={"path": "nowhere"}))


@pytest.mark.parametrize(("orientation", "shape"), [(3, (2, 3)), (6, (3, 2)), (8, (3, 2))])
def test_a_turned_image_needs_a_mask_turned_likewise(
    orientation: int, shape: tuple[int, int], own: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    Image.fromarray(pixels).save(own / "images/a.png", exif=exif)
    if shape != (2, 3):
        refused(r"mine/masks/a\.png: the mask is 3x2, its image 2x3 as its EXIF orientation shows it")
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    (own / "masks/a.png").write_bytes(mask(np.rot90(MASK, turns)))
    dataset = sources.prepare("own", OWN)
    image = decode_image(dataset.image_path("a"))
    np.testing.assert_array_equal(image, np.rot90(pixels, turns))
    np.testing.assert_array_equal(decode_mask(dataset.mask_path("a"), shape, 2), np.rot90(MASK, turns))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": "../mine/images"}, "images: "),
        ({"masks": "/masks"}, "masks: "),
        ({"validation": "0"}, "validation: "),
        ({"validation": "1"}, "validation: "),
        ({"validation": "half"}, "validation: "),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, str], words: str) -> None:
    dataset = parameters.Dataset("folder", OWN.classes, options={"path": "mine", **options})
    with pytest.raises(UserError, match=f"datasets: own: options: {words}"):
        sources.prepare("own", dataset)


def test_a_validation_list_is_drawn_where_there_are_no_lists(own: Path) -> None:
    dataset = parameters.Dataset("folder", OWN.classes, options={"path": "mine", "validation": "1/2"})
    with pytest.raises(UserError, match=r"mine/train\.txt: .* validation"):
        sources.prepare("own", dataset)
    (own / "train.txt").unlink()
    (own / "val.txt").unlink()
    (own / "images/notes.txt").write_text("no image")
    found = sources.prepare("own", dataset)
    assert len(found.ids("val")) == 2  # half of three, rounded up
    assert set(found.ids("val")) < {"a", "trip/c", "v"}
    assert sorted(found.ids("train") + found.ids("val")) == ["a", "b", "trip/c", "trip/d", "v"]
    (own / "images/#x.png").write_bytes(releases.picture("x", "PNG", (2, 3)))
    with pytest.raises(UserError, match=r"mine/images: '#x'"):
        sources.prepare("own", dataset)
    (own / "images/#x.png").unlink()
    for each in ("a", "trip/c"):
        (own / f"masks/{each}.png").unlink()
    with pytest.raises(UserError, match="mine: 1 images with a mask"):
        sources.prepare("own", dataset)


# --- prepared again ---------------------------------------------------------------------------------------


def test_a_fingerprint_follows_what_the_dataset_is_made_from(own: Path) -> None:
    assert sources.fingerprint(parameters.Dataset("shapes", ("a", "b"))) is None
    found = {sources.fingerprint(OWN)}
    assert found == {sources.fingerprint(OWN)}
    for change in (
        lambda: (own / "images/b.png").write_bytes(b"?"),
        lambda: (own / "masks/b.png").write_bytes(mask()),
        lambda: (own / "masks/b.png").rename(own / "masks/c.png"),
        lambda: (own / "val.txt").write_text("b\n"),
        lambda: os.utime(own / "images/a.png", (1, 1)),
    ):
        change()
        found.add(sources.fingerprint(OWN))
    assert len(found) == 6
    (own / "notes.md").write_text("of no list")
    assert sources.fingerprint(OWN) in found


def test_a_changed_folder_is_prepared_again(own: Path) -> None:
    before = sources.prepare("own", OWN)
    (own / "masks/a.png").write_bytes(mask(1 - MASK.clip(0, 1)))
    after = sources.prepare("own", OWN)
    assert after.digest != before.digest
    (own / "images/b.png").write_bytes(releases.picture("other", "PNG", (2, 3)))
    assert sources.prepare("own", OWN).digest not in (before.digest, after.digest)


def test_a_folder_that_was_only_touched_gives_the_same_manifest(own: Path) -> None:
    sources.prepare("own", OWN)
    before = Path("data/own/manifest.json").read_bytes()
    os.utime(own / "images/b.png", (1, 1))
    (own / "images/extra.png").write_bytes(b"of no list")
    fingerprint = sources.fingerprint(OWN)
    sources.prepare("own", OWN)
    assert json.loads(Path("data/own/origin.json").read_text())["fingerprint"] == fingerprint
    assert Path("data/own/manifest.json").read_bytes() == before
    Path("data/own/origin.json").write_text("{")
    assert sources.prepare("own", OWN).digest == json.loads(before)["digest"]


def test_both_engines_notice_a_change_in_the_folder(own: Path) -> None:
    tree = json.loads(json.dumps(miniature.PARAMS))
    tree["datasets"]["mini"] |= {"source": "folder", "options": {"path": "mine"}}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    stages, mini = Stages(parameters.load()), Wildcards(dataset="mini")
    before = stages.download(mini)
    assert stages.download(mini) == before
    (own / "images/b.png").write_bytes(releases.picture("other", "PNG", (2, 3)))
    assert stages.download(mini) != before


def test_a_prepared_dataset_outlives_its_folder(own: Path) -> None:
    before = sources.prepare("own", OWN)
    own.rename(own.with_name("elsewhere"))
    assert sources.fingerprint(OWN) is None
    assert sources.prepare("own", OWN) == before


def test_a_folder_may_be_full_of_links(own: Path) -> None:
    (own / "masks").rename(own / "real masks")
    (own / "masks").symlink_to("real masks")
    (own / "images/a.png").rename(own / "a picture")
    (own / "images/a.png").symlink_to(own / "a picture")
    dataset = sources.prepare("own", OWN)
    assert dataset.by_mask()[0] == ("a", "trip/c")
    assert not dataset.image_path("a").is_symlink()


def test_the_stages_tell_what_is_there_and_refuse_what_teaches_nothing(own: Path) -> None:
    tree = json.loads(json.dumps(miniature.PARAMS))
    tree["datasets"]["mini"] = {
        "source": "folder",
        "classes": ["nothing", "thing"],
        "options": {"path": "mine"},
        "shares": {"1/4": {"count": 2}},
    }
    Path("params.yaml").write_text(yaml.safe_dump(tree))

    def stage(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(miniature.PIPELINE / f"{name}.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for number in range(4):  # ignored masks, so that a draw of two may hold nothing else
        (own / f"images/n{number}.png").write_bytes(releases.picture("n", "PNG", (2, 3)))
        (own / f"masks/n{number}.png").write_bytes(mask(MASK | 255))
    (own / "train.txt").write_text("a\nb\nn0\nn1\nn2\nn3\n")
    done = stage("download", "mini")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("data/mini: 6 train, 1 val images, 2 classes\n")
    assert ["train", "6", "5", "1"] in [line.split() for line in done.stdout.splitlines()]
    ids = prepared.open_dataset("mini", parameters.load().datasets["mini"]).by_mask()[0]
    statuses = set()
    for seed in range(4):
        taught = "a" in splits.draw(ids, 2, seed)[0]
        done = stage("split", miniature.SPLIT, str(seed))
        assert done.returncode == (0 if taught else 2), done.stderr
        assert taught or done.stderr.startswith("error: mine: every pixel of the labelled images is 255")
        assert done.stderr.count("\n") == (0 if taught else 1)
        statuses.add(done.returncode)
    assert statuses == {0, 2}
