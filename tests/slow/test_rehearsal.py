"""A paper's table from nothing to both engines' files, in miniature; all of them: make rehearse."""

from pathlib import Path

import pytest

from tests import rehearsal

TABLE = "paper-cmb-cityscapes"  # four runs: two networks, three shares


def test_a_papers_table_is_filled_and_the_same_by_both_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rehearsal.stage(tmp_path)
    monkeypatch.chdir(place)
    assert rehearsal.train([TABLE]) == 4
    by_snakemake = rehearsal.make("snakemake", place, [TABLE], trained=True)
    assert list((place / "results" / "figures" / TABLE).iterdir())
    assert rehearsal.make("dvc", place, [TABLE], trained=True) == by_snakemake
    markdown = by_snakemake[f"results/tables/{TABLE}.md"]
    published, measured = b" 59.4 |", b" (1) |"
    assert markdown.count(published) == 1
    assert markdown.count(measured) == 4
