"""Tests of the pages: their links lead somewhere, and deviations.md names what an official recipe changes."""

import re
from pathlib import Path

import pytest

from semiseg.base import parameters
from semiseg.methods import contract
from tests.project import ROOT

PAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
PARAMS = parameters.load(ROOT / "params.yaml")
OFFICIAL = sorted(recipe for recipe in PARAMS.recipes if recipe.endswith("-official"))
DEVIATIONS = ROOT / "docs" / "deviations.md"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = ROOT / page.parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("recipe", OFFICIAL)
def test_deviations_names_what_an_official_recipe_changes(recipe: str) -> None:
    official, paper = PARAMS.recipes[recipe], PARAMS.recipes[recipe.removesuffix("-official")]
    defaults = contract.module(official.method).Config()
    options = {**{name: getattr(defaults, name) for name in official.options}, **paper.options}
    changed = {name for name, value in official.options.items() if value != options[name]}
    changed |= {f"{name}: {value}" for name, value in official.network.items()}
    assert changed <= set(re.findall(r"`([^`]+)`", DEVIATIONS.read_text(encoding="utf-8")))
