"""Preparing removes only files that the suite wrote."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import prepared, replacing, sources
from semiseg.data.sources import shapes

DRAWN = parameters.Dataset("shapes", ("ground", "disc"), options={"train": 4, "val": 2, "size": 32})
OTHER = parameters.Dataset("shapes", ("ground", "disc"), options={"train": 3, "val": 2, "size": 32})


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def own_folder(folder: Path) -> parameters.Dataset:
    """Make a user's folder of ten images with their masks, and a file that no list names."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(folder / f"images/{number}.png")
        Image.fromarray(np.array([[0, 1] * 3] * 4, dtype=np.uint8)).save(folder / f"masks/{number}.png")
    (folder / "train.txt").write_text("".join(f"{number}\n" for number in range(8)))
    (folder / "val.txt").write_text("8\n9\n")
    (folder / "notes.md").write_text("precious")
    return parameters.Dataset("folder", ("ground", "thing"), options={"path": str(folder)})


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def refused(name: str, dataset: parameters.Dataset, words: str) -> None:
    """Return the one line that refuses to prepare, after checking that no file anywhere has changed."""
    before = contents(Path())
    with pytest.raises(UserError, match=words) as refusal:
        sources.prepare(name, dataset)
    assert "\n" not in str(refusal.value)
    assert contents(Path()) == before


@pytest.mark.parametrize("source", ["shapes", "folder"])
@pytest.mark.parametrize(
    "name", ["archives", "splits", "ingredients", "..", ".", "splits/", "con", "a/b", ""]
)
def test_a_name_of_another_folder_is_refused(name: str, source: str, project: Path) -> None:
    (project / "data/archives").mkdir(parents=True)
    (project / "data/archives/voc.tar").write_text("large")
    (project / "README.md").write_text("mine")
    refused(name, DRAWN if source == "shapes" else own_folder(project / "own"), "params.yaml: datasets: ")


def test_a_users_folder_at_the_datasets_own_place_is_left_alone() -> None:
    refused("mine", own_folder(Path("data/mine")), "data/mine: your folder and data/mine, .* must lie apart")


def test_a_users_folder_is_left_alone_whatever_the_source() -> None:
    own_folder(Path("data/mine"))
    refused("mine", DRAWN, "data/mine/images/0.png and 22 more: not written by this suite")


@pytest.mark.parametrize(
    ("path", "link"), [("data", None), (".", None), ("data/mine/raw", None), ("link", "data/mine")]
)
def test_a_source_above_or_below_its_target_is_refused(path: str, link: str | None, project: Path) -> None:
    own_folder(Path(path) if link is None else Path(link))
    if link is not None:
        Path(path).symlink_to(link)
    dataset = parameters.Dataset("folder", ("ground", "thing"), options={"path": path})
    refused("mine", dataset, "must lie apart")


def test_a_file_added_to_a_prepared_dataset_keeps_it_from_being_replaced() -> None:
    sources.prepare("drawn", DRAWN)
    Path("data/drawn/notes.md").write_text("precious")
    sources.prepare("drawn", DRAWN)  # nothing to be replaced
    refused("drawn", OTHER, "data/drawn/notes.md: not written by this suite")
    Path("data/drawn/notes.md").unlink()
    assert len(sources.prepare("drawn", OTHER).ids("train")) == 3


def test_a_link_in_a_prepared_dataset_is_not_followed(project: Path) -> None:
    sources.prepare("drawn", DRAWN)
    (project / "photos").mkdir()
    for path in sorted(Path("data/drawn/JPEGImages").iterdir()):
        path.rename(project / "photos" / path.name)
    Path("data/drawn/JPEGImages").rmdir()
    Path("data/drawn/JPEGImages").symlink_to(project / "photos")
    refused("drawn", OTHER, "data/drawn/JPEGImages: not written by this suite")


def test_a_dataset_of_a_revision_that_listed_no_files_is_left_alone() -> None:
    sources.prepare("drawn", DRAWN)
    Path("data/drawn/files.txt").unlink()
    refused("drawn", OTHER, "data/drawn: prepared by a revision that did not list its files")


@pytest.mark.parametrize("line", ["0 ../../precious", "0 /etc/passwd", "0 a/../../b", "0"])
def test_a_list_of_files_that_leads_outside_is_refused(line: str, project: Path) -> None:
    sources.prepare("drawn", DRAWN)
    (project / "precious").write_text("x")
    with Path("data/drawn/files.txt").open("a") as file:
        file.write(f"{line}\n")
    refused("drawn", OTHER, "files.txt: not a list of prepared files")


def test_every_file_of_a_prepared_dataset_is_listed_and_goes_with_it() -> None:
    sources.prepare("drawn", DRAWN)
    listed = {*prepared.read_files(Path("data/drawn")), "files.txt", "manifest.json"}
    assert set(contents(Path("data/drawn"))) == listed
    replacing.remove_prepared(Path("data/drawn"))
    assert list(Path("data/drawn").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, UserError])
def test_a_failure_leaves_what_was_there(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: Path, *_: object) -> None:
        (folder / "half").mkdir()
        (folder / "half/written").touch()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "prepare", failing)
        with pytest.raises(error):
            sources.prepare("drawn", DRAWN)
        assert [path for path in Path("data").iterdir() if path.is_dir()] == []
    sources.prepare("drawn", DRAWN)
    before = contents(Path("data"))
    monkeypatch.setattr(shapes, "prepare", failing)
    with pytest.raises(error):
        sources.prepare("drawn", OTHER)
    assert contents(Path("data")) == before


def cut_off_before_removing(target: Path) -> None:
    (target / replacing.PARTIAL / "images").mkdir(parents=True)
    (target / replacing.PARTIAL / "images/a.jpg").touch()


def cut_off_while_removing(target: Path) -> None:
    cut_off_before_removing(target)
    (target / "manifest.json").unlink()
    for path in sorted((target / "JPEGImages").iterdir())[:3]:
        path.unlink()


def cut_off_while_moving(target: Path) -> None:
    cut_off_while_removing(target)
    (target / "ImageSets/Segmentation/val.txt").unlink()


@pytest.mark.parametrize("cut_off", [cut_off_before_removing, cut_off_while_removing, cut_off_while_moving])
def test_a_start_that_was_killed_is_followed_by_a_whole_one(cut_off: Callable[[Path], None]) -> None:
    first = sources.prepare("drawn", DRAWN)
    whole = contents(Path("data/drawn"))
    cut_off(Path("data/drawn"))
    assert sources.prepare("drawn", DRAWN) == first
    assert contents(Path("data/drawn")) == whole


def test_a_broken_manifest_is_replaced(project: Path) -> None:
    first = sources.prepare("drawn", DRAWN)
    Path("data/drawn/manifest.json").write_text("{")
    assert sources.prepare("drawn", DRAWN) == first
    assert json.loads(Path("data/drawn/manifest.json").read_text())["digest"] == first.digest


# --- links ------------------------------------------------------------------------------------------------


def test_data_and_a_dataset_may_be_links_to_another_disk(project: Path) -> None:
    disk = project.parent / "a disk's é"
    (disk / "one").mkdir(parents=True)
    (project / "data").symlink_to(disk)
    (project.parent / "two").mkdir()
    (disk / "linked").symlink_to(project.parent / "two")
    for name in ("plain", "linked"):
        sources.prepare(name, DRAWN)
        assert len(sources.prepare(name, OTHER).ids("train")) == 3
        assert prepared.is_prepared(name, OTHER)
    assert (disk / "linked").is_symlink()
    assert (project.parent / "two/manifest.json").is_file()
    assert not (project.parent / "two/.semiseg.partial").exists()


@pytest.mark.parametrize("link", ["data", "data/drawn"])
def test_a_link_to_nowhere_is_named(link: str) -> None:
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to("/nowhere/at/all")
    refused("drawn", DRAWN, f"{link}: a symbolic link to /nowhere/at/all, which is not there")


@pytest.mark.parametrize("place", ["data", "data/drawn"])
def test_a_file_in_the_place_of_a_folder_is_named(place: str) -> None:
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("x")
    refused("drawn", DRAWN, f"{place}: not a folder")


@pytest.mark.parametrize("name", ["it's mine", "a{b}", "é è", "$HOME"])
def test_an_own_folder_may_have_any_path(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder(project.parent / name)
    monkeypatch.setenv("HOME", str(project.parent))
    for path in (f"../{name}", f"~/{name}", str(project.parent / name)):
        dataset = parameters.Dataset("folder", ("ground", "thing"), options={"path": path})
        assert len(sources.prepare("mine", dataset).ids("train")) == 8
    assert (project.parent / name / "notes.md").read_text() == "precious"
