"""Snakemake in a folder with an odd name, and with a params.yaml that is broken."""

import codecs
from pathlib import Path

import pytest

from tests import project


def test_a_project_runs_in_a_folder_of_any_name(tmp_path: Path) -> None:
    place = tmp_path / "it's a{b} $x é"
    place.mkdir()
    project.copy(place, stubs=True)
    listed = Path("data/splits/demo-1_20/0/labelled.txt")
    project.succeed(place, "snakemake", str(listed), "--cores", "1")
    assert (place / listed).is_file()


@pytest.mark.parametrize(
    "content",
    [b"# caf\xe9\n", codecs.BOM_UTF16_LE + b"a\0", b"grids: [1"],
    ids=["Latin 1", "UTF-16", "cut off"],
)
def test_snakemake_names_a_broken_params_file_without_a_traceback(content: bytes, tmp_path: Path) -> None:
    project.copy(tmp_path, stubs=True)
    (tmp_path / "params.yaml").write_bytes(content)
    done = project.run(tmp_path, "snakemake", "demo", "--dry-run")
    assert done.returncode != 0
    assert "params.yaml: " in done.stdout
    assert "Traceback" not in done.stdout
