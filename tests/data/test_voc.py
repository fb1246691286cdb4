import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import prepared, sources
from semiseg.data.families import FAMILIES
from semiseg.data.sources import voc
from tests import releases
from tests.releases import Files, Server

VOC = parameters.Dataset(
    "voc",
    tuple(f"class {place}" for place in range(21)),
    background=0,
    options=releases.published(releases.TRAIN, releases.VOC_VAL),
)
TOP = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve both archives, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMISEG_ARCHIVES", raising=False)
    with releases.serving() as serving:
        serving.files = releases.voc_archives()
        monkeypatch.setattr(voc, "DOWNLOADS", serving.downloads())
        yield serving


def data_files() -> list[str]:
    """Return all files below data/ but locks."""
    return sorted(str(path) for path in Path("data").rglob("*") if path.is_file() and path.suffix != ".lock")


def values(path: Path) -> list[list[int]]:
    with Image.open(path) as mask:
        assert mask.mode == "P"
        rows: list[list[int]] = np.array(mask).tolist()
        return rows


def test_the_two_releases_are_prepared(server: Server) -> None:
    dataset = sources.prepare("voc", VOC)
    assert dataset == prepared.open_dataset("voc", VOC)
    assert list(dataset.ids("train")) == releases.TRAIN
    assert list(dataset.ids("val")) == releases.VOC_VAL
    for each in releases.VOC_TRAIN + releases.VOC_VAL:  # SBD has two of these: VOC's own are used
        assert values(dataset.mask_path(each)) == releases.mask_of(each).tolist()
    for each in set(releases.TRAIN) - set(releases.VOC_TRAIN):
        assert values(dataset.mask_path(each)) == releases.sbd_mask(each).tolist()
    assert {path.name for path in Path("data/voc").iterdir()} == {
        "JPEGImages",
        "SegmentationClass",
        "ImageSets",
        "files.txt",
        "manifest.json",
    }
    assert sorted(path.stem for path in Path("data/voc/JPEGImages").iterdir()) == sorted(
        releases.TRAIN + releases.VOC_VAL
    )


def test_the_manifest_tells_pixels_and_archives(server: Server) -> None:
    sources.prepare("voc", VOC)
    manifest = prepared.read_manifest(Path("data/voc"))
    assert manifest is not None
    masks = [releases.mask_of(each) for each in releases.VOC_VAL]
    expected = {
        name: int(sum((mask == place).sum() for mask in masks)) for place, name in enumerate(VOC.classes)
    }
    assert manifest["pixels"]["val"] == {**expected, "(ignored)": 2 * 28}
    assert sum(manifest["pixels"]["train"].values()) == 6 * 40 * 48
    assert set(manifest["source"]["archives"]) == {voc.VOC_ARCHIVE, voc.SBD_ARCHIVE}


def test_archives_in_the_folder_need_no_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    monkeypatch.setenv("SEMISEG_ARCHIVES", "mine")
    for name, content in server.files.items():
        Path("mine", name).write_bytes(content)
    sources.prepare("voc", VOC)
    assert server.asked == []
    Path("mine", voc.SBD_ARCHIVE).write_bytes(b"x" * len(server.files[voc.SBD_ARCHIVE]))
    with pytest.raises(UserError, match=rf"mine/{voc.SBD_ARCHIVE}: its md5 is .*, expected .*; remove it"):
        sources.prepare("again", VOC)


def test_the_published_ids_are_the_default(server: Server) -> None:
    assert (voc.Config().train, voc.Config().val) == (10582, 1449)
    names = FAMILIES["cmb"].names  # a sorted list
    assert names is not None
    assert voc.Config().train_sha256 == names.sha256
    with pytest.raises(UserError, match=r"train has 6 images, 10582 were published"):
        sources.prepare("voc", parameters.Dataset("voc", VOC.classes))
    assert not Path("data/voc").exists()


def test_the_first_mirror_may_be_down(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc, "DOWNLOADS", server.downloads("/gone"))
    sources.prepare("voc", VOC)
    assert server.asked == [
        (name, 0) for file in (voc.VOC_ARCHIVE, voc.SBD_ARCHIVE) for name in (f"gone/{file}", file)
    ]


def test_a_download_that_is_cut_off_goes_on(server: Server) -> None:
    server.cuts[voc.VOC_ARCHIVE] = [1000, 500]
    sources.prepare("voc", VOC)
    assert server.asked[:3] == [(voc.VOC_ARCHIVE, start) for start in (0, 1000, 1500)]


def test_the_next_start_goes_on_where_one_was_cut_off(server: Server) -> None:
    server.cuts[voc.VOC_ARCHIVE] = [1000, 0]  # then nothing comes any more
    with pytest.raises(UserError, match=r"cut off at 1000 of \d+ bytes") as refusal:
        sources.prepare("voc", VOC)
    assert "\n" not in str(refusal.value)
    assert data_files() == [f"data/archives/.{voc.VOC_ARCHIVE}.partial"]
    server.asked.clear()
    sources.prepare("voc", VOC)
    assert server.asked[0] == (voc.VOC_ARCHIVE, 1000)
    assert not any(file.endswith(".partial") for file in data_files())


def test_a_server_without_ranges_begins_anew(server: Server) -> None:
    server.cuts[voc.VOC_ARCHIVE] = [1000]
    server.whole.add(voc.VOC_ARCHIVE)
    sources.prepare("voc", VOC)
    assert Path("data/archives", voc.VOC_ARCHIVE).read_bytes() == server.files[voc.VOC_ARCHIVE]


def test_a_beginning_of_another_file_is_thrown_away(server: Server) -> None:
    Path("data/archives").mkdir(parents=True)
    Path("data/archives", f".{voc.VOC_ARCHIVE}.partial").write_bytes(b"of an older release")
    sources.prepare("voc", VOC)
    assert server.asked[:2] == [(voc.VOC_ARCHIVE, 19), (voc.VOC_ARCHIVE, 0)]


def test_a_file_of_another_size_is_refused_before_it_is_read(server: Server) -> None:
    server.files[voc.VOC_ARCHIVE] += b"more"
    with pytest.raises(UserError, match=r"it has \d+ bytes, expected \d+\); put VOCtrainval"):
        sources.prepare("voc", VOC)
    assert data_files() == []


def test_a_wrong_digest_is_refused(server: Server) -> None:
    server.files[voc.SBD_ARCHIVE] = b"\0" * len(server.files[voc.SBD_ARCHIVE])
    with pytest.raises(UserError, match=r"benchmark\.tgz \(its md5 is [0-9a-f]{32}, expected [0-9a-f]{32}\)"):
        sources.prepare("voc", VOC)
    assert data_files() == [f"data/archives/{voc.VOC_ARCHIVE}"]


def test_a_full_disk_leaves_nothing(server: Server) -> None:
    Path("data/archives").mkdir(parents=True)
    Path("data/archives", f".{voc.VOC_ARCHIVE}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        sources.prepare("voc", VOC)
    assert data_files() == []


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Files:
    """Return VOC's archive with one more member."""
    info = tarfile.TarInfo(f"{TOP}/JPEGImages/{name}")
    info.type, info.linkname, info.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    return {voc.VOC_ARCHIVE: releases.tar(releases.voc_files(), info)}


def lacking(name: str, archive: str, files: Files) -> Files:
    del files[name]
    return {archive: releases.tar(files)}


def with_mask(content: bytes) -> Files:
    """Return SBD's archive with another mask."""
    return {voc.SBD_ARCHIVE: releases.tar({**releases.sbd_files(), f"{SBD}/cls/2008_000003.mat": content})}


def with_list(ids: list[str]) -> Files:
    """Return SBD's archive with another training list, whose masks it has."""
    masks = {f"{SBD}/cls/{each}.mat": releases.mat(releases.sbd_mask(each)) for each in ids}
    files = {**releases.sbd_files(), **masks, f"{SBD}/train.txt": releases.lines(ids)}
    return {voc.SBD_ARCHIVE: releases.tar(files, mode="w:gz")}


BAD: dict[str, tuple[Callable[[], Files], str]] = {
    "truncated": (
        lambda: {voc.VOC_ARCHIVE: releases.tar(releases.voc_files())[:5000]},
        r"VOCtrainval_11-May-2012\.tar: broken or cut off",
    ),
    "truncated, compressed": (
        lambda: {voc.SBD_ARCHIVE: releases.tar(releases.sbd_files(), mode="w:gz")[:-200]},
        r"benchmark\.tgz: broken or cut off",
    ),
    "no archive": (lambda: {voc.VOC_ARCHIVE: b"<html>" * 99}, "broken or cut off"),
    "another": (lambda: {voc.VOC_ARCHIVE: releases.tar({"VOC2007/a": b""})}, "holds no folder VOC2012"),
    "a parent": (lambda: hostile("../../../../../../../x"), "refused for an unsafe member"),
    "a link": (lambda: hostile("a", tarfile.SYMTYPE, "/etc"), "refused for an unsafe member"),
    "a link up": (lambda: hostile("a", tarfile.SYMTYPE, "../../../../x"), "refused for an unsafe member"),
    "a device": (lambda: hostile("a", tarfile.CHRTYPE), "refused for an unsafe member"),
    "another image of its list": (
        lambda: with_list(["2007_000032", "2008_000001", "2008_000003"]),
        "train has other images than were published: sha256 [0-9a-f]{64}, not [0-9a-f]{64}",
    ),
    "an image too few": (lambda: with_list(["2008_000003"]), "train has 5 images, 6 were published"),
    "no image": (
        lambda: lacking(f"{TOP}/JPEGImages/2008_000007.jpg", voc.VOC_ARCHIVE, releases.voc_files()),
        r"not the releases: voc/JPEGImages/2008_000007\.jpg is not there",
    ),
    "no list": (
        lambda: lacking(f"{SBD}/val.txt", voc.SBD_ARCHIVE, releases.sbd_files()),
        r"not the releases: sbd/val\.txt is not there",
    ),
    "no mask": (
        lambda: lacking(f"{SBD}/cls/2008_000003.mat", voc.SBD_ARCHIVE, releases.sbd_files()),
        r"not the releases: sbd/cls/2008_000003\.mat is not there",
    ),
    "no MATLAB file": (lambda: with_mask(b"?" * 200), r"cls/2008_000003\.mat: no mask of SBD"),
    "a mask of instances": (
        lambda: with_mask(releases.mat(releases.sbd_mask("a"), "GTinst")),
        r"cls/2008_000003\.mat: no mask of SBD",
    ),
    "a class too many": (
        lambda: with_mask(releases.mat(np.full((40, 48), 21, dtype=np.uint8))),
        r"2008_000003\.png: holds the value 21",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_archives_are_refused_in_one_line_and_leave_the_data_as_they_were(
    bad: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources.prepare("voc", VOC)
    files, words = BAD[bad]
    server.files |= files()
    monkeypatch.setattr(voc, "DOWNLOADS", server.downloads())
    for archive in Path("data/archives").iterdir():
        archive.unlink()
    before = {path: Path(path).read_bytes() for path in data_files()}
    other = parameters.Dataset("voc", (*VOC.classes[:-1], "other"), options=VOC.options)  # so it is made anew
    with pytest.raises(UserError, match=words) as refusal:
        sources.prepare("voc", other)
    assert "\n" not in str(refusal.value)
    after = {path: Path(path).read_bytes() for path in data_files() if not path.startswith("data/archives/")}
    assert after == before
