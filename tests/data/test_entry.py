"""The entry of a new dataset: it loads, it works, and nothing else in params.yaml changes."""

import math
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from semiseg.base import parameters, tree
from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.data import entry, inspection, sources
from tests import miniature
from tests.data.test_inspection import usual
from tests.project import ROOT


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is a folder with the suite's params.yaml and mine/, images and masks."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    usual()
    return tmp_path


@pytest.fixture(scope="module")
def suite() -> Params:
    return parameters.load(ROOT / "params.yaml")


def new_dataset(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the script in this process, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["new_dataset.py", *arguments])
    try:
        runpy.run_path(str(miniature.PIPELINE / "new_dataset.py"), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_what_is_printed_is_what_is_written_and_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], suite: Params
) -> None:
    before = Path("params.yaml").read_text()
    assert new_dataset(monkeypatch, "mine") == 0
    assert Path("params.yaml").read_text() == before
    printed = capsys.readouterr().out.partition("\ngrids:\n")[2]
    assert new_dataset(monkeypatch, "mine", "--write") == 0
    lines = Path("params.yaml").read_text().splitlines()
    added = list(lines)
    for line in before.splitlines():
        added.remove(line)
    assert added == [line for line in printed.splitlines() if line.startswith(" ")]
    # What was there is there, in its order
    places = iter(lines)
    assert all(line in places for line in before.splitlines())

    params = parameters.load()
    for kind in ("grids", "recipes", "protocols", "datasets"):
        assert {**getattr(params, kind), **getattr(suite, kind)} == getattr(params, kind)
    assert set(params.grids) - set(suite.grids) == {"mine", "mine-small"}
    dataset = sources.prepare("mine", params.datasets["mine"])
    labelled = len(dataset.by_mask()[0])
    for name in ("mine", "mine-small"):
        for run in params.grids[name].runs():
            config = params.run(run)
            assert 1 <= config.share.labelled_count(labelled) <= labelled
            assert config.protocol.geometry.crop % 16 == 0  # DCC's features need a multiple of 8
    assert new_dataset(monkeypatch, "mine", "--write") == 2  # it has an entry


def test_a_folder_with_a_problem_is_not_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("params.yaml").read_bytes()
    Path("mine/masks/a.png").write_bytes(b"?")
    assert new_dataset(monkeypatch, "mine", "--write") == 1
    assert "problem: mine/masks/a.png" in capsys.readouterr().out
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("masks", "ratios", "on_gpu"),  # beside a half; a batch is four images on a laptop, eight on a GPU
    [
        (16, [], []),
        (17, ["1/4"], []),
        (40, ["1/8", "1/4"], ["1/4", "1/2"]),
        (400, ["1/16", "1/8", "1/4"], ["1/16", "1/8", "1/4", "1/2"]),
    ],
)
def test_a_laptop_trains_on_a_quarter_where_that_is_enough(
    masks: int, ratios: list[str], on_gpu: list[str]
) -> None:
    trained = masks - math.ceil(masks * inspection.VALIDATION)
    assert [str(each) for each in entry.shares(trained, entry.FEWEST)] == [*ratios, "1/2"]
    found = replace(inspection.inspect("mine"), masks={"train": trained, "val": masks - trained})
    grids = yaml.safe_load(entry.entry("mine", found)["grids"])
    assert grids["mine-small"]["shares"] == ["1/4" if ratios else "1/2"]
    assert grids["mine"]["shares"] == [*on_gpu, "full"]


@pytest.mark.parametrize("folder", ["..", ".", "data", "../{name}/data/../.", "odd\udcff"])
def test_a_folder_that_cannot_be_a_dataset_is_refused(folder: str, suite: Params) -> None:
    given = folder.format(name=Path.cwd().name)
    with pytest.raises(UserError) as error:
        entry.free_name(suite, given)
    assert "\n" not in str(error.value)


def test_a_folder_is_known_by_any_of_its_names(project: Path) -> None:
    found = inspection.inspect("mine")
    text = entry.inserted(Path("params.yaml").read_text(), entry.entry("mine", found))
    Path("params.yaml").write_text(text)
    Path("link").symlink_to("mine")
    for name in ("mine", "mine/", "./mine", "data/../mine", str(Path("mine").resolve()), "link"):
        with pytest.raises(UserError, match="is the dataset 'mine'"):
            entry.free_name(parameters.load(), name)


def test_options_that_are_not_the_source_s_own_are_written(project: Path) -> None:
    Path("mine/images").rename("mine/photos, all")
    Path("mine").rename("odd: {folder}")
    found = inspection.inspect("odd: {folder}")
    lines = entry.entry("odd", found)["datasets"]
    options = yaml.safe_load(lines)["odd"]["options"]
    assert options == {"path": "odd: {folder}", "images": "photos, all", "validation": "1/5"}
    text = entry.inserted(Path("params.yaml").read_text(), entry.entry("odd", found))
    Path("params.yaml").write_text(text)
    sources.prepare("odd", parameters.load().datasets["odd"])


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("../mine", "mine"),
        ("/home/me/My photos (2024)/", "My_photos_2024"),
        ("~/voc", "voc_2"),
        ("shapes", "shapes_2"),
        ("true", "true"),
        ("2024", "2024"),
        ("archives", "archives_2"),
        ("nul", "nul_2"),
        ("data/mine", "mine_2"),
        ("ü" * 300, "mine"),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_name_is_a_free_one(folder: str, name: str, suite: Params) -> None:
    assert entry.free_name(suite, folder) == name
    lines = entry.entry(name, inspection.inspect("mine"))
    for section, given in lines.items():
        Path(section).write_text(given.replace("  <<: *cpu\n", "").replace("  <<: *gpu\n", ""))
        written = tree.read(Path(section))
        assert set(written) == {name} if section == "datasets" else {name, f"{name}-small"}
    assert tree.read(Path("protocols"))[name]["dataset"] == name


SECTIONS = """\
# first
protocols: &all
  one: &cpu {a: 1}   # the laptop
  two: &gpu
      a: [1,
          2]

# of datasets
datasets:
    first:
        shares: &shares {1/2: {}}
    second: {shares: *shares}
    third: *shares  # last
default: [x]
grids:
  x:
    - |
      a

      b
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["ends with a line feed", "does not"])
def test_lines_go_to_the_ends_of_their_sections(ending: str, last: bool) -> None:
    new = {section: f"new:\n  a: {section}\n" for section in entry.SECTIONS}
    given = SECTIONS if last else SECTIONS.replace("    - |\n      a\n\n      b\n", "    - a")
    expected = (
        given.replace("          2]\n", "          2]\n  new:\n    a: protocols\n").replace(
            "# last\n", "# last\n    new:\n      a: datasets\n"
        )
        + ("" if last else "\n")
        + "  new:\n    a: grids\n"
    )
    found = entry.inserted(given.replace("\n", ending), new)
    assert found == expected.replace("\n", ending)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("&cpu ", ""),
        ("&gpu", ""),
        ("datasets:", "others:"),
        ("grids:\n  x:\n    - |\n      a\n\n      b\n", "grids: {x: 1}\n"),
        ("grids:\n  x:\n    - |\n      a\n\n      b\n", "grids:\n"),
    ],
)
def test_a_file_without_a_place_for_the_entry_is_refused(old: str, new: str) -> None:
    lines = dict.fromkeys(entry.SECTIONS, "new: 1\n")
    assert entry.inserted(SECTIONS, lines)
    with pytest.raises(UserError, match=r"params\.yaml: "):
        entry.inserted(SECTIONS.replace(old, new), lines)
